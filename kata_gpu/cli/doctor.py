"""`kata-gpu doctor`: is this host ready for confidential GPU VMs?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kata_gpu.errors import ExitCode, Misconfigured

if TYPE_CHECKING:
    from kata_gpu.core.doctor import Profile, Status

_COLOURS = {"fail": "red", "warn": "yellow", "ok": "green", "unknown": "cyan", "note": "cyan"}


def parse_profiles(text: str | None) -> frozenset[Profile] | None:
    """`gpu,snp` to profiles; None stays None. Raises Misconfigured for any other name."""
    if text is None:
        return None
    from kata_gpu.core.doctor import Profile

    names = [name.strip() for name in text.split(",")]
    known = {str(p) for p in Profile}
    if not set(names) <= known:
        raise Misconfigured("unknown-profile", "unknown profile", where="--profile",
                            expected=",".join(sorted(known)), got=text[:80])  # fmt: skip
    return frozenset({Profile.GPU, *(Profile(name) for name in names)})


def paint(status: Status, text: str) -> str:
    """Colour on a terminal only."""
    return click.style(text, fg=_COLOURS.get(status), bold=status in {"fail", "warn"}) if sys.stdout.isatty() else text


@click.command()
@click.option("--profile", metavar="LIST", help="What the node is for: gpu,snp,tdx,ppcie. Default: what fits the host.")
@click.option(
    "--host-root", type=click.Path(path_type=Path), metavar="PATH", help="A mounted root, or a support bundle."
)
@click.option("--sim", type=click.Path(path_type=Path), metavar="FILE", help="Examine a simulated host.")
@click.option("--strict", is_flag=True, help="Warnings, and fatal checks that cannot tell, are negative too.")
@click.option("--verbose", "-v", is_flag=True, help="Show every check.")
@click.option("--list", "list_ids", is_flag=True, help="Print the check ids and titles.")
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)
def doctor(
    profile: str | None,
    host_root: Path | None,
    sim: Path | None,
    strict: bool,
    verbose: bool,
    list_ids: bool,
    output: str,
) -> int:
    """Check everything that a confidential GPU VM needs of this host; say what is wrong and how to fix it.

    Changes nothing. Exit codes: 0 ready, 1 not ready, 2 usage.

    \b
    Example:
      kata-gpu doctor --profile gpu,snp
      kata-gpu doctor --host-root bundle.tar.gz --output json
    """
    wanted = parse_profiles(profile)
    from kata_gpu.core.doctor import CHECKS, SECTIONS

    if list_ids:
        click.echo("".join(f"{c.id}  {c.title}\n" for c in CHECKS), nl=False)
        return ExitCode.OK
    from kata_gpu.core.doctor.render import render_report
    from kata_gpu.ops.doctor import diagnose, source

    with source(root=host_root, sim=sim) as host:
        report = diagnose(host, wanted)
    if output == "json":
        click.echo(json.dumps(report.to_json(), indent=1))
    else:
        click.echo(render_report(report, SECTIONS, paint=paint, verbose=verbose), nl=False)
    return ExitCode.NEGATIVE if report.negative(strict=strict) else ExitCode.OK
