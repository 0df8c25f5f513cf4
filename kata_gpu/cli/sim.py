"""`kata-gpu sim`: simulated hosts, to try everything on a machine without a GPU."""

from pathlib import Path

import click

_PRESETS = ("hgx-h100", "hgx-b200", "mixed")
_KERNELS = ("debian-6.1", "debian-6.12", "ubuntu-6.17")


@click.group()
def sim() -> None:
    """Simulated hosts: a kernel model and NVIDIA devices, kept in a file between commands.

    \b
    Example:
      kata-gpu sim create --preset hgx-h100 host.sim
      kata-gpu node setup --cc-mode on --sim host.sim
    """


@sim.command("create")
@click.option("--preset", type=click.Choice(_PRESETS), required=True, help="What the host has.")
@click.option("--kernel", type=click.Choice(_KERNELS), default="ubuntu-6.17", show_default=True, help="Its kernel.")
@click.option("--replace", is_flag=True, help="Start over where FILE is a simulated host already.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def create(*, preset: str, kernel: str, replace: bool, file: Path) -> None:
    """Create a simulated host in FILE; its CDI directory and our state on it go to FILE.d.

    \b
    Example:
      kata-gpu sim create --preset hgx-h100 host.sim
      kata-gpu gpus --sim host.sim
    """
    import shutil

    from kata_gpu.errors import Misconfigured
    from kata_gpu.host.simkernel.kernel import SimKernel
    from kata_gpu.host.simkernel.presets import PRESETS
    from kata_gpu.host.simkernel.state_file import run_directory
    from kata_gpu.ops.observe import observe

    if file.exists():
        if not replace:
            raise Misconfigured("sim-exists", "there is a file already", where=str(file), hint="--replace starts over")
        SimKernel(path=file)  # refuses to replace anything but a simulated host
        if run_directory(file).exists():
            shutil.rmtree(run_directory(file))
    inventory = observe(SimKernel.create(PRESETS[preset](kernel), file))
    click.echo(
        f"{file}: {preset} on {kernel}, {len(inventory.gpus)} GPUs, {len(inventory.nvswitches)} NVSwitches, "
        f"{'iommufd' if inventory.iommufd else 'VFIO groups'}"
    )


@sim.command("render")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def render(*, file: Path, directory: Path) -> None:
    """Write the file tree of a simulated host, for read-only commands (`--host-root`).

    \b
    Example:
      kata-gpu sim render host.sim tree
      kata-gpu gpus --host-root tree
    """
    from shutil import copytree

    from kata_gpu.errors import Misconfigured
    from kata_gpu.host.simkernel.kernel import SimKernel
    from kata_gpu.host.simkernel.render import render as write
    from kata_gpu.host.simkernel.state_file import OURS, run_directory

    if directory.exists() and any(directory.iterdir()):
        raise Misconfigured("not-empty", "the directory is not empty", where=str(directory))
    directory.mkdir(parents=True, exist_ok=True)
    write(SimKernel(path=file).machine, directory)
    for place, name in OURS.items():
        if (real := run_directory(file) / name).is_dir():
            copytree(real, directory / place.lstrip("/"))
    click.echo(f"{directory}: written")


@sim.command("hold")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("address")
@click.option("--release", is_flag=True, help="End the VM instead.")
def hold(*, file: Path, address: str, release: bool) -> None:
    """Start a simulated VM that holds a bound device, to see what the guard does.

    \b
    Example:
      kata-gpu sim hold host.sim 0000:17:00.0
    """
    from kata_gpu.core.pci import PciAddress
    from kata_gpu.errors import Misconfigured
    from kata_gpu.host.simkernel.kernel import SimKernel

    kernel_model = SimKernel(path=file)
    function = kernel_model.machine.functions.get(str(PciAddress.parse(address)))
    if function is None or function.group is None or (function.cdev is None and not release):
        raise Misconfigured(
            "not-bound", "no bound device at this address", where=address, hint=f"kata-gpu bind {address}"
        )
    pid = 40000 + function.group
    if release:
        kernel_model.drop(pid)
        click.echo(f"process {pid} ended")
        return
    pod = "7d0c1f3e-2b4a-4c5d-8e6f-0a1b2c3d4e5f"
    kernel_model.hold(
        pid,
        "group",
        str(function.group),
        cmdline=[
            "/opt/kata/bin/qemu-system-x86_64",
            "-name",
            f"sandbox-{'ab12' * 8}",
            "-device",
            f"vfio-pci,host={address}",
        ],
        cgroup=f"/kubepods/burstable/pod{pod}/kata",
        bound=True,
    )
    click.echo(f"process {pid} holds {address}")


_MODELS = ("b200", "h100", "nvswitch")
_FAULTS: dict[str, dict[str, object]] = {
    "dead": {"dead": True},
    "locked": {"locked": True},
    "boot-never": {"boot": "never"},
    "reset-noop": {"reset": "noop"},
}
_HOST_FAULTS = _FAULTS | {
    "off-the-bus": {"dead": "until-bus-reset"},
    "reset-fails": {"reset": "error"},
    "fsp-refuses": {"fsp": 0x55},
}


@sim.command("fault")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.argument("address")
@click.argument("faults", nargs=-1, metavar="[FAULT]...", type=click.Choice(sorted(_HOST_FAULTS)))
def fault(*, file: Path, address: str, faults: tuple[str, ...]) -> None:
    """Give a device of a simulated host exactly these faults; none heals it.

    Faults: boot-never, dead, fsp-refuses, locked, off-the-bus, reset-fails, reset-noop.

    \b
    Example:
      kata-gpu sim fault host.sim 0000:17:00.0 off-the-bus
      kata-gpu recover 0000:17:00.0 --sim host.sim
    """
    from kata_gpu.core.pci import PciAddress
    from kata_gpu.errors import Misconfigured
    from kata_gpu.host.simkernel.kernel import SimKernel

    name = str(PciAddress.parse(address))
    with SimKernel(path=file).edit() as machine:
        function = machine.functions.get(name)
        if function is None or function.chip is None:
            raise Misconfigured("no-such-device", "no GPU or NVSwitch at this address", where=address)
        function.chip.faults = {key: value for chosen in faults for key, value in _HOST_FAULTS[chosen].items()}
    click.echo(f"{name}: {', '.join(faults) or 'healthy'}")


@sim.command("gpu")
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False), required=True, help="For sockets."
)
@click.option(
    "--fault", "faults", multiple=True, metavar="NAME:FAULT", help="One of dead, locked, boot-never or reset-noop."
)
@click.argument("devices", nargs=-1, required=True, metavar="NAME=MODEL...")
def gpu(*, directory: Path, faults: tuple[str, ...], devices: tuple[str, ...]) -> None:
    """Serve software GPUs to QEMU 10.1 or newer until interrupted. Models: h100, b200, nvswitch.

    QEMU needs shared memory and, for each device, a root port:

    \b
      -object memory-backend-memfd,id=mem0,size=2G,share=on -machine q35,memory-backend=mem0,kernel-irqchip=split
      -device intel-iommu,intremap=on,caching-mode=on
      -device pcie-root-port,id=rp1,chassis=1
      -device '{"driver":"vfio-user-pci","bus":"rp1","socket":{"type":"unix","path":"DIR/gpu0.sock"}}'

    \b
    Example:
      kata-gpu sim gpu --dir /tmp/gpus gpu0=h100 sw0=nvswitch
    """
    from kata_gpu.host.softgpu.server import SoftGpuServer

    wanted = dict(_pair(text, "=", "NAME=MODEL", _MODELS) for text in devices)
    broken = [_pair(text, ":", "NAME:FAULT", tuple(_FAULTS)) for text in faults]
    directory.mkdir(parents=True, exist_ok=True)
    server = SoftGpuServer(directory, wanted)
    for name, fault in broken:
        if name not in wanted:
            raise click.UsageError(f"--fault {name}: no such device")
        server.devices[name].chip.faults.update(_FAULTS[fault])
    for name, model in wanted.items():
        click.echo(f"{directory / name}.sock: {model}")
    try:
        server.wait()
    except KeyboardInterrupt:
        server.close()


def _pair(text: str, separator: str, shape: str, values: tuple[str, ...]) -> tuple[str, str]:
    name, found, value = text.partition(separator)
    if not found or not name.replace("-", "").isalnum() or value not in values:
        raise click.UsageError(f"{text!r} is not {shape}; known: {', '.join(values)}")
    return name, value
