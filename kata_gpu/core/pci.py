"""PCI vocabulary: addresses and functions as sysfs shows them (Linux Documentation/ABI/testing/sysfs-bus-pci)."""

import re
from dataclasses import dataclass
from typing import Self

from kata_gpu.errors import Malformed

_ADDRESS = re.compile(r"([0-9a-f]{4,8}):([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")

BRIDGE_CLASSES = frozenset({0x0600, 0x0604, 0x0609})  # host, PCI-PCI, semi-transparent: never hurt group viability
VFIO_PCI = "vfio-pci"


@dataclass(frozen=True, slots=True, order=True)
class PciAddress:
    """Domain, bus, device, function: the only identity of a device, for cdev and group numbers are reused."""

    domain: int
    bus: int
    slot: int
    function: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`0000:17:00.0`, lower case, with its domain, as the kernel requires it.

        Raises Malformed otherwise.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise Malformed("pci-address", "not a PCI address", expected="like 0000:17:00.0", got=text[:40])
        domain, bus, slot, function = (int(part, 16) for part in match.groups())
        return cls(domain, bus, slot, function)

    def __str__(self) -> str:
        return f"{self.domain:04x}:{self.bus:02x}:{self.slot:02x}.{self.function}"

    @property
    def label(self) -> str:
        """The address as part of a DNS label: `0000-17-00-0`."""
        return str(self).replace(":", "-").replace(".", "-")

    def same_slot(self, other: "PciAddress") -> bool:
        """Whether both are functions of one device."""
        return (self.domain, self.bus, self.slot) == (other.domain, other.bus, other.slot)


@dataclass(frozen=True, slots=True, kw_only=True)
class PciFunction:
    """One function, as read from sysfs at one moment. Sizes in bytes; None where the kernel shows nothing."""

    address: PciAddress
    vendor: int
    device: int
    class_code: int
    subsystem: tuple[int, int] = (0, 0)
    driver: str | None = None
    iommu_group: int | None = None
    numa_node: int | None = None
    pcie_root: str = ""
    bars: tuple[int, ...] = ()
    reset_methods: tuple[str, ...] = ()
    vfio_cdev: str | None = None
    power_state: str = "unknown"
    siblings: tuple[PciAddress, ...] = ()

    @property
    def is_bridge(self) -> bool:
        """Whether the function forwards for others: it stays with its own driver and does not hurt its group."""
        return self.class_code >> 8 in BRIDGE_CLASSES

    @property
    def on_vfio(self) -> bool:
        """Whether VFIO owns it: any driver that owns a vfio-dev counts, so that variant drivers do too."""
        return self.vfio_cdev is not None or self.driver == VFIO_PCI

    @property
    def blocks_group(self) -> bool:
        """Whether its driver makes the whole IOMMU group not viable (driverless is fine, bridges are fine)."""
        return not (self.is_bridge or self.on_vfio or self.driver in {None, "pci-stub"})

    def __str__(self) -> str:
        return str(self.address)
