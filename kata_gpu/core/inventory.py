"""The inventory: what this node has, as one immutable value."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from kata_gpu.core.gpu import GpuDevice, Kind, kind_of, model_of
from kata_gpu.core.pci import PciAddress, PciFunction
from kata_gpu.errors import Misconfigured


class Tee(StrEnum):
    """CPU TEE that KVM offers on this host."""

    SNP = "snp"
    TDX = "tdx"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """Facts about the host that steer planning. They are asserted by the host and prove nothing."""

    kernel: str = ""
    tee: Tee = Tee.NONE
    lockdown: str = "none"
    iommu: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Devices in address order. `iommufd`: /dev/iommu is there and every bound device has its cdev node."""

    devices: tuple[GpuDevice, ...]
    iommufd: bool
    boot_id: str
    facts: NodeFacts = NodeFacts()

    @property
    def gpus(self) -> tuple[GpuDevice, ...]:
        """GPUs only."""
        return tuple(d for d in self.devices if d.kind is Kind.GPU)

    @property
    def nvswitches(self) -> tuple[GpuDevice, ...]:
        """NVSwitches only."""
        return tuple(d for d in self.devices if d.kind is Kind.NVSWITCH)

    def device(self, address: PciAddress) -> GpuDevice:
        """The device at an address. Raises Misconfigured if there is none."""
        for device in self.devices:
            if device.function.address == address:
                return device
        raise Misconfigured(
            "no-such-device",
            "no GPU or NVSwitch at this address",
            where=str(address),
            expected=", ".join(str(d.function.address) for d in self.devices) or "a host with NVIDIA devices",
        )


def find_devices(functions: Iterable[PciFunction]) -> tuple[GpuDevice, ...]:
    """GPUs and NVSwitches among all functions of a host, each with its companions.

    Companions are the non-bridge members of its IOMMU group and the other functions of its slot (audio and USB-C share
    the reset), except functions that are GPUs or NVSwitches themselves: those are devices of their own.
    """
    everything = tuple(functions)
    by_group: dict[int, list[PciFunction]] = {}
    by_slot: dict[tuple[int, int, int], list[PciFunction]] = {}
    for function in everything:
        if function.iommu_group is not None:
            by_group.setdefault(function.iommu_group, []).append(function)
        a = function.address
        by_slot.setdefault((a.domain, a.bus, a.slot), []).append(function)
    devices = []
    for function in everything:
        kind = kind_of(function)
        if kind is None:
            continue
        a = function.address
        near = by_slot[a.domain, a.bus, a.slot] + by_group.get(
            -1 if function.iommu_group is None else function.iommu_group, []
        )
        companions = {f.address: f for f in near if f.address != a and not f.is_bridge and kind_of(f) is None}
        model = model_of(function.device)
        modes = model.family.modes if model.family is not None and not model.firmware_owned else frozenset()
        devices.append(
            GpuDevice(
                function=function,
                kind=kind,
                architecture=model.family.architecture if model.family is not None else "unknown",
                product=model.product,
                cc_capable="on" in modes,
                ppcie_capable="ppcie" in modes,
                companions=tuple(companions[key] for key in sorted(companions)),
            )
        )
    return tuple(sorted(devices, key=lambda d: d.function.address))
