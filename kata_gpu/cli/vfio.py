"""`kata-gpu bind|release|recover|gc` and `kata-gpu vfio status`."""

from pathlib import Path

import click

from kata_gpu.cli.node import show_outcome
from kata_gpu.cli.world import (
    dry_run_option,
    echo_json,
    echo_table,
    node_options,
    open_node,
    parse_addresses,
    tool_options,
)
from kata_gpu.errors import ExitCode

_addresses = click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")


@click.command()
@_addresses
@dry_run_option
@node_options
def bind(
    *,
    addresses: tuple[str, ...],
    dry_run: bool,
    sim: Path | None,
    state_dir: Path | None,
    cdi_dir: Path | None,
    output: str,
) -> None:
    """Bring devices, and every function that shares their group or slot, to VFIO.

    \b
    Example:
      kata-gpu bind 0000:17:00.0
    """
    from kata_gpu.ops.setup import bind as run

    world = open_node(sim=sim, state_dir=state_dir, cdi_dir=cdi_dir)
    show_outcome(run(world, parse_addresses(addresses), dry_run=dry_run), output, dry_run=dry_run)


@click.command()
@_addresses
@dry_run_option
@node_options
def release(
    *,
    addresses: tuple[str, ...],
    dry_run: bool,
    sim: Path | None,
    state_dir: Path | None,
    cdi_dir: Path | None,
    output: str,
) -> None:
    """Give devices back to the drivers they came from. Refused while anybody holds them (3).

    \b
    Example:
      kata-gpu release 0000:17:00.0
    """
    from kata_gpu.ops.setup import release as run

    world = open_node(sim=sim, state_dir=state_dir, cdi_dir=cdi_dir)
    show_outcome(run(world, parse_addresses(addresses), dry_run=dry_run), output, dry_run=dry_run)


@click.command()
@click.argument("addresses", nargs=-1, metavar="[ADDRESS]...")
@node_options
@tool_options
def recover(
    *,
    addresses: tuple[str, ...],
    sim: Path | None,
    state_dir: Path | None,
    cdi_dir: Path | None,
    output: str,
    admin_tools: Path | None,
    admin_tools_sha256: str | None,
) -> None:
    """Undo what a killed run left half done. Safe to repeat; nothing to do is success.

    With addresses, also bring those devices back that fell off the bus: wake, reset of the slot, remove and rescan.
    Refused while anybody holds them (3); where only a power cycle is left, it says so (4).

    \b
    Example:
      kata-gpu recover
      kata-gpu recover 0000:17:00.0
    """
    from kata_gpu.ops.recover import recover as run
    from kata_gpu.ops.revive import revive

    world = open_node(
        sim=sim, state_dir=state_dir, cdi_dir=cdi_dir, admin_tools=admin_tools, admin_tools_sha256=admin_tools_sha256
    )
    with world.locked():
        done = run(world)
        revived = [revive(world, address) for address in parse_addresses(addresses)]
    if output == "json":
        echo_json({"recovered": done, "revived": revived})
    else:
        click.echo("\n".join([*([done] if done else []), *revived]) or "nothing to recover")


@click.command()
@dry_run_option
@node_options
def gc(*, dry_run: bool, sim: Path | None, state_dir: Path | None, cdi_dir: Path | None, output: str) -> None:
    """Remove stale CDI entries of ours, and name processes that hold a device without a sandbox.

    Ends no process: it prints the command that does.

    \b
    Example:
      kata-gpu gc --dry-run
    """
    from kata_gpu.ops.gc import collect

    report = collect(open_node(sim=sim, state_dir=state_dir, cdi_dir=cdi_dir), dry_run=dry_run)
    if output == "json":
        echo_json(
            {"stale": report.stale, "orphans": {str(a): str(h) for a, h in report.orphans.items()}, "dryRun": dry_run}
        )
        return
    for name, why in report.stale.items():
        click.echo(f"{'stale' if dry_run else 'removed'}: CDI entry {name}: {why}")
    for address, holder in report.orphans.items():
        click.echo(f"orphan: {address} is held by {holder}, whose sandbox is gone; end it with: kill {holder.pid}")
    if not report.stale and not report.orphans:
        click.echo("nothing to collect")


@click.group()
def vfio() -> None:
    """VFIO bindings of this node.

    \b
    Example:
      kata-gpu vfio status
    """


@vfio.command("status")
@node_options
def vfio_status(*, sim: Path | None, state_dir: Path | None, cdi_dir: Path | None, output: str) -> int:
    """Every function of every device: driver, override, group, node, and who holds it.

    Exit 1 when a device is wedged.

    \b
    Example:
      kata-gpu vfio status
    """
    from kata_gpu.ops.node import observe_node

    world = open_node(sim=sim, state_dir=state_dir, cdi_dir=cdi_dir)
    observed = observe_node(world)
    functions = [f for d in observed.inventory.devices for f in d.unit]
    holders = world.guard.holders(functions)
    rows = []
    for f in functions:
        wedged = observed.wedged.get(f.address)
        held = "; ".join(str(h) for h in holders[f.address])
        state = f"wedged: {wedged}" if wedged else held or ("free" if f.on_vfio else "-")
        rows.append(
            (
                str(f.address),
                f.driver or "-",
                observed.overrides.get(f.address, "-"),
                "-" if f.iommu_group is None else str(f.iommu_group),
                f.vfio_cdev or "-",
                state,
            )
        )
    header = ("ADDRESS", "DRIVER", "OVERRIDE", "GROUP", "CDEV", "HELD BY")
    if output == "json":
        keys = ("address", "driver", "override", "group", "cdev", "state")
        echo_json([dict(zip(keys, row, strict=True)) for row in rows])
    else:
        echo_table(header, rows)
    return ExitCode.NEGATIVE if observed.wedged else ExitCode.OK
