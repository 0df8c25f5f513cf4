"""One virtual machine a run: boot, run a command in the host's own root file system (read-only), report, power off.

Software emulation is the default and enough; /dev/kvm may exist and not work, so the CPU flags decide.
"""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab import debian
from tests.lab.debian import Unavailable
from tests.lab.initramfs import module_closure, render_initramfs

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "vfio", "vfio_iommu_type1", "vfio_pci", "e1000e", "nvme")
IOMMU = ("-device", "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on")
# Groups that the rows need: an isolated device without a driver, an isolated NIC, a two-function NIC (one group), and
# a conventional bridge with two devices behind it (one group with the bridge).
TOPOLOGY = (
    "-device", "pcie-root-port,id=rp1,chassis=1,slot=1", "-device", "edu,id=edu0,bus=rp1",
    "-device", "pcie-root-port,id=rp2,chassis=2,slot=2", "-device", "e1000e,id=nic0,bus=rp2,romfile=",
    "-device", "pcie-root-port,id=rp3,chassis=3,slot=3",
    "-device", "e1000e,id=nic1,bus=rp3,addr=00.0,multifunction=on,romfile=", "-device", "e1000e,id=nic2,bus=rp3,addr=00.1,romfile=",
    "-device", "pcie-pci-bridge,id=br1", "-device", "edu,id=edu1,bus=br1,addr=1", "-device", "edu,id=edu2,bus=br1,addr=2",
)  # fmt: skip
MEMORY_MIB = 2048
BOOT_AND_RUN_S = 240


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the command printed, its exit status, and the kernel's console."""

    status: int
    output: str
    console: str


def accelerator() -> list[str]:
    """KVM only where the processor shows that it can; elsewhere emulation."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    if flags & {"vmx", "svm"} and Path("/dev/kvm").exists():
        return ["-accel", "kvm", "-accel", "tcg,thread=multi", "-cpu", "max"]
    return ["-accel", "tcg,thread=multi", "-cpu", "max"]


def boot(
    command: Sequence[str],
    *,
    share: Path,
    devices: Sequence[str] = TOPOLOGY,
    append: str = "",
    modules: Sequence[str] = MODULES,
    timeout_s: int = BOOT_AND_RUN_S,
) -> Outcome:
    """Run `command` in the guest with the repository as working directory. `share` is /lab there, writable.

    Raises Unavailable where kernel or QEMU cannot be had.
    """
    vmlinuz, module_folder = debian.kernel()
    closure = module_closure(module_folder, modules)
    share.mkdir(parents=True, exist_ok=True)
    initrd = share / "initrd"
    initrd.write_bytes(render_initramfs(debian.busybox(), closure))
    (share / "command").write_text(f"cd {shlex.quote(str(ROOT))} && exec {shlex.join(command)}\n")
    argv = [
        "qemu-system-x86_64", *accelerator(), "-machine", "q35,kernel-irqchip=split", "-m", str(MEMORY_MIB), "-smp", "2",
        "-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot", "-nic", "none",
        "-kernel", str(vmlinuz), "-initrd", str(initrd),
        "-append", f"console=ttyS0 panic=-1 quiet intel_iommu=on {append}".strip(),
        *IOMMU,
        "-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
        "-fsdev", f"local,id=share,path={share},security_model=none,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
        *devices,
    ]  # fmt: skip
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False)
    except FileNotFoundError as exc:
        raise Unavailable("qemu-system-x86_64 is not installed") from exc
    except subprocess.TimeoutExpired as exc:
        console = (exc.stdout or b"").decode(errors="replace") if isinstance(exc.stdout, bytes) else str(exc.stdout)
        raise AssertionError(f"the guest did not finish in {timeout_s} s\n{console[-4000:]}") from exc
    status = share / "status"
    if not status.exists():
        raise AssertionError(f"the guest did not run the command\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}")
    return Outcome(int(status.read_text()), (share / "output").read_text(errors="replace"), done.stdout)
