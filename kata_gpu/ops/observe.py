"""Read the inventory of a host from sysfs. Reads only attributes that never block, even on a wedged device."""

from dataclasses import replace

from kata_gpu.core.gpu import NVIDIA
from kata_gpu.core.inventory import Inventory, NodeFacts, Tee, find_devices
from kata_gpu.core.pci import PciAddress, PciFunction
from kata_gpu.errors import Malformed, Unavailable
from kata_gpu.ports import FileKind, HostFiles

PCI = "/sys/bus/pci/devices"
MAX_FUNCTIONS = 4096  # a full 8-way HGX host has some 300 functions


def observe(host: HostFiles) -> Inventory:
    """Inventory of the moment.

    A function that disappears while it is read (hot remove) is left out. Raises Unavailable without a PCI bus.
    """
    functions = _functions(host)
    devices = find_devices(functions)
    cdevs = [f.vfio_cdev for d in devices for f in d.unit if f.vfio_cdev is not None]
    iommufd = host.kind("/dev/iommu") is FileKind.CHAR_DEVICE and all(
        host.kind(f"/dev/vfio/devices/{cdev}") is FileKind.CHAR_DEVICE for cdev in cdevs
    )
    return Inventory(devices=devices, iommufd=iommufd, boot_id=boot_id(host), facts=_facts(host, functions))


def boot_id(host: HostFiles) -> str:
    """The kernel's identity of this boot; empty on a static tree without one."""
    return text(host, "/proc/sys/kernel/random/boot_id")


def text(host: HostFiles, path: str) -> str:
    """A one-line attribute, stripped; empty where it does not exist or cannot be read."""
    try:
        return host.read(path).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def link_name(host: HostFiles, path: str) -> str | None:
    """Last component of a link's target; None where there is no link."""
    try:
        return host.readlink(path).rstrip("/").rsplit("/", 1)[-1]
    except OSError:
        return None


def _functions(host: HostFiles) -> list[PciFunction]:
    try:
        names = host.listdir(PCI)
    except OSError as exc:
        raise Unavailable("no-pci", "the PCI bus cannot be read", where=PCI, got=exc.strerror) from exc
    if len(names) > MAX_FUNCTIONS:
        raise Malformed("pci-count", "too many PCI functions", where=PCI, expected=f"at most {MAX_FUNCTIONS}")
    addresses = [PciAddress.parse(name) for name in names]
    slots: dict[tuple[int, int, int], list[PciAddress]] = {}
    for a in addresses:
        slots.setdefault((a.domain, a.bus, a.slot), []).append(a)
    functions = (_function(host, a, slots[a.domain, a.bus, a.slot]) for a in addresses)
    return [f for f in functions if f is not None]


def _function(host: HostFiles, address: PciAddress, slot: list[PciAddress]) -> PciFunction | None:
    base = f"{PCI}/{address}"
    try:
        vendor, device, class_code = (int(host.read(f"{base}/{name}"), 16) for name in ("vendor", "device", "class"))
    except (OSError, ValueError):
        return None
    group = link_name(host, f"{base}/iommu_group")
    function = PciFunction(
        address=address,
        vendor=vendor,
        device=device,
        class_code=class_code,
        driver=link_name(host, f"{base}/driver"),
        iommu_group=int(group) if group is not None and group.isdecimal() else None,
        siblings=tuple(a for a in slot if a != address),
    )
    if function.is_bridge:
        return function
    function = replace(function, vfio_cdev=_cdev(host, base))
    return _details(host, base, function) if vendor == NVIDIA else function


def _details(host: HostFiles, base: str, function: PciFunction) -> PciFunction:
    numa = _int(text(host, f"{base}/numa_node"))
    return replace(
        function,
        subsystem=(
            _int(text(host, f"{base}/subsystem_vendor"), 16) or 0,
            _int(text(host, f"{base}/subsystem_device"), 16) or 0,
        ),
        numa_node=None if numa is None or numa < 0 else numa,
        pcie_root=_root(host, base),
        bars=parse_bars(text(host, f"{base}/resource")),
        reset_methods=tuple(text(host, f"{base}/reset_method").split()),
        power_state=text(host, f"{base}/power_state") or "unknown",
    )


def _cdev(host: HostFiles, base: str) -> str | None:
    try:
        names = host.listdir(f"{base}/vfio-dev")
    except OSError:
        return None
    return next((n for n in names if n.startswith("vfio")), None)


def _root(host: HostFiles, base: str) -> str:
    """PCIe root of a function, `pci0000:16`: the first component of its real path below /sys/devices."""
    try:
        target = host.readlink(base)
    except OSError:
        return ""
    return next((part for part in target.split("/") if part.startswith("pci")), "")


def parse_bars(resource: str) -> tuple[int, ...]:
    """Sizes of the six BAR slots from `resource`; 0 for an unused or unassigned one."""
    sizes = []
    for line in resource.splitlines()[:6]:
        fields = line.split()
        start, end = (_int(fields[0], 16) or 0, _int(fields[1], 16) or 0) if len(fields) == 3 else (0, 0)
        sizes.append(end - start + 1 if start and end > start else 0)
    return tuple(sizes)


def _int(value: str, base: int = 10) -> int | None:
    try:
        return int(value, base)
    except ValueError:
        return None


def _facts(host: HostFiles, functions: list[PciFunction]) -> NodeFacts:
    lockdown = text(host, "/sys/kernel/security/lockdown")
    tee = Tee.NONE
    if text(host, "/sys/module/kvm_amd/parameters/sev_snp") in {"Y", "1"}:
        tee = Tee.SNP
    elif text(host, "/sys/module/kvm_intel/parameters/tdx") in {"Y", "1"}:
        tee = Tee.TDX
    return NodeFacts(
        kernel=text(host, "/proc/sys/kernel/osrelease"),
        tee=tee,
        lockdown=lockdown[lockdown.find("[") + 1 : lockdown.find("]")] if "[" in lockdown else "none",
        iommu=any(f.iommu_group is not None for f in functions),
    )
