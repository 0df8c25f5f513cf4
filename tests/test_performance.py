"""The recorded figures, the page that shows them, and the gate that compares with them."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.figure import Figure
from tests.bench.record import SLACK, parse_record, regressions, render_page

DOCS = Path(__file__).resolve().parent.parent / "docs"
LOW = Figure(suite="gpu", name="warm", value=1.5, at_most=1.6)
HIGH = Figure(suite="gpu", name="of the limit", value=0.8, at_least=0.7)
TIME = Figure(suite="gpu", name="report", value=3.0, unit="ms", at_most=9)
RECORDED = [LOW, HIGH, TIME]


def test_page_shows_the_record() -> None:
    page = (DOCS / "performance.md").read_text()
    assert page == render_page(page, parse_record(DOCS / "performance.json")), "run `make performance`"


@pytest.mark.parametrize(
    ("seen", "worse"),
    [
        pytest.param([LOW, HIGH, TIME], [], id="equal"),
        pytest.param([replace(LOW, value=1.5 * SLACK), replace(HIGH, value=0.8 / SLACK), TIME], [], id="within-noise"),
        pytest.param([replace(LOW, value=1.51 * SLACK), HIGH, TIME], ["gpu/warm"], id="slower"),
        pytest.param([LOW, replace(HIGH, value=0.79 / SLACK), TIME], ["gpu/of the limit"], id="less-of-the-limit"),
        pytest.param([LOW, HIGH, replace(TIME, value=300.0)], [], id="times-are-not-judged"),
        pytest.param([LOW, TIME], ["gpu/of the limit"], id="not-measured"),
        pytest.param([replace(LOW, suite="tee")], [], id="suite-that-did-not-run"),
    ],
)
def test_gate_names_what_got_worse(seen: list[Figure], worse: list[str]) -> None:
    assert [line.split(":")[0] for line in regressions(RECORDED, seen)] == worse
