"""One virtual machine a run: boot, run a command in the host's own root file system (read-only), report, power off.

Software emulation is the default and enough; /dev/kvm may exist and not work, so the CPU flags decide.
"""

import json
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import debian, lab_kernel
from tests.lab.debian import Unavailable
from tests.lab.initramfs import module_closure, render_initramfs

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
STOCK = {"debian-6.1": "bookworm", "debian-6.12": "trixie"}
MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "vfio", "vfio_iommu_type1", "vfio_pci", "e1000e")
IOMMU = ("-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on")
NO_REMAPPING = ("-device", "intel-iommu,intremap=off,caching-mode=on,device-iotlb=on")
# Groups that the rows need: an isolated device without a driver, an isolated NIC, a two-function NIC (one group), two
# devices behind a conventional bridge, and one behind a switch port. Bus numbers follow this order.
TOPOLOGY = (
    "-device", "pcie-root-port,id=rp1,chassis=1,slot=1", "-device", "edu,id=edu0,bus=rp1",
    "-device", "pcie-root-port,id=rp2,chassis=2,slot=2", "-device", "e1000e,id=nic0,bus=rp2,romfile=",
    "-device", "pcie-root-port,id=rp3,chassis=3,slot=3",
    "-device", "e1000e,id=nic1,bus=rp3,addr=00.0,multifunction=on,romfile=", "-device", "e1000e,id=nic2,bus=rp3,addr=00.1,romfile=",
    "-device", "pcie-root-port,id=rp4,chassis=4,slot=4", "-device", "pcie-pci-bridge,id=pci1,bus=rp4",
    "-device", "edu,id=edu1,bus=pci1,addr=1", "-device", "edu,id=edu2,bus=pci1,addr=2",
    "-device", "pcie-root-port,id=rp5,chassis=5,slot=5", "-device", "x3130-upstream,id=up1,bus=rp5",
    "-device", "xio3130-downstream,id=down1,bus=up1,chassis=6,slot=6", "-device", "edu,id=edu3,bus=down1",
)  # fmt: skip
MEMORY_MIB = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel image, and its modules where it is not all built in. `profile` names it in the conformance table."""

    profile: str
    image: Path
    modules: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the command printed, its exit status, and the kernel's console."""

    status: int
    output: str
    console: str

    def rows(self) -> list[dict[str, str]]:
        """The JSON lines of the output."""
        return [json.loads(line) for line in self.output.splitlines() if line.startswith("{")]


def stock_kernel(profile: str) -> Kernel:
    """An unmodified Debian kernel. Raises Unavailable."""
    image, modules = debian.kernel(STOCK[profile])
    return Kernel(profile=profile, image=image, modules=modules)


def iommufd_kernel() -> Kernel:
    """Our own kernel with IOMMUFD. Raises Unavailable."""
    return Kernel(profile=lab_kernel.PROFILE, image=lab_kernel.image(), modules=None)


def stock_qemu() -> list[str]:
    """The installed QEMU; where there is none, an unpacked one. Raises Unavailable."""
    return ["qemu-system-x86_64"] if shutil.which("qemu-system-x86_64") else debian.qemu_with_vfio_user()


def accelerator() -> list[str]:
    """KVM only where the processor shows that it can; elsewhere emulation."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if flags & {"vmx", "svm"} and Path("/dev/kvm").exists():
        return ["-accel", "kvm", "-accel", "tcg,thread=multi", "-cpu", "max"]
    return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def gpu_devices(sockets: Path, names: Iterable[str]) -> list[str]:
    """QEMU's arguments for software GPUs that listen in `sockets`, each behind a root port of its own."""
    arguments = []
    for port, name in enumerate(names, 1):
        device = {"driver": "vfio-user-pci", "id": name, "bus": f"rp{port}",
                  "socket": {"type": "unix", "path": f"{sockets}/{name}.sock"}}  # fmt: skip
        arguments += ["-device", f"pcie-root-port,id=rp{port},chassis={port},slot={port}"]
        arguments += ["-device", json.dumps(device)]
    return arguments


def boot(
    command: Sequence[str | Path],
    *,
    kernel: Kernel,
    qemu: Sequence[str],
    share: Path,
    timeout_s: float,
    devices: Sequence[str] = TOPOLOGY,
    iommu: Sequence[str] = IOMMU,
    append: str = "",
    memory_mib: int = MEMORY_MIB,
) -> Outcome:
    """Run `command` in the guest with the repository as working directory. `share` is /lab there, writable.

    Guest memory is shared: vfio-user devices map it. The timer is not checked at boot: on a busy host an emulated one
    is late, and the kernel panics. Raises Unavailable where a part cannot be had.
    """
    closure = module_closure(kernel.modules, MODULES) if kernel.modules is not None else []
    share.mkdir(parents=True, exist_ok=True)
    initrd = share / "initrd"
    initrd.write_bytes(render_initramfs(debian.busybox(), closure))
    (share / "command").write_text(f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(map(str, command))}\n")
    argv = [
        *qemu, *accelerator(), "-machine", "q35,kernel-irqchip=split,memory-backend=ram",
        "-object", f"memory-backend-memfd,id=ram,size={memory_mib}M,share=on", "-m", str(memory_mib), "-smp", "2",
        "-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot", "-nic", "none",
        "-kernel", str(kernel.image), "-initrd", str(initrd),
        "-append", f"console=ttyS0 panic=-1 quiet no_timer_check intel_iommu=on {append}".strip(),
        *iommu,
        "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
        "-fsdev", f"local,id=share,path={share},security_model=none,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
        *devices,
    ]  # fmt: skip
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except FileNotFoundError as exc:
        raise Unavailable(f"{argv[0]} is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        console = exc.stdout.decode(errors="replace") if isinstance(exc.stdout, bytes) else str(exc.stdout)
        output = share / "output"
        said = output.read_text(errors="replace")[-4000:] if output.exists() else ""
        raise AssertionError(f"the guest did not finish in {timeout_s} s\n{console[-4000:]}\n{said}") from exc
    status = share / "status"
    if not status.exists():
        raise AssertionError(f"the guest did not run the command\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
    return Outcome(
        status=int(status.read_text()), output=(share / "output").read_text(errors="replace"), console=done.stdout
    )
