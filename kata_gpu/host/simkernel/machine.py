"""State of a simulated machine: plain mutable records with a JSON form. The rules that change it are elsewhere."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kata_gpu.host.simkernel.chip import Chip

BRIDGE_DRIVERS = frozenset({"pcieport", "pci-stub"})  # they let user space own DMA of their group (driver_managed_dma)
VFIO_DRIVERS = frozenset({"vfio-pci", "nvgrace-gpu-vfio-pci"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProfile:
    """What differs between kernels. Debian's have neither IOMMUFD nor the unsafe mode without an IOMMU, that of
    tests/lab has both. While an unbind is blocked, reads and writes of the override block on 6.1 and Ubuntu's, reads of
    the uevent on 6.1.
    """

    name: str
    release: str
    iommufd: bool
    noiommu: bool
    override_blocks: bool
    uevent_read_blocks: bool = False


PROFILES = {
    p.name: p
    for p in (
        KernelProfile(
            name="debian-6.1",
            release="6.1.0-50-amd64",
            iommufd=False,
            noiommu=False,
            override_blocks=True,
            uevent_read_blocks=True,
        ),
        KernelProfile(
            name="debian-6.12", release="6.12.95+deb12-amd64", iommufd=False, noiommu=False, override_blocks=False
        ),
        KernelProfile(name="lab-6.12", release="6.12.107", iommufd=True, noiommu=True, override_blocks=False),
        KernelProfile(name="ubuntu-6.17", release="6.17.0-5-generic", iommufd=True, noiommu=True, override_blocks=True),
    )
}


@dataclass(slots=True, kw_only=True)
class Function:
    """One PCI function.

    `pending` names the driver that a blocked unbind has not released yet; `queue` holds what waits behind it for the
    device's lock and happens after all when its users are gone. `noiommu`: its group is one that VFIO made up.
    """

    address: str
    vendor: int
    device: int
    class_code: int
    parent: str
    subsystem: list[int] = field(default_factory=lambda: [0, 0])
    group: int | None = None
    numa: int = 0
    bars: list[int] = field(default_factory=list)
    header_type: int = 0
    native: str | None = None
    driver: str | None = None
    override: str | None = None
    offered_resets: list[str] = field(default_factory=list)
    resets: list[str] = field(default_factory=list)
    cdev: int | None = None
    power_control: str = "auto"
    memory_enabled: bool = False
    pending: str = ""
    queue: list[list[str]] = field(default_factory=list)
    noiommu: bool = False
    faults: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    chip: Chip | None = None

    @property
    def path(self) -> str:
        """Below /sys/devices."""
        return f"{self.parent}/{self.address}"


@dataclass(slots=True, kw_only=True)
class Handle:
    """One open file of VFIO. `bound`: the cdev is bound to an iommufd, or the group is attached to a container."""

    fd: int
    pid: int
    kind: str  # group, cdev, device, container, iommufd
    target: str  # group number, or address
    via: int = -1  # container, iommufd or group descriptor that it depends on
    bound: bool = False
    number: int = -1  # of the cdev's node


@dataclass(slots=True, kw_only=True)
class Process:
    """A process of the simulated host that is not us, such as a QEMU that holds a GPU."""

    pid: int
    comm: str
    cmdline: list[str]
    cgroup: str = "/"
    maps_device: bool = False
    files: list[str] = field(default_factory=list)  # other files that it has open
    mapped: list[str] = field(default_factory=list)  # files that it has mapped and closed
    waits_for: str = ""  # address of the function whose unbind it cannot leave


@dataclass(slots=True, kw_only=True)
class Machine:
    """Everything there is. `now` is its own clock; `writes` counts what changed something."""

    profile: str = "ubuntu-6.17"
    boot_id: str = "5b1f0a7e-3c52-4d1c-9d0e-6f1a2b3c4d5e"
    now: float = 0.0
    functions: dict[str, Function] = field(default_factory=dict)
    unplugged: dict[str, Function] = field(default_factory=dict)
    handles: list[Handle] = field(default_factory=list)
    processes: dict[int, Process] = field(default_factory=dict)
    modules: list[str] = field(default_factory=list)
    installed_modules: dict[str, str] = field(default_factory=dict)  # module -> PCI driver it brings, or ""
    drivers: list[str] = field(default_factory=list)
    dynamic_ids: dict[str, list[list[int]]] = field(default_factory=dict)
    autoprobe: bool = True
    iommu: bool = True
    interrupt_remapping: bool = True
    lockdown: str = "none"
    files: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)  # path -> "char-device" or "socket"
    tainted: int = 0
    writes: int = 0
    crash_after: int | None = None

    @property
    def kernel(self) -> KernelProfile:
        """The kernel it runs."""
        return PROFILES[self.profile]

    def parameter(self, name: str) -> bool:
        """Whether a module parameter, such as `vfio/enable_unsafe_noiommu_mode`, is on."""
        module, _, parameter = name.partition("/")
        return self.files.get(f"/sys/module/{module}/parameters/{parameter}", "").startswith(("Y", "1"))

    @property
    def command_line(self) -> list[str]:
        """What the boot loader gave the kernel."""
        return self.files.get("/proc/cmdline", "").split()

    def members(self, group: int | None) -> list[Function]:
        """Functions of an IOMMU group."""
        return [f for f in self.functions.values() if group is not None and f.group == group]

    def to_json(self) -> dict[str, Any]:
        """JSON form; descriptors of real processes are kept, they are dropped when their process is gone."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        for table in ("functions", "unplugged"):
            data[table] = {
                k: {f.name: getattr(v, f.name) for f in fields(v)} | {"chip": v.chip.to_json() if v.chip else None}
                for k, v in data[table].items()
            }
        data["handles"] = [asdict(h) for h in self.handles]
        data["processes"] = {str(k): asdict(p) for k, p in self.processes.items()}
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Machine":
        """Inverse of `to_json`; TypeError, KeyError or ValueError for anything else."""
        data = dict(data)
        for table in ("functions", "unplugged"):
            data[table] = {
                k: Function(**{**v, "chip": Chip.from_json(v["chip"]) if v["chip"] else None})
                for k, v in data[table].items()
            }
        data["handles"] = [Handle(**h) for h in data["handles"]]
        data["processes"] = {int(k): Process(**p) for k, p in data["processes"].items()}
        return cls(**data)
