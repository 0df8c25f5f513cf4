"""The site under test, made once; the report of what each broken link led to, and its table at the end."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestation.sources.roots.hsm import HsmKey
from tests.attestation.broker.postgres import ABSENT, FOUND, Cluster, cluster
from tests.attestation.broker.test_root_keys import token
from tests.attestation.guest.drivers import build
from tests.e2e.program import Console
from tests.e2e.report import Report
from tests.e2e.site import Site
from tests.kata_gpu.dra.conftest import real_api
from tests.kata_gpu.dra.fake_api import FakeApi
from tests.kata_gpu.dra.real_api import RealApi
from tests.kata_gpu.dra.world import NODE, NODES

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
def site(database: Cluster, token: HsmKey, drivers: Path, real_api: RealApi | None) -> Iterator[Site]:
    """Everything started, the model encrypted and its key in the broker."""
    api: Any = real_api or FakeApi()
    api.store.create(NODES, "", {"metadata": {"name": NODE}})
    work = Path(tempfile.mkdtemp(prefix="e2e"))  # short: a socket path has 107 bytes
    try:
        with Site.started(Console(work / "commands.log"), api, database, token, drivers) as made:
            yield made
    finally:
        api.reset() if real_api else api.stop()
        shutil.rmtree(work)


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """Rows of the table."""
    return request.config.stash.setdefault(_TABLE, Report())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Who noticed what."""
    for line in config.stash.get(_TABLE, Report()).lines():
        terminalreporter.write_line(line)
