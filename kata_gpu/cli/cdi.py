"""`kata-gpu cdi check`: the CDI files that runtimes read."""

from pathlib import Path

import click

from kata_gpu.cli.world import echo_json, node_options, open_node
from kata_gpu.errors import ExitCode


@click.group()
def cdi() -> None:
    """CDI specifications of this node.

    \b
    Example:
      kata-gpu cdi check
    """


@cdi.command("check")
@node_options
def check(*, sim: Path | None, state_dir: Path | None, cdi_dir: Path | None, output: str) -> int:
    """Validate every JSON file of the CDI directory; find stale entries of ours and names that two files define.

    \b
    Example:
      kata-gpu cdi check
    """
    from kata_gpu.ops.cdi_check import check as run

    world = open_node(sim=sim, state_dir=state_dir, cdi_dir=cdi_dir)
    findings = run(world)
    if output == "json":
        echo_json(findings)
    else:
        for subject, why in findings.items():
            click.echo(f"{subject}: {why}")
        fine = "all CDI files are valid and current" if world.cdi.names() else f"no CDI files in {world.cdi.path}"
        click.echo(f"{len(findings)} problems" if findings else fine)
    return ExitCode.NEGATIVE if findings else ExitCode.OK
