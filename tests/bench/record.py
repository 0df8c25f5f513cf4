"""Figures that were seen once, kept beside the page that shows them: what the next run is compared with.

Only ratios are gated: both sides of a ratio are measured next to each other in one run, so another machine moves them
little. Times are shown and never judged. SLACK is what noise moved ratios by in repeated runs, rounded up.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.bench.figure import Figure

SLACK = 1.3
GATED = ("gpu", "tee")  # suites of pure computation, whose ratios are quiet even where the machine is not
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


def parse_record(path: Path) -> list[Figure]:
    """Figures as `make bench` wrote them."""
    return [
        Figure(**{name: value for name, value in row.items() if name != "met"}) for row in json.loads(path.read_text())
    ]


def promise(figure: Figure) -> str:
    """The promise as text."""
    if figure.at_most is not None:
        return f"<= {figure.at_most:g}"
    return f">= {figure.at_least:g}" if figure.at_least is not None else "reported"


def regressions(recorded: Iterable[Figure], seen: Sequence[Figure]) -> list[str]:
    """One line for each promised ratio that is worse than its record by more than SLACK, or was not measured."""
    now = {(figure.suite, figure.name): figure for figure in seen}
    suites = {figure.suite for figure in seen}
    lines = []
    for was in recorded:
        if was.unit != "x" or was.suite not in suites or (was.at_most is None and was.at_least is None):
            continue
        found = now.get((was.suite, was.name))
        if found is None:
            lines.append(f"{was.suite}/{was.name}: recorded {was.value:.4g} x, not measured any more")
        elif was.at_most is not None and found.value > was.value * SLACK:
            lines.append(
                f"{was.suite}/{was.name}: {found.value:.4g} x, recorded {was.value:.4g} x, at most {SLACK}x that"
            )
        elif was.at_least is not None and found.value < was.value / SLACK:
            lines.append(
                f"{was.suite}/{was.name}: {found.value:.4g} x, recorded {was.value:.4g} x, at least 1/{SLACK} of that"
            )
    return lines


def render_table(figures: Iterable[Figure]) -> str:
    """The table of the page, with the command that makes each row."""
    rows = ["| figure | seen | promise | met | caches | command |", "|---|---|---|---|---|---|"]
    rows += [
        f"| {f.name} | {f.value:.4g} {f.unit} | {promise(f)} | {_met(f)} | {f.caches} | `make bench BENCH={f.suite}` |"
        for f in figures
    ]
    return "\n".join(rows)


def _met(figure: Figure) -> str:
    if figure.at_most is None and figure.at_least is None:
        return ""
    return "yes" if figure.met else "**no**"


def render_page(page: str, figures: Iterable[Figure]) -> str:
    """`page` with the table between its two marks made anew."""
    before, rest = page.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    return f"{before}{BEGIN}\n{render_table(figures)}\n{END}{after}"
