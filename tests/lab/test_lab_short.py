"""The conformance rows on a stock Debian kernel in QEMU: what the simulated kernel claims, a real one does.

One machine for each way of booting runs its rows; each row is a test of its own. `make lab-short`.
"""

import pytest

from tests.kata_gpu.node.conformance import ROWS, Row
from tests.lab.conformance import run_rows
from tests.lab.debian import Unavailable
from tests.lab.machine import stock_kernel, stock_qemu

KERNEL = "debian-6.1"
pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Row to what the real kernel gave."""
    try:
        return run_rows(stock_kernel(KERNEL), stock_qemu(), tmp_path_factory.mktemp("lab"))
    except Unavailable as exc:
        pytest.skip(f"lab: left out, {exc}")


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS if KERNEL in row.kernels])
def test_row(real: dict[str, str], row: Row) -> None:
    assert real.get(row.id, "not run") == row.expected
