"""`make bench`: run every suite, print one table, write JSON, exit 1 where a promised ratio is missed."""

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tests.bench
from tests.bench.figure import Figure


def suites() -> list[str]:
    """Modules of this package that hold `figures()`."""
    names = (m.name for m in pkgutil.iter_modules(tests.bench.__path__))
    return sorted(n for n in names if n not in {"figure", "__main__"} and not n.endswith("_peer"))


def promise(figure: Figure) -> str:
    """The promise as text."""
    if figure.at_most is not None:
        return f"<= {figure.at_most:g}"
    return f">= {figure.at_least:g}" if figure.at_least is not None else "reported"


def main() -> int:
    """Console entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", nargs="*", help=f"only these of: {', '.join(suites())}")
    parser.add_argument("--json", type=Path, default=Path("out/bench.json"))
    args = parser.parse_args()
    figures: list[Figure] = []
    for name in args.suite or suites():
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        figures += importlib.import_module(f"tests.bench.{name}").figures()
    table = Table("suite", "figure", "value", "promise", "met", "caches")
    for f in figures:
        table.add_row(f.suite, f.name, f"{f.value:.4g} {f.unit}", promise(f), "yes" if f.met else "NO", f.caches)
    Console(width=160).print(table)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps([f.to_json() for f in figures], indent=1) + "\n")
    missed = [f for f in figures if not f.met]
    for f in missed:
        print(f"missed: {f.suite}/{f.name}: {f.value:.4g} {f.unit}, promised {promise(f)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
