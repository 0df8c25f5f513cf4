"""`kata-gpu gpus`: what this host has."""

from pathlib import Path

import click

from kata_gpu.cli.world import device_json, device_state, echo_json, echo_table, node_options, open_node


@click.command()
@node_options
@click.option(
    "--host-root", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Read a support bundle."
)
@click.option("--probe", is_flag=True, help="Read CC modes from the devices that nobody uses (this resets them).")
def gpus(
    *, sim: Path | None, state_dir: Path | None, cdi_dir: Path | None, output: str, host_root: Path | None, probe: bool
) -> None:
    """List GPUs and NVSwitches with driver, IOMMU group, NUMA node and CC mode.

    The CC mode is the one last verified by kata-gpu in this boot; --probe reads it anew.

    \b
    Example:
      kata-gpu gpus --output json
    """
    from kata_gpu.ops.node import observe_node, read_modes

    if host_root is not None:
        from kata_gpu.host.real import RealHost
        from kata_gpu.ops.observe import observe

        inventory = observe(RealHost(host_root))
    else:
        node = open_node(sim=sim, state_dir=state_dir, cdi_dir=cdi_dir, guarded=probe)
        inventory = observe_node(node).inventory
        if probe:
            with node.locked():
                inventory = read_modes(node, inventory)
    if output == "json":
        echo_json(
            {
                "devices": [device_json(d) for d in inventory.devices],
                "iommufd": inventory.iommufd,
                "bootId": inventory.boot_id,
                "kernel": inventory.facts.kernel,
                "tee": inventory.facts.tee,
                "lockdown": inventory.facts.lockdown,
            }
        )
        return
    rows = [
        (
            str(d.function.address),
            d.product,
            d.function.driver or "-",
            "-" if d.function.iommu_group is None else str(d.function.iommu_group),
            "-" if d.function.numa_node is None else str(d.function.numa_node),
            str(d.cc_mode or ("unknown" if d.modes else "none")),
            device_state(d),
        )
        for d in inventory.devices
    ]
    echo_table(("ADDRESS", "DEVICE", "DRIVER", "GROUP", "NUMA", "CC MODE", "STATE"), rows)
    nodes = "iommufd cdevs" if inventory.iommufd else "VFIO groups"
    click.echo(
        f"{len(inventory.gpus)} GPUs, {len(inventory.nvswitches)} NVSwitches; "
        f"kernel {inventory.facts.kernel or 'unknown'}, TEE {inventory.facts.tee}, {nodes}"
    )
