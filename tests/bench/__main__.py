"""`make bench`: run every suite, print one table, write JSON, exit 1 where a promised ratio is missed.

`make gate` runs the quiet suites alone and exits 1 where a ratio got worse than the record of docs/performance.md.
`make performance` writes that record and its page from the last `make bench`.
"""

import argparse
import importlib
import json
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tests.bench
from tests.bench.figure import Figure
from tests.bench.record import GATED, parse_record, promise, regressions, render_page

RECORD, PAGE = Path("docs/performance.json"), Path("docs/performance.md")


def suites() -> list[str]:
    """Modules of this package that hold `figures()`."""
    names = (m.name for m in pkgutil.iter_modules(tests.bench.__path__))
    return sorted(n for n in names if n not in {"figure", "record", "__main__"} and not n.endswith("_peer"))


def measured(names: Sequence[str]) -> list[Figure]:
    """Every figure of these suites."""
    figures: list[Figure] = []
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        figures += importlib.import_module(f"tests.bench.{name}").figures()
    return figures


def main() -> int:
    """Console entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", nargs="*", help=f"only these of: {', '.join(suites())}")
    parser.add_argument("--json", type=Path, default=Path("out/bench.json"))
    parser.add_argument("--gate", action="store_true", help=f"compare {' and '.join(GATED)} with {RECORD}")
    parser.add_argument("--keep", action="store_true", help=f"measure nothing; keep what --json holds in {RECORD}")
    args = parser.parse_args()
    if args.keep:
        RECORD.write_text(args.json.read_text())
        PAGE.write_text(render_page(PAGE.read_text(), parse_record(args.json)))
        return 0
    figures = measured(args.suite or (GATED if args.gate else suites()))
    table = Table("suite", "figure", "value", "promise", "met", "caches")
    for f in figures:
        table.add_row(f.suite, f.name, f"{f.value:.4g} {f.unit}", promise(f), "yes" if f.met else "NO", f.caches)
    Console(width=160).print(table)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps([f.to_json() for f in figures], indent=1) + "\n")
    if args.gate:
        worse = regressions(parse_record(RECORD), figures)
        if worse:  # a neighbour may have been loud; what really got worse is worse again
            worse = regressions(parse_record(RECORD), measured(args.suite or GATED))
        for line in worse:
            print(f"worse: {line}", file=sys.stderr)
        return 1 if worse else 0
    missed = [f for f in figures if not f.met]
    for f in missed:
        print(f"missed: {f.suite}/{f.name}: {f.value:.4g} {f.unit}, promised {promise(f)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
