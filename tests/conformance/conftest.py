"""The target of the suite: our broker by default, any other with `--kbs-url` (see tests/conformance/README.md)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.target import DENY_SOME, Target, local_target


@pytest.fixture(scope="session")
def kbs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The broker under test, with `default/test/secret` stored and paths with the part `denied` refused."""
    url = request.config.getoption("--kbs-url")
    if url is None:
        with local_target(tmp_path_factory.mktemp("kbs")) as target:
            yield target
        return
    token_file = request.config.getoption("--kbs-admin-token-file")
    target = Target(
        url=url.rstrip("/"),
        admin_url=(request.config.getoption("--kbs-admin-url") or url).rstrip("/"),
        token=Path(token_file).read_text().strip() if token_file else "",
    )
    target.policy(DENY_SOME)
    target.put("default/test/secret", b"shhhhhhh")
    yield target


@pytest.fixture
def own(request: pytest.FixtureRequest) -> None:
    """Marks a test that moves the clock or configuration of our own broker."""
    if request.config.getoption("--kbs-url") is not None:
        pytest.skip("conformance: needs our own broker")


@pytest.fixture(autouse=True)
def _hang_up(kbs: Target) -> Iterator[None]:
    """Connections end with the test that opened them."""
    yield
    kbs.close()
