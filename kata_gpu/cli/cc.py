"""`kata-gpu cc query|set|verify`: confidential-computing mode of devices."""

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

_MODES = click.Choice(["off", "on", "devtools", "ppcie"])


@click.group()
def cc() -> None:
    """Confidential-computing mode of GPUs and NVSwitches.

    \b
    Example:
      kata-gpu cc query
      kata-gpu cc set on 0000:17:00.0
      kata-gpu cc verify on
    """


@cc.command("query")
@click.argument("addresses", nargs=-1, metavar="[ADDRESS...]")
@node_options
@tool_options
def query(
    *,
    addresses: tuple[str, ...],
    sim: Path | None,
    state_dir: Path | None,
    cdi_dir: Path | None,
    output: str,
    admin_tools: Path | None,
    admin_tools_sha256: str | None,
) -> int:
    """Read the active CC mode from the devices. A device in use is not touched: its last verified mode is shown.

    Exit 1 when any mode could not be read.

    \b
    Example:
      kata-gpu cc query 0000:17:00.0
    """
    from kata_gpu.ops.node import observe_node, read_modes

    world = open_node(
        sim=sim, state_dir=state_dir, cdi_dir=cdi_dir, admin_tools=admin_tools, admin_tools_sha256=admin_tools_sha256
    )
    wanted = parse_addresses(addresses)
    with world.locked():
        inventory = read_modes(world, observe_node(world).inventory, wanted or None)
    devices = [inventory.device(a) for a in wanted] if wanted else [d for d in inventory.devices if d.modes]
    if output == "json":
        echo_json([{"address": str(d.function), "mode": d.cc_mode, "problem": d.problem} for d in devices])
    else:
        echo_table(
            ("ADDRESS", "DEVICE", "CC MODE", "PROBLEM"),
            [(str(d.function), d.product, str(d.cc_mode or "unknown"), d.problem or "-") for d in devices],
        )
    return ExitCode.NEGATIVE if any(d.cc_mode is None or d.problem for d in devices) else ExitCode.OK


@cc.command("set")
@click.argument("mode", type=_MODES)
@click.argument("addresses", nargs=-1, required=True, metavar="ADDRESS...")
@dry_run_option
@node_options
@tool_options
def set_command(
    *,
    mode: str,
    addresses: tuple[str, ...],
    dry_run: bool,
    sim: Path | None,
    state_dir: Path | None,
    cdi_dir: Path | None,
    output: str,
    admin_tools: Path | None,
    admin_tools_sha256: str | None,
) -> None:
    """Switch bound devices to a mode, as one set: all of them change or none does.

    `ppcie` takes every GPU and NVSwitch of the board. A mode that the platform owner locked is reported (7).

    \b
    Example:
      kata-gpu cc set on 0000:17:00.0 0000:3d:00.0
    """
    from kata_gpu.core.gpu import CcMode
    from kata_gpu.ops.setup import set_mode

    world = open_node(
        sim=sim, state_dir=state_dir, cdi_dir=cdi_dir, admin_tools=admin_tools, admin_tools_sha256=admin_tools_sha256
    )
    outcome = set_mode(world, parse_addresses(addresses), CcMode(mode), dry_run=dry_run)
    show_outcome(outcome, output, dry_run=dry_run)


@cc.command("verify")
@click.argument("mode", type=_MODES)
@click.argument("addresses", nargs=-1, metavar="[ADDRESS...]")
@node_options
@tool_options
def verify(
    *,
    mode: str,
    addresses: tuple[str, ...],
    sim: Path | None,
    state_dir: Path | None,
    cdi_dir: Path | None,
    output: str,
    admin_tools: Path | None,
    admin_tools_sha256: str | None,
) -> int:
    """Read the active mode from the devices; exit 1 unless every one of them is in MODE.

    Without addresses: every device that can be in it.

    \b
    Example:
      kata-gpu cc verify on
    """
    from kata_gpu.ops.node import observe_node, read_modes

    world = open_node(
        sim=sim, state_dir=state_dir, cdi_dir=cdi_dir, admin_tools=admin_tools, admin_tools_sha256=admin_tools_sha256
    )
    wanted = parse_addresses(addresses)
    with world.locked():
        inventory = read_modes(world, observe_node(world).inventory, wanted or None)
    devices = [inventory.device(a) for a in wanted] if wanted else [d for d in inventory.devices if mode in d.modes]
    wrong = [d for d in devices if d.cc_mode != mode or d.problem]
    if output == "json":
        echo_json(
            {
                "mode": mode,
                "verified": [str(d.function) for d in devices if d not in wrong],
                "wrong": {str(d.function): d.problem or str(d.cc_mode or "unknown") for d in wrong},
            }
        )
    else:
        for device in devices:
            verdict = f"NOT {mode}: {device.problem or device.cc_mode or 'unknown'}" if device in wrong else mode
            click.echo(f"{device.function}  {device.product}  {verdict}")
        click.echo(f"{len(devices) - len(wrong)} of {len(devices)} devices are in mode {mode}")
    return ExitCode.NEGATIVE if wrong or not devices else ExitCode.OK
