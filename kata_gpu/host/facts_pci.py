"""Facts about NVIDIA devices, their neighbours in slot and group, and the ports above them."""

from kata_gpu.core.doctor.facts import Bar, PciFacts, PortFacts
from kata_gpu.core.doctor.pciconfig import acs_control, forwards_downstream
from kata_gpu.core.gpu import NVIDIA
from kata_gpu.core.pci import PciAddress, PciFunction
from kata_gpu.errors import Malformed
from kata_gpu.host.look import Look

_DEVICES = "/sys/bus/pci/devices"
_GROUPS = "/sys/kernel/iommu_groups"
_BARS = 6
_MAX_GROUPS = 4096
_CONFIG_BYTES = 4096


def devices(look: Look) -> tuple[tuple[PciFacts, ...], tuple[str, ...], dict[int, str]]:
    """NVIDIA functions and those beside them, the IOMMUs, and the type of every group."""
    vendors = {a: _hex(look.line(f"{_DEVICES}/{a}/vendor")) for n in look.names(_DEVICES) if (a := _address(n))}
    nvidia = {a for a, vendor in vendors.items() if vendor == NVIDIA}
    groups = {a: g for a in nvidia if (g := _group(look, a)) is not None}
    near = {a for a in vendors if any(a.same_slot(n) for n in nvidia)}
    for number in set(groups.values()):
        near |= {a for n in look.names(f"{_GROUPS}/{number}/devices") if (a := _address(n)) and a in vendors}
    ports: dict[PciAddress, PortFacts | None] = {}
    facts = tuple(_device(look, a, vendors[a] or 0, nvidia=a in nvidia, ports=ports) for a in sorted(near | nvidia))
    types = {
        int(n): text
        for n in look.names(_GROUPS)[:_MAX_GROUPS]
        if n.isdecimal() and (text := look.line(f"{_GROUPS}/{n}/type")) is not None
    }
    return facts, look.names("/sys/class/iommu"), types


def _address(name: str) -> PciAddress | None:
    try:
        return PciAddress.parse(name)
    except Malformed:
        return None


def _hex(text: str | None) -> int | None:
    try:
        return int(text or "", 16)
    except ValueError:
        return None


def _group(look: Look, address: PciAddress) -> int | None:
    name = look.target(f"{_DEVICES}/{address}/iommu_group")
    return int(name) if name is not None and name.isdecimal() else None


def _device(
    look: Look, address: PciAddress, vendor: int, *, nvidia: bool, ports: dict[PciAddress, PortFacts | None]
) -> PciFacts:
    base = f"{_DEVICES}/{address}"
    bars = _bars(look.text(f"{base}/resource") or "")
    cdevs = look.names(f"{base}/vfio-dev")
    location = (look.link(base) or "").split("/")
    function = PciFunction(
        address=address,
        vendor=vendor,
        device=_hex(look.line(f"{base}/device")) or 0,
        class_code=_hex(look.line(f"{base}/class")) or 0,
        driver=look.target(f"{base}/driver"),
        iommu_group=_group(look, address),
        pcie_root=next((p for p in location if p.startswith("pci")), ""),
        bars=tuple(b.size for b in bars),
        reset_methods=tuple((look.line(f"{base}/reset_method") or "").split()),
        vfio_cdev=cdevs[0] if cdevs else None,
        power_state=look.line(f"{base}/power_state") or "unknown",
    )
    if not nvidia:
        return PciFacts(function=function)
    above = [a for part in location[:-1] if (a := _address(part))]
    override = look.risky_line(f"{base}/driver_override")
    word = look.data(f"{base}/config", max_bytes=4)
    ari = look.line(f"{base}/ari_enabled")
    return PciFacts(
        function=function,
        alive=None if word is None or len(word) < 2 else word[:2] != b"\xff\xff",
        bars=bars,
        override=None if override in {None, "", "(null)"} else override,
        has_reset=look.kind(f"{base}/reset") is not None,
        link=(look.line(f"{base}/current_link_speed") or "", look.line(f"{base}/current_link_width") or ""),
        link_max=(look.line(f"{base}/max_link_speed") or "", look.line(f"{base}/max_link_width") or ""),
        power_control=look.line(f"{base}/power/control") or "",
        d3cold_allowed=look.line(f"{base}/d3cold_allowed") == "1",
        # ACPI names power resources for a slot only where it can switch the slot off (_PR3)
        slot_cuts_power=any(
            look.kind(f"{_DEVICES}/{a}/firmware_node/power_resources_D3hot") is not None for a in above
        ),
        ari=None if ari is None else ari == "1",
        ports=tuple(p for a in above if (p := _port(look, a, ports)) is not None),
    )


def _port(look: Look, address: PciAddress, known: dict[PciAddress, PortFacts | None]) -> PortFacts | None:
    if address not in known:
        config = look.data(f"{_DEVICES}/{address}/config", max_bytes=_CONFIG_BYTES) or b""
        leads_down = forwards_downstream(config)
        known[address] = None if leads_down is False else PortFacts(
            address=address, acs=acs_control(config) if leads_down else None
        )  # fmt: skip
    return known[address]


def _bars(resource: str) -> tuple[Bar, ...]:
    """BARs that the device implements: lines of `resource` with flags (Documentation/ABI/testing/sysfs-bus-pci)."""
    found = []
    for index, line in enumerate(resource.splitlines()[:_BARS]):
        numbers = [_hex(word) for word in line.split()]
        match numbers:
            case [int(start), int(end), int(flags)] if flags and end >= start:
                found.append(Bar(index=index, start=start, end=end, flags=flags))
            case _:
                continue
    return tuple(found)
