"""A node of GPUs for the claim path: `NodeDevices` over a plain table, with faults that a test switches on."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from kata_gpu.core.gpu import CcMode
from kata_gpu.core.inventory import Inventory, NodeFacts, Tee, find_devices
from kata_gpu.core.pci import PciAddress, PciFunction
from kata_gpu.errors import KataGpuError, RolledBack, TimedOut

NOW = datetime(2026, 11, 21, tzinfo=UTC)
BOOT = "5f0c8f8e-0000-4000-8000-000000000001"
GPU_BUSES = (0x17, 0x2A, 0x3B, 0x5D, 0x9B, 0xAB, 0xBA, 0xDB)
SWITCH_BUSES = (0x05, 0x06, 0x07, 0x08)


@dataclass
class FakeNode:
    """HGX-like: `gpus` H100 and `switches`, each in an IOMMU group of its own, bound to vfio, mode on."""

    gpus: int = 8
    switches: int = 0
    iommufd: bool = True
    boot_id: str = BOOT
    tee: Tee = Tee.SNP
    mode: CcMode = CcMode.ON
    functions: dict[str, PciFunction] = field(default_factory=dict)
    modes: dict[str, CcMode | None] = field(default_factory=dict)
    open_by: dict[str, tuple[str, ...]] = field(default_factory=dict)
    bind_error: dict[str, KataGpuError] = field(default_factory=dict)
    reset_error: dict[str, KataGpuError] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    next_vfio: int = 0

    def __post_init__(self) -> None:
        for group, (bus, kind) in enumerate(
            [(b, "gpu") for b in GPU_BUSES[: self.gpus]] + [(b, "switch") for b in SWITCH_BUSES[: self.switches]]
        ):
            self.add(bus, kind, group=group)

    def add(self, bus: int, kind: str = "gpu", *, group: int) -> str:
        """Plug a device in; returns its address."""
        address = PciAddress(0, bus, 0, 0)
        self.functions[str(address)] = PciFunction(
            address=address,
            vendor=0x10DE,
            device=0x2330 if kind == "gpu" else 0x22A3,
            class_code=0x030200 if kind == "gpu" else 0x068000,
            subsystem=(0x10DE, 0x16C1),
            driver="vfio-pci",
            iommu_group=group,
            numa_node=0 if bus < 0x80 else 1,
            pcie_root=f"pci0000:{bus - 1:02x}",
            bars=(1 << 24, 1 << 37, 1 << 25),
            reset_methods=("flr", "bus"),
            vfio_cdev=f"vfio{self.next_vfio}",
        )
        self.modes[str(address)] = self.mode
        self.next_vfio += 1
        return str(address)

    def change(self, address: str, **changes: object) -> None:
        """Another fact about a function."""
        self.functions[address] = replace(self.functions[address], **changes)  # type: ignore[arg-type]

    def unbind(self, address: str, driver: str | None = None) -> None:
        """Take the device from vfio."""
        self.change(address, driver=driver, vfio_cdev=None)

    def remove(self, address: str) -> None:
        """Hot-remove."""
        del self.functions[address]

    def reboot(self) -> None:
        """New boot id, other vfio numbers, nothing open."""
        self.boot_id = self.boot_id[:-1] + str(int(self.boot_id[-1]) + 1)
        self.open_by.clear()
        for address in sorted(self.functions, reverse=True):
            self.change(address, vfio_cdev=f"vfio{self.next_vfio}")
            self.next_vfio += 1

    def verify(self, inventory: Inventory, addresses: Collection[str]) -> Inventory:
        """The registers say what the table says."""
        return inventory

    def observe(self) -> Inventory:
        """The inventory of now."""
        devices = find_devices(self.functions.values())
        return Inventory(
            devices=tuple(
                replace(d, cc_mode=self.modes[str(d.function.address)] if d.bound else None) for d in devices
            ),
            iommufd=self.iommufd,
            boot_id=self.boot_id,
            facts=NodeFacts(tee=self.tee, iommu=True),
        )

    def bind(self, address: str, *, deadline_s: float) -> None:
        """To vfio, under a new number."""
        assert deadline_s > 0
        self.writes.append(f"bind {address}")
        if error := self.bind_error.get(address):
            raise error
        self.change(address, driver="vfio-pci", vfio_cdev=f"vfio{self.next_vfio}")
        self.next_vfio += 1

    def reset(self, address: str, *, deadline_s: float) -> None:
        """Function-level reset."""
        assert deadline_s > 0
        self.writes.append(f"reset {address}")
        if error := self.reset_error.get(address):
            raise error

    def holders(self, inventory: Inventory, addresses: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """Who has them open."""
        return {a: self.open_by[a] for a in addresses if a in self.open_by}


def wedged(address: str) -> TimedOut:
    """What a blocked unbind gives."""
    return TimedOut("sysfs-write", "the kernel does not answer", where=address)


def busy(address: str) -> RolledBack:
    """What a refused driver_override gives."""
    return RolledBack("bind-refused", "EBUSY", where=address)
