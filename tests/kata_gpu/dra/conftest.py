"""Fixtures: a fake API server with one node in it, and that node."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kata_gpu.host.kube import KubeApi
from tests.kata_gpu.dra.fake_api import FakeApi
from tests.kata_gpu.dra.fake_kubelet import FakeKubelet
from tests.kata_gpu.dra.fake_node import FakeNode
from tests.kata_gpu.dra.world import NODE, NODES, World


@pytest.fixture
def api() -> Iterator[FakeApi]:
    """A fake API server with this node in it."""
    server = FakeApi()
    server.store.create(NODES, "", {"metadata": {"name": NODE}})
    yield server
    server.stop()


@pytest.fixture
def world(tmp_path: Path, api: FakeApi) -> Iterator[World]:
    """8 H100 in mode on."""
    root = Path(tempfile.mkdtemp(prefix="k"))  # short: a socket path has 107 bytes
    kubelet = FakeKubelet(root)
    made = World(tmp=tmp_path, api=api, host=FakeNode(), kube=KubeApi.connect(server=api.url), kubelet=kubelet)
    yield made
    made.stop_all()
    kubelet.stop()
    shutil.rmtree(root)
