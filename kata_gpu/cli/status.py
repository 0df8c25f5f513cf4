"""`kata-gpu status`: one table over devices, claims and pods of this node."""

from pathlib import Path

import click

from kata_gpu.cli.world import (
    KUBELET_ROOT,
    device_state,
    echo_json,
    echo_table,
    kubelet_root_option,
    node_options,
    open_node,
    require_kubelet,
)
from kata_gpu.errors import ExitCode

HEADER = ("DEVICE", "ADDRESS", "MODE", "BINDING", "CLAIM", "POD", "HEALTH", "REASON")


@click.command()
@kubelet_root_option
@node_options
def status(kubelet_root: Path, sim: Path | None, state_dir: Path | None, cdi_dir: Path | None, output: str) -> int:
    """One table: device, mode, binding, claim, pod, health, reason. Exit 1 when a device is not healthy.

    Reads this node only: no API server is needed, and no device is opened.

    \b
    Example:
      kata-gpu status
    """
    from kata_gpu.core.claim import DRIVER
    from kata_gpu.host.claim_file import ClaimFileReader
    from kata_gpu.ops.node_devices import HostDevices

    if sim is None or kubelet_root != KUBELET_ROOT:  # a simulated host has no kubelet of its own
        require_kubelet(kubelet_root)
    node = open_node(sim=sim, state_dir=state_dir, cdi_dir=cdi_dir)
    inventory = HostDevices(node).observe()
    checkpoint = ClaimFileReader(kubelet_root / "plugins" / DRIVER).load()
    rows = []
    for device in inventory.devices:
        address = str(device.function.address)
        holder, aside = checkpoint.holder(address), checkpoint.quarantined(address)
        reason = aside.reason if aside else "" if device.bound and not device.problem else device_state(device)
        if not reason and device.modes and device.cc_mode is None:
            reason = "mode not read since it was bound"
        rows.append(
            {
                "device": device.name,
                "address": address,
                "mode": str(device.cc_mode or ("unknown" if device.modes else "none")),
                "binding": device.function.driver or "none",
                "claim": f"{holder.ref.namespace}/{holder.ref.name}" if holder else "",
                "pod": holder.pod if holder else "",
                "health": "quarantined" if aside else "ok" if not reason else "unfit",
                "reason": reason,
            }
        )
    if output == "json":
        echo_json({"devices": rows})
    elif rows:
        echo_table(HEADER, [tuple(v or "-" for v in r.values()) for r in rows])
    else:
        click.echo("no NVIDIA GPU or NVSwitch on this host")
    return ExitCode.OK if all(r["health"] == "ok" for r in rows) else ExitCode.NEGATIVE
