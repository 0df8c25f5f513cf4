"""The sysfs directory of one PCI function: attributes that show and change it by the driver core's rules."""

import errno

from kata_gpu.host.simkernel import drivers, hotplug, resets, vfio
from kata_gpu.host.simkernel.machine import VFIO_DRIVERS, Function, Machine
from kata_gpu.host.simkernel.nodes import Attr, Dir, Link, text
from kata_gpu.host.simkernel.syscall import Blocked, fail


def _up(function: Function) -> str:
    return "../" * (function.path.count("/") + 1)


def function_files(machine: Machine, f: Function) -> Dir:
    """Attributes of /sys/devices/.../<address>; what can block raises Blocked when it is used."""
    up = _up(f)

    def override() -> bytes:
        if f.pending and machine.kernel.override_blocks:
            raise Blocked
        return f"{'(null)' if f.override is None else f.override}\n".encode()

    def uevent() -> bytes:
        if f.pending and machine.kernel.uevent_read_blocks:
            raise Blocked
        return _uevent(f)

    def power(data: bytes) -> None:
        value = data.decode("ascii", "replace").strip()
        if value not in {"on", "auto"}:
            raise fail(errno.EINVAL)
        f.power_control = value
        if value == "on":
            f.faults.pop("cold", None)

    def enable(_data: bytes) -> None:
        if f.driver is not None:
            raise fail(errno.EBUSY)

    def config(_data: bytes) -> None:
        if machine.lockdown != "none":
            raise fail(errno.EPERM)

    suspended = f.driver in VFIO_DRIVERS and f.power_control == "auto" and not drivers.held(machine, f.address)
    entries: Dir = {
        "vendor": text(f"0x{f.vendor:04x}"),
        "device": text(f"0x{f.device:04x}"),
        "class": text(f"0x{f.class_code:06x}"),
        "subsystem_vendor": text(f"0x{f.subsystem[0]:04x}"),
        "subsystem_device": text(f"0x{f.subsystem[1]:04x}"),
        "revision": text("0xa1"),
        "numa_node": text(f.numa),
        "resource": Attr(show=lambda: _resource(f)),
        "config": Attr(show=lambda: vfio.config_space(f), store=config),
        "enable": Attr(show=lambda: b"%d\n" % (f.driver is not None and f.driver not in VFIO_DRIVERS), store=enable),
        "modalias": text(_modalias(f)),
        "uevent": Attr(show=uevent),
        "driver_override": Attr(show=override, store=lambda data: drivers.set_override(machine, f, data)),
        "remove": Attr(store=lambda data: hotplug.remove(machine, f, data)),
        "rescan": Attr(store=lambda data: hotplug.rescan(machine, data)),
        "power_state": text("D3cold" if f.faults.get("cold") else "D3hot" if suspended else "D0"),
        "power": {
            "control": Attr(show=f"{f.power_control}\n".encode, store=power),
            "runtime_status": text("suspended" if suspended else "active"),
        },
        "d3cold_allowed": text(1),
        "subsystem": Link(f"{up}../bus/pci"),
    }
    entries.update({name: text(value) for name, value in f.attributes.items()})
    if f.offered_resets:
        entries["reset"] = Attr(store=lambda data: resets.reset(machine, f, data))
        entries["reset_method"] = Attr(
            show=f"{' '.join(f.resets)}\n".encode, store=lambda data: resets.set_reset_method(f, data)
        )
    if f.driver is not None:
        entries["driver"] = Link(f"{up}../bus/pci/drivers/{f.driver}")
    if f.group is not None:
        entries["iommu_group"] = Link(f"{up}../kernel/iommu_groups/{f.group}")
    if f.cdev is not None:
        entries["vfio-dev"] = {f"vfio{f.cdev}": {"dev": text(f"511:{f.cdev}")}}
    return entries


def _resource(f: Function) -> bytes:
    """13 lines `start end flags`; 64-bit BARs occupy even slots."""
    lines = []
    start = 0x200000000000 + (int(f.address[5:7], 16) << 40)
    for index in range(13):
        size = f.bars[index] if index < len(f.bars) else 0
        if size:
            lines.append(f"0x{start:016x} 0x{start + size - 1:016x} 0x{0x14220C:016x}")
            start += size * 2
        else:
            lines.append(" ".join(["0x" + "0" * 16] * 3))
    return ("\n".join(lines) + "\n").encode()


def _modalias(f: Function) -> str:
    base, sub, interface = f.class_code >> 16, f.class_code >> 8 & 0xFF, f.class_code & 0xFF
    return (
        f"pci:v{f.vendor:08X}d{f.device:08X}sv{f.subsystem[0]:08X}sd{f.subsystem[1]:08X}"
        f"bc{base:02X}sc{sub:02X}i{interface:02X}"
    )


def _uevent(f: Function) -> bytes:
    lines = [f"DRIVER={f.driver}"] if f.driver else []
    lines += [
        f"PCI_CLASS={f.class_code:X}",
        f"PCI_ID={f.vendor:04X}:{f.device:04X}",
        f"PCI_SUBSYS_ID={f.subsystem[0]:04X}:{f.subsystem[1]:04X}",
        f"PCI_SLOT_NAME={f.address}",
        f"MODALIAS={_modalias(f)}",
    ]
    return ("\n".join(lines) + "\n").encode()
