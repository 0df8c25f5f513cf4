"""What the scheduler can be offered: one device per GPU and NVSwitch, and the whole PPCIe group of a node.

dra.md 6.2. A name comes from the PCI address alone, so that it survives reboots, rebinds and neighbours coming and
going. PPCIe protects a board as a whole: its members go to one VM together or not at all.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from kata_gpu.core.gpu import CcMode, GpuDevice, Kind
from kata_gpu.core.inventory import Inventory

GROUP_NAME = "ppcie-0"  # a node has one protected board


class OfferKind(StrEnum):
    """Attribute `type`."""

    GPU = "gpu"
    NVSWITCH = "nvswitch"
    GROUP = "ppcie-group"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocatable:
    """One device of the pool. `members` has one element, or all of the group."""

    name: str
    kind: OfferKind
    members: tuple[GpuDevice, ...]

    @property
    def addresses(self) -> tuple[str, ...]:
        """PCI addresses of everything that goes to the VM as a device of its own."""
        return tuple(str(m.function.address) for m in self.members)

    @property
    def mode(self) -> CcMode | None:
        """The mode that all members are in, or None where they differ or one is unknown."""
        modes = {m.cc_mode for m in self.members}
        return modes.pop() if len(modes) == 1 else None


def allocatables(inventory: Inventory) -> tuple[Allocatable, ...]:
    """Every device of the node, singles in address order, the group last when the board is in PPCIe mode."""
    singles = tuple(Allocatable(name=d.name, kind=OfferKind(d.kind.value), members=(d,)) for d in inventory.devices)
    board = ppcie_board(inventory)
    if not board or any(d.cc_mode is not CcMode.PPCIE for d in board):
        return singles
    return (*singles, Allocatable(name=GROUP_NAME, kind=OfferKind.GROUP, members=board))


def ppcie_board(inventory: Inventory) -> tuple[GpuDevice, ...]:
    """GPUs and switches that PPCIe would protect together; empty where the node has no such board."""
    gpus = [d for d in inventory.devices if d.kind is Kind.GPU and d.ppcie_capable]
    switches = [d for d in inventory.devices if d.kind is Kind.NVSWITCH and d.ppcie_capable]
    return (*gpus, *switches) if gpus and switches else ()


def board_id(board: Iterable[GpuDevice]) -> str:
    """Short stable id of a board for `matchAttribute`; empty for no board."""
    addresses = ",".join(sorted(str(d.function.address) for d in board))
    return hashlib.sha256(addresses.encode()).hexdigest()[:16] if addresses else ""


def foreign_functions(device: GpuDevice, inventory: Inventory, together: frozenset[str]) -> tuple[str, ...]:
    """Addresses in the IOMMU group of `device` that are neither its own functions nor go to the same VM.

    A neighbour in the group can reach the device by peer-to-peer DMA, whatever its driver. Functions of the same slot
    (audio, USB-C) are part of the card.
    """
    group, address = device.function.iommu_group, device.function.address
    strangers = {
        str(f.address) for f in device.companions if f.iommu_group == group and not f.address.same_slot(address)
    }
    strangers |= {
        str(d.function.address)
        for d in inventory.devices
        if d is not device and group is not None and d.function.iommu_group == group
    }
    return tuple(sorted(strangers - together))
