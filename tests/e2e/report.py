"""The table of broken links: who noticed, what they were told, whether anything leaked."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from textwrap import wrap

DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")  # twelve digits are enough for people
WIDTHS = (26, 17, 62, 6)
HEAD = ("link broken", "who noticed", "what they were told", "leaked")


@dataclass
class Row:
    """One link."""

    link: str
    noticed: list[tuple[str, str]] = field(default_factory=list)
    leaked: str = "?"

    def told(self, who: str, what: str) -> None:
        """`who` was told `what`, which the test has seen."""
        self.noticed.append((who, DIGEST.sub(r"\1...", " ".join(what.split()))))


@dataclass
class Report:
    """All of them, in order."""

    rows: list[Row] = field(default_factory=list)
    around: str = ""  # what stood around our processes

    def lines(self) -> Iterator[str]:
        """For a terminal."""
        if self.rows:
            yield from ("", f"with a {self.around}", "", _line(HEAD), _line(["-" * width for width in WIDTHS]))
        for row in self.rows:
            for number, (who, what) in enumerate(row.noticed or [("nobody", "")]):
                first = number == 0
                yield from _cells(row.link if first else "", who, what, row.leaked if first else "")


def _cells(*texts: str) -> Iterator[str]:
    columns = [wrap(text, width) for text, width in zip(texts, WIDTHS, strict=True)]
    for parts in zip_longest(*columns, fillvalue=""):
        yield _line(parts)


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()
