"""An empty store of either kind: what is said of one database holds for both."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.attestation.broker.postgres import ABSENT, FOUND, Cluster, cluster

_NUMBERS = count()


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """Started once; every test has a database of its own."""
    if not FOUND:
        pytest.skip(ABSENT)
    with cluster() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The name of an empty store."""
    if request.param == "sqlite":
        return str(tmp_path / "store")
    made: Cluster = request.getfixturevalue("server")
    return made.database(f"t{next(_NUMBERS)}")
