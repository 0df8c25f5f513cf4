"""Which of our devices kubelet has given to which pod, from its own words (PodResources `List`)."""

from collections.abc import Iterable
from dataclasses import dataclass

from kata_gpu.core.gpu import GpuDevice
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.pci import PciAddress

_OURS = ("nvidia.com/", "cgpu.kata-gpu.dev")


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One device id that a pod holds: of a device plugin's resource, or a CDI name of a claim."""

    pod: str
    resource: str
    device_id: str


def allocated_devices(allocations: Iterable[Allocation], inventory: Inventory) -> dict[PciAddress, str]:
    """Device address to `namespace/pod`.

    Ids come in every form that a plugin chose: our device name or the PCI address inside a longer name, a cdev
    (`vfio3`), an IOMMU group number. Where an id can mean a device, it does: a false alarm refuses, nothing else.
    """
    found: dict[PciAddress, str] = {}
    for allocation in allocations:
        if not allocation.resource.startswith(_OURS):
            continue
        for device in inventory.devices:
            if _means(allocation.device_id, device):
                found.setdefault(device.function.address, allocation.pod)
    return found


def _means(device_id: str, device: GpuDevice) -> bool:
    last = device_id.rsplit("=", 1)[-1]
    exact = {device.function.vfio_cdev, str(device.function.iommu_group), str(device.function.address), device.name}
    return last in exact or last.endswith(f"-{device.name}")
