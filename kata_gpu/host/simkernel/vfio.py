"""VFIO's user API on a simulated machine: who may open what, group ownership, resets at open and last close."""

import errno
import struct

from kata_gpu.core import vfio as uapi
from kata_gpu.host.simkernel.drivers import held
from kata_gpu.host.simkernel.machine import VFIO_DRIVERS, Function, Handle, Machine
from kata_gpu.host.simkernel.resets import device_reset
from kata_gpu.host.simkernel.syscall import Blocked, fail
from kata_gpu.host.simkernel.waiters import settle

_REGION_SHIFT = 40
_FIRST_FD = 1000  # far from the descriptors of the process that runs the simulation
_COMMAND = 4
_MEMORY = 2
UNSAFE_INTERRUPTS = "vfio_iommu_type1/allow_unsafe_interrupts"


def open_node(machine: Machine, pid: int, kind: str, target: str) -> int:
    """open(2) of a VFIO or IOMMUFD node, or of physical memory."""
    if kind == "memory" and machine.lockdown != "none":
        raise fail(errno.EPERM)
    if kind == "group":
        group = int(target)
        users = [
            h
            for h in machine.handles
            if (h.kind == "group" and h.target == target)
            or (h.kind == "device" and machine.functions[h.target].group == group)
            or (h.kind == "cdev" and h.bound and machine.functions[h.target].group == group)
        ]
        if users:
            raise fail(errno.EBUSY)
    fd = _add(machine, pid, kind, target)
    if kind == "cdev" and (number := machine.functions[target].cdev) is not None:
        handle(machine, pid, fd).number = number
    return fd


def _add(machine: Machine, pid: int, kind: str, target: str, via: int = -1, *, bound: bool = False) -> int:
    fd = max([_FIRST_FD - 1, *(h.fd for h in machine.handles)]) + 1
    machine.handles.append(Handle(fd=fd, pid=pid, kind=kind, target=target, via=via, bound=bound))
    return fd


def handle(machine: Machine, pid: int, fd: int) -> Handle:
    """The open file behind a descriptor of a process. EBADF otherwise."""
    for candidate in machine.handles:
        if candidate.fd == fd and candidate.pid == pid:
            return candidate
    raise fail(errno.EBADF)


def close(machine: Machine, pid: int, fd: int) -> None:
    """close(2): the last one resets the function, and a waiting unbind goes on."""
    target = handle(machine, pid, fd)
    machine.handles.remove(target)
    if target.kind not in {"cdev", "device"}:
        return
    function = machine.functions[target.target]
    if held(machine, target.target):
        return
    if target.bound:
        _quiet_reset(machine, function)
    if function.pending:
        settle(machine, function)


def _quiet_reset(machine: Machine, function: Function) -> None:
    """The reset that the kernel does by itself; its failure is only logged."""
    try:
        device_reset(machine, function)
    except (OSError, Blocked):
        return


def viable(machine: Machine, group: int) -> bool:
    """Whether no member has a driver that uses the host's DMA API."""
    return not any(
        f.driver is not None and f.driver not in VFIO_DRIVERS | {"pcieport", "pci-stub"} for f in machine.members(group)
    )


def ioctl(machine: Machine, pid: int, fd: int, request: int, argument: bytearray | int) -> int:
    """ioctl(2) on any VFIO file."""
    file = handle(machine, pid, fd)
    if isinstance(argument, int):
        return _ioctl_value(machine, file, request)
    match file.kind, request:
        case "group", uapi.GROUP_GET_STATUS:
            flags = uapi.GROUP_VIABLE * viable(machine, int(file.target)) | uapi.GROUP_CONTAINER_SET * file.bound
            struct.pack_into("=I", argument, 4, flags)
            return 0
        case "group", uapi.GROUP_SET_CONTAINER:
            return _set_container(machine, pid, file, argument)
        case "group", uapi.GROUP_GET_DEVICE_FD:
            return _device_fd(machine, pid, file, argument)
        case "cdev", uapi.DEVICE_BIND_IOMMUFD:
            return _bind_iommufd(machine, pid, file, argument)
        case "device" | "cdev", uapi.DEVICE_GET_REGION_INFO:
            return _region_info(machine.functions[file.target], argument)
    raise fail(errno.ENOTTY)


def _ioctl_value(machine: Machine, file: Handle, request: int) -> int:
    match file.kind, request:
        case "container", uapi.GET_API_VERSION:
            return 0
        case "container", uapi.SET_IOMMU:
            return _set_iommu(machine, file)
        case "device" | "cdev", uapi.DEVICE_RESET:
            _require_access(file)
            function = machine.functions[file.target]
            if not function.resets:
                raise fail(errno.EINVAL)
            device_reset(machine, function)
            return 0
    raise fail(errno.ENOTTY)


def _set_container(machine: Machine, pid: int, group: Handle, argument: bytearray) -> int:
    container = handle(machine, pid, struct.unpack_from("=i", argument)[0])
    if container.kind != "container" or group.bound:
        raise fail(errno.EINVAL)
    if not viable(machine, int(group.target)):
        raise fail(errno.EPERM)
    group.bound, group.via = True, container.fd
    return 0


def _set_iommu(machine: Machine, container: Handle) -> int:
    if not any(h.kind == "group" and h.via == container.fd for h in machine.handles) or container.bound:
        raise fail(errno.EINVAL)
    if not _interrupts_safe(machine):
        raise fail(errno.EPERM)
    container.bound = True
    return 0


def _interrupts_safe(machine: Machine) -> bool:
    return machine.interrupt_remapping or machine.parameter(UNSAFE_INTERRUPTS)


def _device_fd(machine: Machine, pid: int, group: Handle, argument: bytearray) -> int:
    address = bytes(argument).split(b"\0", 1)[0].decode("ascii", "replace")
    container = next((h for h in machine.handles if h.fd == group.via and h.pid == pid), None)
    if container is None or not container.bound:
        raise fail(errno.EINVAL)
    function = machine.functions.get(address)
    if function is None or function.group != int(group.target) or function.driver not in VFIO_DRIVERS:
        raise fail(errno.ENODEV)
    _quiet_reset(machine, function)
    return _add(machine, pid, "device", address, group.fd, bound=True)


def _bind_iommufd(machine: Machine, pid: int, cdev: Handle, argument: bytearray) -> int:
    iommufd = handle(machine, pid, struct.unpack_from("=i", argument, 8)[0])
    function = machine.functions[cdev.target]
    if iommufd.kind != "iommufd" or function.group is None:
        raise fail(errno.EBADF)
    same = [h for h in machine.handles if h.bound and h.kind in {"cdev", "device"} and h.target == cdev.target]
    if any(h.kind == "group" and h.target == str(function.group) for h in machine.handles) or any(
        h.kind == "device" for h in same
    ):
        raise fail(errno.EBUSY)
    if same:
        raise fail(errno.EINVAL)
    other = any(
        h.kind == "cdev" and h.bound and h.via != iommufd.fd and machine.functions[h.target].group == function.group
        for h in machine.handles
    )
    if other or not viable(machine, function.group) or not _interrupts_safe(machine):
        raise fail(errno.EPERM)
    cdev.bound, cdev.via = True, iommufd.fd
    _quiet_reset(machine, function)
    return 0


def _require_access(file: Handle) -> None:
    if file.kind not in {"cdev", "device"} or not file.bound:
        raise fail(errno.EINVAL)


def _region_info(function: Function, argument: bytearray) -> int:
    index = struct.unpack_from("=I", argument, 8)[0]
    if index == uapi.REGION_CONFIG:
        size = 4096
    elif index < len(function.bars):
        size = function.bars[index]
    elif index < uapi.REGION_CONFIG:
        size = 0
    else:
        raise fail(errno.EINVAL)
    struct.pack_into("=QQ", argument, 16, size, index << _REGION_SHIFT)
    return 0


def pread(machine: Machine, pid: int, fd: int, size: int, offset: int) -> bytes:
    """pread(2) of a region. EIO for a BAR while memory decoding is off."""
    file = handle(machine, pid, fd)
    _require_access(file)
    function = machine.functions[file.target]
    index, at = offset >> _REGION_SHIFT, offset & (1 << _REGION_SHIFT) - 1
    if index == uapi.REGION_CONFIG:
        return config_space(function)[at : at + size]
    if index != uapi.REGION_BAR0 or not function.memory_enabled:
        raise fail(errno.EIO)
    value = function.chip.read(at, machine.now) if function.chip is not None else 0
    return value.to_bytes(4, "little")[:size]


def pwrite(machine: Machine, pid: int, fd: int, data: bytes, offset: int) -> int:
    """pwrite(2) of a region."""
    file = handle(machine, pid, fd)
    _require_access(file)
    function = machine.functions[file.target]
    index, at = offset >> _REGION_SHIFT, offset & (1 << _REGION_SHIFT) - 1
    if index == uapi.REGION_CONFIG:
        if at <= _COMMAND < at + len(data):
            function.memory_enabled = bool(data[_COMMAND - at] & _MEMORY)
    elif index != uapi.REGION_BAR0 or not function.memory_enabled:
        raise fail(errno.EIO)
    elif function.chip is not None:
        function.chip.write(at, int.from_bytes(data, "little"))
    return len(data)


def config_space(function: Function) -> bytes:
    """4096 bytes of configuration space: header, PM and PCIe capabilities, NVIDIA's DVSEC on its devices."""
    dead = function.chip is not None and function.chip.faults.get("dead") not in {None, False, "until-enumerated"}
    if dead or function.faults.get("cold"):
        return b"\xff" * 4096
    space = bytearray(4096)
    command = _MEMORY if function.memory_enabled else 0
    struct.pack_into("<HHHH", space, 0, function.vendor, function.device, command, 0x10)
    struct.pack_into("<I", space, 8, function.class_code << 8 | 0xA1)
    space[0x0E] = function.header_type
    struct.pack_into("<HH", space, 0x2C, *function.subsystem)
    space[0x34] = 0x60
    struct.pack_into("<BBHH", space, 0x60, 0x01, 0x78, 0x0003, 0x0008)  # power management
    port = 0x42 if function.header_type else 0x02
    struct.pack_into("<BBHI", space, 0x78, 0x10, 0, port, 1 << 28 if "flr" in function.offered_resets else 0)  # PCIe
    if function.header_type:
        struct.pack_into("<IHH", space, 0x100, 0x000D | 1 << 16, 0x001D, 0x001D)  # ACS: SV, RR, CR, UF on
    elif function.vendor == 0x10DE:
        struct.pack_into("<III", space, 0x100, 0x0023 | 1 << 16, 0x10DE | 0x18 << 20, 0)  # DVSEC, firewall open
    return bytes(space)
