"""From the owner's disk to the memory of a simulated VM, in three real processes: owner, broker, guest."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.attestation.guest.drivers import build
from tests.attestation.guest.models import make_source, memory_folder, tensors, tree
from tests.attestation.guest.vm import SimulatedGuest
from tests.bench.model_peer import BrokerProcess, start_broker, travel

MEGABYTES = 20


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with start_broker(tmp_path_factory.mktemp("broker")) as process:
        yield process


def test_a_model_and_its_key_reach_the_vm(broker: BrokerProcess, tmp_path: Path) -> None:
    """20 MiB: encrypted, its key released by the broker for evidence of this VM, decrypted, bit-identical."""
    (tmp_path / "vm").mkdir()
    with memory_folder() as memory:
        source = make_source(memory, megabytes=MEGABYTES)
        guest = SimulatedGuest(folder=tmp_path / "vm", libraries=build(tmp_path))
        plain = travel(broker, source, guest, key="models/llama/key")
        assert tree(plain) == tree(source)
        read, written = load_file(plain / "model.safetensors"), tensors(MEGABYTES)
        assert read.keys() == written.keys()
        assert all(np.array_equal(read[name].view(np.uint8), written[name].view(np.uint8)) for name in written)


def test_the_key_is_not_released_to_a_changed_vm(broker: BrokerProcess, tmp_path: Path) -> None:
    """Two GPUs where the policy wants one: no key, and nothing where the plaintext would be."""
    (tmp_path / "vm").mkdir()
    with memory_folder() as memory:
        source = make_source(memory)
        guest = SimulatedGuest(folder=tmp_path / "vm", libraries=build(tmp_path), gpus=2)
        with pytest.raises(RuntimeError, match="Access denied by policy"):
            travel(broker, source, guest, key="models/llama/other")
        assert not source.with_suffix(".arrived").exists()
