"""The site under test, made once; the report of what each broken link led to, and its table at the end."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.sources.roots.hsm import HsmKey
from tests.attestation.broker.postgres import ABSENT, FOUND, Cluster, cluster
from tests.attestation.broker.test_root_keys import token
from tests.attestation.guest.drivers import build
from tests.e2e.kubelets import FakePods, Kubelet, RealKubelet
from tests.e2e.node import Node
from tests.e2e.program import Console
from tests.e2e.report import Report
from tests.e2e.site import Site
from tests.kata_gpu.dra.conftest import real_api
from tests.kata_gpu.dra.fake_api import FakeApi
from tests.kata_gpu.dra.real_api import RealApi, assets
from tests.kata_gpu.dra.real_node import missing

__all__ = ["real_api", "token"]
_TABLE = pytest.StashKey[Report]()


@pytest.fixture(scope="session")
def database() -> Iterator[Cluster]:
    """A real PostgreSQL."""
    if not FOUND:
        pytest.skip(ABSENT)
    with cluster() as made:
        yield made


@pytest.fixture(scope="session")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our NVIDIA driver library, compiled."""
    return build(tmp_path_factory.mktemp("drivers"))


@pytest.fixture(scope="session")
def node(real_api: RealApi | None, report: Report) -> Iterator[Node]:
    """API server and kubelet: real ones where KUBEBUILDER_ASSETS holds them."""
    work = Path(tempfile.mkdtemp(prefix="e2e"))  # short: a socket path has 107 bytes
    console, sim = Console(work / "commands.log"), work / "host.sim"
    console("kata-gpu", "sim", "create", "--preset", "hgx-h100", sim)
    folder, api = assets(), real_api or FakeApi()
    kubelet: Kubelet
    if real_api and folder and not missing(folder):
        kubelet, report.around = RealKubelet(real_api, folder, sim), "real API server, scheduler and kubelet"
    else:
        kubelet, report.around = FakePods(work, api), f"{'real' if real_api else 'fake'} API server, fake kubelet"
    try:
        yield Node(console, api, sim, kubelet)
    finally:
        kubelet.close()
        api.reset() if isinstance(api, RealApi) else api.stop()
        shutil.rmtree(work)


@pytest.fixture(scope="session")
def site(node: Node, database: Cluster, token: HsmKey, drivers: Path) -> Iterator[Site]:
    """Everything started, the model encrypted and its key in the broker."""
    with Site.started(node, database, token, drivers) as made:
        yield made


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """Rows of the table."""
    return request.config.stash.setdefault(_TABLE, Report())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Who noticed what."""
    for line in config.stash.get(_TABLE, Report()).lines():
        terminalreporter.write_line(line)
