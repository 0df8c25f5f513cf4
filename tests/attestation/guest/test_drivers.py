"""NVML and NSCQ through real shared libraries, compiled here from our own C; the ready gate on top of them."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from attestation.errors import Denied, Unavailable
from attestation.guest.nvml import NvmlGpus, open_nvml
from attestation.guest.ready import gated
from attestation.values import Nonce
from tests.attestation.guest.drivers import NONCE, build, fill, in_process

COLLECT = """
import json
from attestation.errors import AttestationError
from attestation.guest.{module} import {opener}
from attestation.values import Nonce
try:
    with {opener}() as source:
        found = source.collect(Nonce(bytes(range(1, 33))))
    print(json.dumps([[d.uuid, d.arch, d.kind, d.report.hex(), d.chain.decode()] for d in found]))
except AttestationError as exc:
    print(json.dumps({{"code": exc.code, "text": str(exc)}}))
"""
GPUS = COLLECT.format(module="nvml", opener="open_nvml")
SWITCHES = COLLECT.format(module="nscq", opener="open_nscq")

GATE = """
import json
from dataclasses import replace
from attestation.errors import AttestationError
from attestation.guest.nvml import open_nvml
from attestation.guest.ready import gated
from attestation.values import Nonce
with open_nvml() as gpus:
    def attest():
        found = gpus.collect(Nonce(bytes(range(1, 33))))
        {attest}
        return found
    try:
        result = gated(gpus, attest).to_json()
    except (AttestationError, KeyboardInterrupt) as exc:
        result = {{"code": getattr(exc, "code", "interrupted")}}
    print(json.dumps(result | {{"ready": gpus.ready()}}))
"""


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled once."""
    return build(tmp_path_factory.mktemp("drivers"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the drivers answer from."""
    return fill(tmp_path)


def test_every_gpu_answers_with_the_nonce(libraries: Path, folder: Path) -> None:
    """Reports in NVML's order, nonce in place, chain as PEM text."""
    found = in_process(GPUS, libraries, folder, FAKE_NVML_GPUS=2)
    assert [row[:3] for row in found] == [["GPU-fake-0", "hopper", "gpu"], ["GPU-fake-1", "hopper", "gpu"]]
    assert all(bytes.fromhex(row[3])[4:36] == NONCE for row in found)
    assert found[0][4] == (folder / "gpu0.chain").read_text()
    assert found[0][3] != found[1][3]


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        pytest.param({"FAKE_NVML_CC": 0}, "cc-mode-off", "confidential mode is off", id="mode-off"),
        pytest.param({"FAKE_NVML_OLD": 2}, "cc-mode-off", "confidential mode is off", id="driver-knows-nothing"),
        pytest.param({"FAKE_NVML_OLD": 3}, "nvml", "nvmlSystemGetConfComputeState failed", id="driver-fails"),
        pytest.param({"FAKE_NVML_OLD": 1, "FAKE_NVML_CC": 0}, "cc-mode-off", "is off", id="older-driver-off"),
        pytest.param({"FAKE_NVML_DEV": 1}, "cc-mode-devtools", "open to the host", id="devtools"),
        pytest.param({"FAKE_NVML_ARCH": 8}, "gpu-architecture", "cannot attest", id="ada"),
        pytest.param({"FAKE_NVML_BROKEN": 1}, "nvml", "GPU-fake-1", id="second-gpu-fails"),
        pytest.param({"FAKE_NVML_GPUS": 3}, "nvml", "GPU-fake-2", id="gpu-without-answer"),
        pytest.param({"FAKE_NVML_SIZE": 0}, "nvml-size", "impossible size", id="size-zero"),
        pytest.param({"FAKE_NVML_SIZE": 99999}, "nvml-size", "impossible size", id="size-beyond-the-buffer"),
    ],
)
def test_a_gpu_that_cannot_attest_fails_the_collection(
    libraries: Path, folder: Path, settings: dict[str, int], code: str, says: str
) -> None:
    """Never a shorter list."""
    refused = in_process(GPUS, libraries, folder, **{"FAKE_NVML_GPUS": 2, **settings})
    assert refused["code"] == code
    assert says in refused["text"]


def test_older_driver_without_settings(libraries: Path, folder: Path) -> None:
    """The older question is asked where the newer one is not known."""
    assert len(in_process(GPUS, libraries, folder, FAKE_NVML_GPUS=2, FAKE_NVML_OLD=1)) == 2


def test_no_driver(tmp_path: Path) -> None:
    """A guest without NVIDIA's libraries gets our error, not a traceback."""
    for code, want in ((GPUS, "nvml"), (SWITCHES, "nscq-library")):
        assert in_process(code, tmp_path, tmp_path)["code"] == want


def test_every_switch_answers_with_the_nonce(libraries: Path, folder: Path) -> None:
    """NSCQ lists them in its own order; we sort by label."""
    found = in_process(SWITCHES, libraries, folder)
    assert [row[:3] for row in found] == [["SWX-fake-0", "ls10", "nvswitch"], ["SWX-fake-1", "ls10", "nvswitch"]]
    assert all(bytes.fromhex(row[3])[4:36] == NONCE for row in found)
    assert found[1][4] == (folder / "switch1.chain").read_text()


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        pytest.param({"FAKE_NSCQ_BROKEN": 1}, "nscq", id="second-switch-fails"),
        pytest.param({"FAKE_NSCQ_ARCH": 1}, "switch-architecture", id="older-switch"),
    ],
)
def test_a_switch_that_cannot_attest_fails_the_collection(
    libraries: Path, folder: Path, settings: dict[str, int], code: str
) -> None:
    """As with GPUs."""
    assert in_process(SWITCHES, libraries, folder, **settings)["code"] == code


def gate(libraries: Path, folder: Path, attest: str = "", **settings: object) -> Any:
    return in_process(GATE.format(attest=attest), libraries, folder, FAKE_NVML_GPUS=2, **settings)


def test_the_gate_opens_for_the_attested_gpus(libraries: Path, folder: Path) -> None:
    """Not ready before, ready after."""
    assert gate(libraries, folder) == {"ready-gate": "set", "gpus": ["GPU-fake-0", "GPU-fake-1"], "ready": True}


def test_a_system_that_was_ready_before_is_not_gated(libraries: Path, folder: Path) -> None:
    """Stock images set the state at boot: the result says so instead of claiming what it did not do."""
    (folder / "ready").write_text("1")
    assert gate(libraries, folder)["ready-gate"] == "not-enforced"


@pytest.mark.parametrize(
    ("attest", "settings", "code"),
    [
        pytest.param("found = found[:1]", {}, "gpu-set-changed", id="one-gpu-did-not-attest"),
        pytest.param("found = ()", {}, "gpu-set-changed", id="nothing-attested"),
        pytest.param("found = (found[0], replace(found[1], uuid='GPU-other'))", {}, "gpu-set-changed", id="other-gpu"),
        pytest.param("import os; os.putenv('FAKE_NVML_GPUS', '1')", {}, "gpu-set-changed", id="gpu-vanished"),
        pytest.param("raise KeyboardInterrupt", {}, "interrupted", id="interrupted"),
        pytest.param("", {"FAKE_NVML_DEV": 1}, "cc-mode-devtools", id="devtools"),
    ],
)
def test_the_gate_is_closed_on_any_failure(
    libraries: Path, folder: Path, attest: str, settings: dict[str, int], code: str
) -> None:
    """Even when it was open before."""
    for before in ("0", "1"):
        (folder / "ready").write_text(before)
        assert gate(libraries, folder, attest, **settings) == {"code": code, "ready": False}


@pytest.fixture
def real_gpus() -> Iterator[NvmlGpus]:
    """NVML of this machine, with at least one GPU."""
    with ExitStack() as stack:
        try:
            gpus = stack.enter_context(open_nvml())
        except Unavailable as exc:
            pytest.skip(f"gpu: no NVIDIA GPU ({exc.code})")
        if not gpus.uuids():
            pytest.skip("gpu: no NVIDIA GPU (none listed)")
        yield gpus


@pytest.mark.gpu
def test_a_real_gpu_without_confidential_mode(real_gpus: NvmlGpus) -> None:
    """What a non-confidential GPU answers, and the clear refusal for the rest."""
    state = real_gpus.state()
    if state.enabled:
        pytest.skip("gpu: no NVIDIA GPU without confidential mode")
    assert state.to_json() | {"environment": ""} == {
        "enabled": False,
        "devtools": False,
        "environment": "",
        "multi_gpu": state.multi_gpu,
    }
    with pytest.raises(Denied, match="confidential mode is off"):
        real_gpus.collect(Nonce(NONCE))
    with pytest.raises(Denied, match="confidential mode is off"):
        gated(real_gpus, tuple)
