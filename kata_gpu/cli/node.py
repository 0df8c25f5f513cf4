"""`kata-gpu node plan|setup|status|reset`: the node's policy, carried out."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kata_gpu.cli.world import (
    device_json,
    device_state,
    dry_run_option,
    echo_json,
    node_options,
    open_node,
    tool_options,
)
from kata_gpu.errors import ExitCode, Misconfigured

if TYPE_CHECKING:
    from kata_gpu.core.node_policy import NodePolicy
    from kata_gpu.ops.setup import Outcome

_policy_option = click.option(
    "--policy",
    "policy_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="The node policy; without it --cc-mode applies to every device.",
)
_mode_option = click.option(
    "--cc-mode", type=click.Choice(["off", "on", "devtools", "ppcie"]), help="CC mode for every device that has one."
)


@click.group()
def node() -> None:
    """Bring this node to its policy: VFIO, CC mode, CDI; all of it or none of it.

    \b
    Example:
      kata-gpu node setup --cc-mode on --dry-run
      kata-gpu node setup --cc-mode on
      kata-gpu node status
    """


def _policy(policy_file: Path | None, cc_mode: str | None, admin_tools: Path | None) -> "NodePolicy":
    from kata_gpu.core.gpu import CcMode
    from kata_gpu.core.node_policy import Backend, NodePolicy, parse_policy
    from kata_gpu.core.yaml12 import load

    if policy_file is None and cc_mode is not None:
        return NodePolicy.everything(CcMode(cc_mode))
    if policy_file is None or cc_mode is not None:
        raise click.UsageError("give either --policy FILE or --cc-mode MODE")
    policy = parse_policy(load(policy_file.read_bytes(), where=str(policy_file)), where=str(policy_file))
    if policy.backend is not Backend.AUTO and (policy.backend is Backend.ADMIN_TOOLS) != (admin_tools is not None):
        raise Misconfigured(
            "backend-mismatch",
            "the policy and the command line name different CC backends",
            where=f"{policy_file}: backend",
            expected="--admin-tools with its digest" if policy.backend is Backend.ADMIN_TOOLS else "no --admin-tools",
            got=policy.backend,
        )
    return policy


def show_outcome(outcome: "Outcome", output: str, *, dry_run: bool) -> None:
    """Print a plan, or what was done."""
    from kata_gpu.core.actions import to_json

    plan = outcome.plan
    if output == "json":
        echo_json(
            {
                "purpose": plan.purpose,
                "applied": outcome.applied,
                "dryRun": dry_run,
                "recovered": outcome.recovered,
                "actions": [to_json(a) for a in plan.actions],
                "notes": list(plan.notes),
                "devices": [device_json(d) for d in outcome.now.inventory.devices],
            }
        )
        return
    if outcome.recovered:
        click.echo(outcome.recovered)
    for note in plan.notes:
        click.echo(f"note: {note}")
    if not plan.actions:
        wanted = "the node is as the policy wants it" if plan.purpose == "setup" else "it is so already"
        click.echo(f"nothing to do: {wanted}")
        return
    if dry_run:
        click.echo(f"plan ({plan.purpose}), nothing changed:")
    if dry_run or not (sys.stdout.isatty() and sys.stderr.isatty()):  # a terminal showed each as it was done
        for action in plan.actions:
            for line in str(action).splitlines():
                click.echo(f"  {line}")
    if not dry_run:
        click.echo(f"done: {len(plan.actions)} actions carried out and read back")


@node.command("plan")
@_policy_option
@_mode_option
@node_options
@tool_options
def plan_command(
    *,
    policy_file: Path | None,
    cc_mode: str | None,
    sim: Path | None,
    state_dir: Path | None,
    cdi_dir: Path | None,
    output: str,
    admin_tools: Path | None,
    admin_tools_sha256: str | None,
) -> int:
    """Print what `node setup` would do; exit 1 when there is something to do.

    \b
    Example:
      kata-gpu node plan --policy node-policy.yaml
    """
    from kata_gpu.ops.setup import setup

    world = open_node(
        sim=sim, state_dir=state_dir, cdi_dir=cdi_dir, admin_tools=admin_tools, admin_tools_sha256=admin_tools_sha256
    )
    outcome = setup(world, _policy(policy_file, cc_mode, admin_tools), dry_run=True)
    show_outcome(outcome, output, dry_run=True)
    return ExitCode.NEGATIVE if outcome.plan.actions else ExitCode.OK


@node.command("setup")
@_policy_option
@_mode_option
@dry_run_option
@node_options
@tool_options
def setup_command(
    *,
    policy_file: Path | None,
    cc_mode: str | None,
    dry_run: bool,
    sim: Path | None,
    state_dir: Path | None,
    cdi_dir: Path | None,
    output: str,
    admin_tools: Path | None,
    admin_tools_sha256: str | None,
) -> None:
    """Bind devices to VFIO, switch their CC mode, verify it, publish them in CDI.

    Refuses while a VM holds a device or another manager owns them (3). A failed step undoes everything (5). Running it
    again changes nothing.

    \b
    Example:
      kata-gpu node setup --cc-mode on --dry-run
      kata-gpu node setup --cc-mode on
    """
    from kata_gpu.ops.setup import setup

    world = open_node(
        sim=sim, state_dir=state_dir, cdi_dir=cdi_dir, admin_tools=admin_tools, admin_tools_sha256=admin_tools_sha256
    )
    show_outcome(setup(world, _policy(policy_file, cc_mode, admin_tools), dry_run=dry_run), output, dry_run=dry_run)


@node.command("reset")
@click.option("--keep-cc-mode", is_flag=True, help="Leave the CC mode as it is.")
@dry_run_option
@node_options
@tool_options
def reset_command(
    *,
    keep_cc_mode: bool,
    dry_run: bool,
    sim: Path | None,
    state_dir: Path | None,
    cdi_dir: Path | None,
    output: str,
    admin_tools: Path | None,
    admin_tools_sha256: str | None,
) -> None:
    """Give the devices back: CDI withdrawn, CC mode off, original drivers and overrides restored.

    \b
    Example:
      kata-gpu node reset --dry-run
    """
    from kata_gpu.ops.setup import reset

    world = open_node(
        sim=sim, state_dir=state_dir, cdi_dir=cdi_dir, admin_tools=admin_tools, admin_tools_sha256=admin_tools_sha256
    )
    show_outcome(reset(world, keep_mode=keep_cc_mode, dry_run=dry_run), output, dry_run=dry_run)


@node.command("status")
@node_options
def status_command(*, sim: Path | None, state_dir: Path | None, cdi_dir: Path | None, output: str) -> int:
    """Say in one line how the node is, then per device; exit 1 unless it is settled and every device is usable.

    \b
    Example:
      kata-gpu node status --output json
    """
    from kata_gpu.ops.status import status

    report = status(open_node(sim=sim, state_dir=state_dir, cdi_dir=cdi_dir))
    if output == "json":
        echo_json(
            {
                "state": report.state,
                "reason": report.reason,
                "last": report.last,
                "labels": report.labels,
                "stale": report.stale,
                "owners": report.owners,
                "devices": [
                    device_json(d) | {"holders": [str(h) for h in report.holders[d.function.address]]}
                    for d in report.inventory.devices
                ],
            }
        )
    else:
        click.echo(f"{report.state}: {report.reason}")
        for device in report.inventory.devices:
            holders = "; ".join(str(h) for h in report.holders[device.function.address])
            used = f", in use by {holders}" if holders else ""
            mode = device.cc_mode or ("mode unknown" if device.modes else "no CC")
            click.echo(f"  {device.function}  {device.product}  {mode}  {device_state(device)}{used}")
        for label, value in report.labels.items():
            click.echo(f"  label {label}={value}")
    return ExitCode.OK if report.healthy else ExitCode.NEGATIVE
