"""The file tree of a simulated machine: directories made on demand, attributes as show and store functions."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from kata_gpu.host.simkernel import drivers, vfio
from kata_gpu.host.simkernel.drivers import Blocked, fail
from kata_gpu.host.simkernel.machine import VFIO_DRIVERS, Function, Machine

MAX_LINKS = 40  # the kernel's own limit


class Link(str):
    """A symbolic link's target."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Attr:
    """A file: what a read shows and what a write does; None where not permitted."""

    show: Callable[[], bytes] | None = None
    store: Callable[[bytes], None] | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A character device: kind and target for `vfio.open_node`; kind "plain" opens to nothing."""

    kind: str
    target: str = ""


class Socket:
    """A unix socket."""


Node: TypeAlias = "Mapping[str, Node | Callable[[], Node]] | Link | Attr | Device | Socket"
Dir: TypeAlias = "dict[str, Node | Callable[[], Node]]"


def text(value: object) -> Attr:
    """A read-only one-line file."""
    return Attr(show=f"{value}\n".encode)


def resolve(root: Dir, path: str, *, follow: bool = True) -> Node:
    """Walk a path. ENOENT, ENOTDIR and ELOOP as the kernel gives them."""
    links = 0
    todo = [p for p in reversed(path.split("/")) if p]
    trail: list[Node] = [root]
    while todo:
        name = todo.pop()
        if name == ".":
            continue
        if name == "..":
            if len(trail) > 1:
                trail.pop()
            continue
        here = trail[-1]
        if not isinstance(here, Mapping):
            raise fail(errno.ENOTDIR)
        if name not in here:
            raise fail(errno.ENOENT)
        node = here[name]
        if callable(node):
            node = node()
        if isinstance(node, Link) and (todo or follow):
            links += 1
            if links > MAX_LINKS:
                raise fail(errno.ELOOP)
            if node.startswith("/"):
                trail = [root]
            todo.extend(p for p in reversed(node.split("/")) if p)
            continue
        trail.append(node)
    return trail[-1]


def build(machine: Machine) -> Dir:
    """The root directory."""
    root: Dir = {}
    for path, content in machine.files.items():
        place(root, path, Attr(show=content.encode))
    for name in (drivers.UNSAFE_NOIOMMU, vfio.UNSAFE_INTERRUPTS):
        module, _, parameter = name.partition("/")
        path = f"/sys/module/{module}/parameters/{parameter}"
        if path in machine.files:
            place(root, path, _switch(machine, path))
    for path, target in machine.links.items():
        place(root, path, Link(target))
    for path, kind in machine.nodes.items():
        place(root, path, Device("plain") if kind == "char-device" else Socket())
    place(root, "/proc/sys/kernel/random/boot_id", text(machine.boot_id))
    place(root, "/proc/sys/kernel/tainted", text(machine.tainted))
    place(root, "/proc/sys/kernel/osrelease", text(machine.kernel.release))
    place(root, "/proc/self/ns/pid", Link("pid:[4026531836]"))
    modes = ("none", "integrity", "confidentiality")
    place(
        root,
        "/sys/kernel/security/lockdown",
        text(" ".join(f"[{m}]" if m == machine.lockdown else m for m in modes)),
    )
    place(root, "/proc/modules", Attr(show=lambda: _modules(machine)))
    for process in machine.processes.values():
        place(root, f"/proc/{process.pid}", _process(machine, process.pid))
    for name in machine.modules:
        place(root, f"/sys/module/{name}/initstate", text("live"))
    devices = _directory(root, "/sys/devices")
    for function in machine.functions.values():
        here = devices
        for part in function.parent.split("/"):
            child = here.setdefault(part, {})
            assert isinstance(child, dict)
            here = child
        make = partial(_function, machine, function)
        if function.header_type:  # a bridge's directory also holds what is behind it
            directory = here.setdefault(function.address, {})
            assert isinstance(directory, dict)
            directory.update(make())
        else:
            here[function.address] = make
    _buses(root, machine)
    _nodes(root, machine)
    return root


def _switch(machine: Machine, path: str) -> Attr:
    """A boolean module parameter that can be changed at run time."""

    def store(data: bytes) -> None:
        value = data.decode("ascii", "replace").strip()
        if value not in {"Y", "y", "1", "N", "n", "0"}:
            raise fail(errno.EINVAL)
        machine.files[path] = "Y\n" if value in {"Y", "y", "1"} else "N\n"

    return Attr(show=machine.files[path].encode, store=store)


def _directory(root: Dir, path: str) -> Dir:
    here = root
    for part in path.strip("/").split("/"):
        child = here.setdefault(part, {})
        assert isinstance(child, dict), path
        here = child
    return here


def place(root: Dir, path: str, node: "Node | Callable[[], Node]") -> None:
    """Put a node at a path, its parents made as needed."""
    parent, _, name = path.rpartition("/")
    if isinstance(node, dict):
        _directory(root, path).update(node)
    else:
        (_directory(root, parent) if parent else root)[name] = node


def _up(function: Function) -> str:
    return "../" * (function.path.count("/") + 1)


def _function(machine: Machine, f: Function) -> Dir:
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
        "resource": Attr(show=lambda: resource(f)),
        "config": Attr(show=lambda: vfio.config_space(f), store=config),
        "enable": Attr(show=lambda: b"%d\n" % (f.driver is not None and f.driver not in VFIO_DRIVERS), store=enable),
        "modalias": text(_modalias(f)),
        "uevent": Attr(show=uevent),
        "driver_override": Attr(show=override, store=lambda data: drivers.set_override(machine, f, data)),
        "remove": Attr(store=lambda data: drivers.remove(machine, f, data)),
        "rescan": Attr(store=lambda data: drivers.rescan(machine, data)),
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
        entries["reset"] = Attr(store=lambda data: drivers.reset(machine, f, data))
        entries["reset_method"] = Attr(
            show=f"{' '.join(f.resets)}\n".encode, store=lambda data: drivers.set_reset_method(f, data)
        )
    if f.driver is not None:
        entries["driver"] = Link(f"{up}../bus/pci/drivers/{f.driver}")
    if f.group is not None:
        entries["iommu_group"] = Link(f"{up}../kernel/iommu_groups/{f.group}")
    if f.cdev is not None:
        entries["vfio-dev"] = {f"vfio{f.cdev}": {"dev": text(f"511:{f.cdev}")}}
    return entries


def resource(f: Function) -> bytes:
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


def _buses(root: Dir, machine: Machine) -> None:
    bus = _directory(root, "/sys/bus/pci")
    bus["devices"] = {f.address: Link(f"../../../devices/{f.path}") for f in machine.functions.values()}
    bus["drivers"] = {name: partial(_driver, machine, name) for name in machine.drivers}
    bus["drivers_probe"] = Attr(store=lambda data: drivers.drivers_probe(machine, data))
    bus["rescan"] = Attr(store=lambda data: drivers.rescan(machine, data))

    def autoprobe(data: bytes) -> None:
        machine.autoprobe = data.strip() == b"1"

    bus["drivers_autoprobe"] = Attr(show=lambda: b"%d\n" % machine.autoprobe, store=autoprobe)
    groups = _directory(root, "/sys/kernel/iommu_groups")
    kind = "identity" if {"iommu=pt", "iommu.passthrough=1"} & set(machine.command_line) else "DMA-FQ"
    for function in machine.functions.values():
        if function.group is None:
            continue
        group = groups.setdefault(
            str(function.group), {"type": text(kind), "reserved_regions": text(""), "devices": {}}
        )
        assert isinstance(group, dict)
        if function.noiommu:
            group["name"] = text("vfio-noiommu")
        members = group["devices"]
        assert isinstance(members, dict)
        members[function.address] = Link(f"../../../../devices/{function.path}")
    _directory(root, "/sys/class/iommu").update({"dmar0": {"devices": {}}} if machine.iommu else {})
    _directory(root, "/sys/class/vfio-dev").update(
        {f"vfio{f.cdev}": Link(f"../../devices/{f.path}") for f in machine.functions.values() if f.cdev is not None}
    )


def _driver(machine: Machine, name: str) -> Dir:
    entries: Dir = {
        "bind": Attr(store=lambda data: drivers.bind(machine, name, data)),
        "unbind": Attr(store=lambda data: drivers.unbind(machine, name, data)),
        "new_id": Attr(store=lambda data: drivers.add_id(machine, name, data)),
        "remove_id": Attr(store=lambda data: drivers.remove_id(machine, name, data)),
    }
    entries.update(
        {f.address: Link(f"../../../../devices/{f.path}") for f in machine.functions.values() if f.driver == name}
    )
    module = next((m for m, d in machine.installed_modules.items() if d == name), None)
    if module in machine.modules:
        entries["module"] = Link(f"../../../../module/{module}")
    return entries


def _nodes(root: Dir, machine: Machine) -> None:
    dev = _directory(root, "/dev")
    if "vfio" in machine.modules:
        nodes: Dir = {"vfio": Device("container")}
        grouped = [
            f for f in machine.functions.values() if {f.driver, f.pending} & VFIO_DRIVERS and f.group is not None
        ]
        nodes.update({f"{'noiommu-' * f.noiommu}{f.group}": Device("group", str(f.group)) for f in grouped})
        if machine.kernel.iommufd:
            nodes["devices"] = {f"vfio{f.cdev}": Device("cdev", f.address) for f in grouped if f.cdev is not None}
        dev["vfio"] = nodes
    dev["mem"] = Device("memory")
    if "iommufd" in machine.modules:
        dev["iommu"] = Device("iommufd")


def _modules(machine: Machine) -> bytes:
    return "".join(f"{name} 16384 0 - Live 0x0000000000000000\n" for name in machine.modules).encode()


def _process(machine: Machine, pid: int) -> Dir:
    process = machine.processes[pid]
    descriptors: Dir = {str(3 + i): Link(name) for i, name in enumerate(process.files)}
    mapped = process.maps_device
    for handle in machine.handles:
        if handle.pid != pid:
            continue
        match handle.kind:
            case "group":
                target = f"/dev/vfio/{handle.target}"
            case "cdev":
                gone = machine.functions[handle.target].cdev != handle.number
                target = f"/dev/vfio/devices/vfio{handle.number}{' (deleted)' * gone}"
            case "device":
                target = "anon_inode:[vfio-device]"
            case "container":
                target = "/dev/vfio/vfio"
            case _:
                target = "/dev/iommu"
        descriptors[str(handle.fd)] = Link(target)
    names = [*(["anon_inode:[vfio-device]"] if mapped else []), *process.mapped]
    line = "".join(f"7f0000000000-7f0001000000 rw-s 00000000 00:0e 1                          {n}\n" for n in names)
    return {
        "fd": descriptors,
        "maps": Attr(show=line.encode),
        "comm": text(process.comm),
        "cmdline": Attr(show=lambda: "\0".join([*process.cmdline, ""]).encode()),
        "cgroup": text(f"0::{process.cgroup}"),
        "wchan": Attr(show=lambda: b"vfio_unregister_group_dev" if process.waits_for else b"0"),
        "stat": text(f"{pid} ({process.comm}) {'D' if process.waits_for else 'S'} 1"),
    }
