"""Fixtures of the guest tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attestation.guest.models import encrypt, make_source, memory_folder


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plaintext model."""
    return make_source(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def encrypted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, encrypted; tests that change it copy it first."""
    out = tmp_path_factory.mktemp("encrypted") / "model.kgm"
    encrypt(source, out, sha256=True)
    return out


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder on a memory filesystem."""
    with memory_folder() as folder:
        yield folder
