"""Matches lines against the table of causes. First row wins, so that specific rows stand before general ones."""

import functools
import pkgutil
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

MAX_LINE = 4096  # QEMU command lines are longer, and their causes stand in front
_ANSI = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")


class Weight(StrEnum):
    """Whether somebody must act."""

    PROBLEM = "problem"
    BENIGN = "benign"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One row: a line that holds `needle` and matches `pattern` has this cause. `checks` are doctor's ids for it."""

    id: str
    component: str
    weight: Weight
    needle: str
    pattern: re.Pattern[str]
    cause: str
    fix: str
    source: str
    checks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A cause, the first line that shows it, and how many lines do."""

    cause: Cause
    line_number: int
    line: str
    count: int

    def to_json(self) -> dict[str, object]:
        """Plain mapping."""
        c = self.cause
        return {
            "id": c.id,
            "component": c.component,
            "severity": c.weight,
            "line": self.line_number,
            "text": self.line,
            "count": self.count,
            "cause": c.cause,
            "fix": c.fix,
            "source": c.source,
            "checks": list(c.checks),
        }


@functools.cache
def causes() -> tuple[Cause, ...]:
    """The table, in matching order."""
    data = pkgutil.get_data("kata_gpu.core.explain", "causes.toml")
    assert data is not None
    return tuple(
        Cause(
            id=row["id"],
            component=row["component"],
            weight=Weight(row["severity"]),
            needle=row["needle"].lower(),
            pattern=re.compile(row["pattern"], re.IGNORECASE),
            cause=row["cause"],
            fix=row["fix"],
            source=row["source"],
            checks=tuple(row.get("checks", ())),
        )
        for row in tomllib.loads(data.decode())["cause"]
    )


def explain_line(line: str) -> Cause | None:
    """The cause of one line, or None when the table does not know it."""
    text = _ANSI.sub("", line[:MAX_LINE])
    low = text.lower()
    return next((c for c in causes() if c.needle in low and c.pattern.search(text)), None)


def explain(lines: Iterable[str]) -> tuple[Match, ...]:
    """Each cause once, problems before benign lines, both in the order of first appearance."""
    found: dict[str, Match] = {}
    for number, cause, line in _matches(lines):
        known = found.get(cause.id)
        found[cause.id] = Match(
            cause=cause,
            line_number=number if known is None else known.line_number,
            line=line if known is None else known.line,
            count=1 if known is None else known.count + 1,
        )
    return tuple(sorted(found.values(), key=lambda m: m.cause.weight is Weight.BENIGN))


def _matches(lines: Iterable[str]) -> Iterator[tuple[int, Cause, str]]:
    for number, line in enumerate(lines, 1):
        cause = explain_line(line)
        if cause is not None:
            yield number, cause, _ANSI.sub("", line[:MAX_LINE]).strip()
