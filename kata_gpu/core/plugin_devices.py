"""Device-plugin mode for clusters below 1.34: the same devices, names, CDI ids and health as the DRA driver.

The resource name is what existing pods ask for. Kata joins resource name, `=` and device id and resolves that as a CDI
name (dra.md 4.5), so the CDI kind of the static specifications is the resource name here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kata_gpu.core.allocatable import Allocatable, OfferKind
from kata_gpu.core.cdi import KINDS
from kata_gpu.core.gpu import CcMode, Kind
from kata_gpu.core.slices import Offer
from kata_gpu.errors import Misconfigured

RESOURCES = {OfferKind.GPU: KINDS[Kind.GPU], OfferKind.NVSWITCH: KINDS[Kind.NVSWITCH]}


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginDevice:
    """One device as kubelet keeps it."""

    id: str
    healthy: bool
    numa: int | None


def plugin_devices(offers: Iterable[Offer], kind: OfferKind) -> tuple[PluginDevice, ...]:
    """Devices of one resource. A board in PPCIe mode cannot be given away in parts, and v1beta1 knows no groups:
    its members are unhealthy for it.
    """
    return tuple(
        PluginDevice(
            id=o.device.name,
            healthy=o.unfit is None and o.device.mode is not CcMode.PPCIE,
            numa=o.device.members[0].function.numa_node,
        )
        for o in offers
        if o.device.kind is kind
    )


def resource_of(kind: OfferKind) -> str:
    """Resource name, which is also the CDI kind."""
    return RESOURCES[kind]


def allocate(ids: Iterable[str], devices: Mapping[str, Allocatable], kind: OfferKind) -> tuple[str, ...]:
    """CDI ids for an Allocate. Raises Misconfigured for a device that is not there: the pod must not start."""
    out = []
    for name in ids:
        if name not in devices or devices[name].kind is not kind:
            raise Misconfigured("device-unknown", "no such device", where=name, expected=", ".join(sorted(devices)))
        out.append(f"{resource_of(kind)}={name}")
    return tuple(out)
