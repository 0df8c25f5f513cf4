"""Options that commands of the node share, and the one place that wires real adapters."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from kata_gpu.core.gpu import GpuDevice
    from kata_gpu.core.pci import PciAddress
    from kata_gpu.ops.node import Node
    from kata_gpu.ports import Host

STATE_DIR = Path("/var/lib/kata-gpu")
CDI_DIR = Path("/var/run/cdi")
POD_RESOURCES = Path("/var/lib/kubelet/pod-resources/kubelet.sock")

_F = TypeVar("_F", bound=Callable[..., Any])

KUBELET_ROOT = Path("/var/lib/kubelet")  # kubelet's own default of --root-dir
kubelet_root_option = click.option(
    "--kubelet-root",
    type=click.Path(path_type=Path),
    default=KUBELET_ROOT,
    show_default=True,
    help="Kubelet's folder: sockets, checkpoints, registration.",
)
sim_option = click.option(
    "--sim",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Use the simulated host in FILE (`kata-gpu sim create`) instead of this machine.",
)
output_option = click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)
dry_run_option = click.option("--dry-run", is_flag=True, help="Print the plan and change nothing.")


def node_options(command: _F) -> _F:
    """Options of every command that changes the node."""
    for option in (
        output_option,
        click.option("--cdi-dir", type=click.Path(path_type=Path), help=f"CDI directory. [default: {CDI_DIR}]"),
        click.option("--state-dir", type=click.Path(path_type=Path), help=f"Own state. [default: {STATE_DIR}]"),
        sim_option,
    ):
        command = option(command)
    return command


def tool_options(command: _F) -> _F:
    """Options that name NVIDIA's external tool: its path, and the digest that it must have."""
    for option in (
        click.option("--admin-tools-sha256", metavar="HEX", help="Digest of the tool; required with its path."),
        click.option(
            "--admin-tools",
            type=click.Path(path_type=Path, exists=True),
            metavar="PATH",
            help="Switch modes with NVIDIA's gpu-admin-tools at PATH instead of our own VFIO backend.",
        ),
    ):
        command = option(command)
    return command


def require_kubelet(root: Path) -> Path:
    """Kubelet's folder. Raises Misconfigured where it is not: without it nothing here means that nobody has a claim."""
    from kata_gpu.errors import Misconfigured

    if not root.is_dir():
        raise Misconfigured(
            "kubelet-root", "kubelet's folder is not here", where=str(root), expected="its --root-dir",
            hint="name it with --kubelet-root; k0s, MicroK8s and others have theirs elsewhere: `kata-gpu doctor`",
        )  # fmt: skip
    return root


def open_host(sim: Path | None) -> "Host":
    """This machine, or a simulated one."""
    if sim is None:
        from kata_gpu.host.real import RealHost

        return RealHost()
    from kata_gpu.host.simkernel.kernel import SimKernel

    return SimKernel(path=sim)


def open_node(
    *,
    sim: Path | None,
    state_dir: Path | None,
    cdi_dir: Path | None,
    admin_tools: Path | None = None,
    admin_tools_sha256: str | None = None,
    guarded: bool = True,
) -> "Node":
    """Everything a use case needs. Progress goes to stderr. Raises Misconfigured for half an external tool.

    `guarded` False, for commands that only look, does not ask kubelet.
    """
    from kata_gpu.host.durable import DurableDir
    from kata_gpu.ops.node import Node

    state, cdi = STATE_DIR, CDI_DIR
    if sim is not None:
        from kata_gpu.host.simkernel.state_file import run_directory

        state, cdi = run_directory(sim) / "state", run_directory(sim) / "cdi"
    host = open_host(sim)
    backend = None
    if admin_tools is not None or admin_tools_sha256 is not None:
        from kata_gpu.host.cc.admin_tools import AdminToolsBackend
        from kata_gpu.ops.observe import observe

        backend = AdminToolsBackend.pinned(host, admin_tools, admin_tools_sha256, lambda: observe(host).devices)
    return Node(
        host=host,
        state=DurableDir(state_dir or state),
        cdi=DurableDir(cdi_dir or cdi),
        backend=backend,
        allocated=partial(_allocated, host) if guarded else None,
        progress=lambda line: click.echo(f"  {line}", err=True),
    )


def _allocated(host: "Host") -> "dict[PciAddress, str]":
    """What kubelet has given to pods by now; nothing where there is no kubelet."""
    from kata_gpu.ports import FileKind

    if not POD_RESOURCES.exists() or host.kind(str(POD_RESOURCES)) is not FileKind.SOCKET:
        return {}
    from kata_gpu.cli.kubelet import list_allocations
    from kata_gpu.core.allocations import allocated_devices
    from kata_gpu.ops.observe import observe

    return allocated_devices(list_allocations(POD_RESOURCES), observe(host))


def parse_addresses(texts: tuple[str, ...]) -> "list[PciAddress]":
    """PCI addresses of a command line. Raises Malformed."""
    from kata_gpu.core.pci import PciAddress

    return [PciAddress.parse(text) for text in texts]


def echo_json(value: object) -> None:
    """A result for machines."""
    click.echo(json.dumps(value, indent=2))


def echo_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def device_json(device: "GpuDevice") -> dict[str, Any]:
    """A device for machines."""
    f = device.function
    return {
        "name": device.name,
        "address": str(f.address),
        "kind": str(device.kind),
        "product": device.product,
        "architecture": device.architecture,
        "pciId": f"{f.vendor:04x}:{f.device:04x}",
        "driver": f.driver,
        "iommuGroup": f.iommu_group,
        "vfioCdev": f.vfio_cdev,
        "numaNode": f.numa_node,
        "pcieRoot": f.pcie_root,
        "resetMethods": list(f.reset_methods),
        "ccCapable": device.cc_capable,
        "ppcieCapable": device.ppcie_capable,
        "ccMode": device.cc_mode,
        "companions": [str(c) for c in device.companions],
        "bound": device.bound,
        "problem": device.problem,
    }


def device_state(device: "GpuDevice") -> str:
    """One word or one reason."""
    if device.problem:
        return device.problem
    if not device.function.on_vfio:
        return "not bound"
    blocker = next((c for c in device.companions if c.blocks_group), None)
    if blocker is not None:
        return f"group blocked by {blocker} ({blocker.driver})"
    return "bound"
