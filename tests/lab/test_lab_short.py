"""The conformance rows on a stock Debian kernel in QEMU: what the simulated kernel claims, a real one does.

One machine runs all rows; each row is a test of its own. `make lab-short`.
"""

from pathlib import Path

import pytest

from tests.kata_gpu.node.conformance import ROWS, Row
from tests.lab.debian import Unavailable
from tests.lab.machine import PYTHON, boot, stock_kernel, stock_qemu

KERNEL = "debian-6.1"
RUN_S = 420.0
pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Row to what the real kernel gave."""
    share = tmp_path_factory.mktemp("lab")
    command: list[str | Path] = [PYTHON, "-B", "-m", "tests.lab.conformance_in_guest", KERNEL]
    try:
        outcome = boot(command, kernel=stock_kernel(KERNEL), qemu=stock_qemu(), share=share, timeout_s=RUN_S)
    except Unavailable as exc:
        pytest.skip(f"lab: left out, {exc}")
    assert outcome.status == 0, outcome.output[-4000:]
    return {row["id"]: row["got"] for row in outcome.rows()}


@pytest.mark.parametrize("row", [pytest.param(row, id=row.id) for row in ROWS if KERNEL in row.kernels])
def test_row(real: dict[str, str], row: Row) -> None:
    assert real.get(row.id, "not run") == row.expected
