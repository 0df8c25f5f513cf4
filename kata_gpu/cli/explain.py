"""`kata-gpu explain`: from log lines to cause and fix."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import click

from kata_gpu.errors import ExitCode, Misconfigured

MAX_LINES = 5_000_000  # a day of a busy node's journal
_READ_LINE = 1 << 16


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)
@click.option("--list", "list_causes", is_flag=True, help="Print the causes that are known.")
def explain(file: Path | None, output: str, list_causes: bool) -> int:
    """Explain log lines of Kata, QEMU, kernel, containerd and kubelet: cause, fix, and what looks bad and is not.

    Reads FILE, or standard input for `-` or nothing. Exit codes: 0 no known problem, 1 problems found.

    \b
    Example:
      journalctl -b | kata-gpu explain
      kubectl describe pod my-pod | kata-gpu explain -
    """
    from kata_gpu.core.explain import causes
    from kata_gpu.core.explain import explain as classify

    if list_causes:
        click.echo("".join(f"{c.id:<28}{c.weight:<9}{c.cause}\n" for c in causes()), nl=False)
        return ExitCode.OK
    try:
        with click.open_file(str(file or "-"), encoding="utf-8", errors="replace") as stream:
            matches = classify(_lines(stream))
    except OSError as exc:
        raise Misconfigured("cannot-read", "cannot read the log", where=str(file), got=exc.strerror) from exc
    problems = sum(m.cause.weight == "problem" for m in matches)
    if output == "json":
        click.echo(json.dumps({"schema": "kata-gpu.explain/1", "matches": [m.to_json() for m in matches]}, indent=1))
        return ExitCode.NEGATIVE if problems else ExitCode.OK
    for match in matches:
        times = f", {match.count} times" if match.count > 1 else ""
        checks = f" (doctor: {', '.join(match.cause.checks)})" if match.cause.checks else ""
        click.echo(f"{match.cause.weight} {match.cause.id}: line {match.line_number}{times}{checks}")
        click.echo(f"  line   {match.line[:300]}")
        click.echo(f"  cause  {match.cause.cause}")
        click.echo(f"  fix    {match.cause.fix}\n")
    click.echo(f"{problems} known problems, {len(matches) - problems} benign")
    return ExitCode.NEGATIVE if problems else ExitCode.OK


def _lines(stream: IO[str]) -> Iterator[str]:
    """Lines cut to pieces, so that a file without line ends cannot fill memory."""
    return islice(iter(lambda: stream.readline(_READ_LINE), ""), MAX_LINES)
