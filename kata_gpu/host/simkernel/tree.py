"""The files of a simulated machine: /sys, /proc and /dev, as its state has them."""

import errno
from functools import partial

from kata_gpu.host.simkernel import drivers, hotplug, vfio
from kata_gpu.host.simkernel.function_files import function_files
from kata_gpu.host.simkernel.machine import VFIO_DRIVERS, Machine
from kata_gpu.host.simkernel.nodes import Attr, Device, Dir, Link, Socket, directory, place, text
from kata_gpu.host.simkernel.syscall import fail


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
    devices = directory(root, "/sys/devices")
    for function in machine.functions.values():
        here = devices
        for part in function.parent.split("/"):
            child = here.setdefault(part, {})
            assert isinstance(child, dict)
            here = child
        make = partial(function_files, machine, function)
        if function.header_type:  # a bridge's directory also holds what is behind it
            bridge = here.setdefault(function.address, {})
            assert isinstance(bridge, dict)
            bridge.update(make())
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


def _buses(root: Dir, machine: Machine) -> None:
    bus = directory(root, "/sys/bus/pci")
    bus["devices"] = {f.address: Link(f"../../../devices/{f.path}") for f in machine.functions.values()}
    bus["drivers"] = {name: partial(_driver, machine, name) for name in machine.drivers}
    bus["drivers_probe"] = Attr(store=lambda data: drivers.drivers_probe(machine, data))
    bus["rescan"] = Attr(store=lambda data: hotplug.rescan(machine, data))

    def autoprobe(data: bytes) -> None:
        machine.autoprobe = data.strip() == b"1"

    bus["drivers_autoprobe"] = Attr(show=lambda: b"%d\n" % machine.autoprobe, store=autoprobe)
    groups = directory(root, "/sys/kernel/iommu_groups")
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
    directory(root, "/sys/class/iommu").update({"dmar0": {"devices": {}}} if machine.iommu else {})
    directory(root, "/sys/class/vfio-dev").update(
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
    dev = directory(root, "/dev")
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
