"""Fixtures: an API server with one node in it, and that node. `envtest` tests use a real server where one is given."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from kata_gpu.host.kube import KubeApi
from tests.kata_gpu.dra.fake_api import FakeApi
from tests.kata_gpu.dra.fake_kubelet import FakeKubelet
from tests.kata_gpu.dra.fake_node import FakeNode
from tests.kata_gpu.dra.real_api import GATES, RealApi, assets
from tests.kata_gpu.dra.world import NODE, NODES, World


@pytest.fixture(autouse=True)
def logging() -> Iterator[None]:
    """A command that ran in this process has sent the log to a stream that is closed by now."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def real_api() -> Iterator[RealApi | None]:
    """The real server of this session, where KUBEBUILDER_ASSETS names one."""
    folder = assets()
    if folder is None:
        yield None
        return
    server = RealApi(folder)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def closed_api() -> Iterator[RealApi | None]:
    """A second one that drops what feature gates can drop."""
    folder = assets()
    if folder is None:
        yield None
        return
    server = RealApi(folder, closed=frozenset(GATES))
    yield server
    server.stop()


@pytest.fixture
def api(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An API server with this node in it: the fake, or for `envtest` the real one; with gates closed where marked."""
    marked = {m.name for m in request.node.iter_markers()}
    closed = "gates_closed" in marked
    real = request.getfixturevalue("closed_api" if closed else "real_api") if "envtest" in marked else None
    if "envtest" in marked:
        request.node.user_properties.append(("api-server", "real" if real else "fake"))
    server: Any = real or FakeApi()
    if closed and not real:
        server.store.drop |= GATES.keys()
    server.store.create(NODES, "", {"metadata": {"name": NODE}})
    yield server
    server.reset() if real else server.stop()


@pytest.fixture
def world(tmp_path: Path, api: Any) -> Iterator[World]:
    """8 H100 in mode on."""
    root = Path(tempfile.mkdtemp(prefix="k"))  # short: a socket path has 107 bytes
    kubelet = FakeKubelet(root)
    made = World(tmp=tmp_path, api=api, host=FakeNode(), kube=KubeApi.connect(server=api.url), kubelet=kubelet)
    yield made
    made.stop_all()
    kubelet.stop()
    shutil.rmtree(root)
