"""Exclusive access to devices through VFIO: iommufd and cdevs where the kernel has them, else container and groups.

Holding a device here keeps every VM and every other VFIO user out. The kernel resets a function when it is opened and
when its last file is closed; registers are reached through the region API, which works under kernel lockdown.

Opening a device that answers takes milliseconds; whether it answers is asked before, in a child with a deadline. One
that dies in between, or in a reset, keeps the calling thread until the kernel gives up: 60 s for each reset method that
it tries (PCIE_RESET_READY_POLL_MS), 70 to 208 s measured. A child would not help: whoever closes the last file waits
for the same reset, and unlike an unbind of a device in use it always ends. The caller's lock is held meanwhile.
"""

import errno
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from typing import Self

from kata_gpu.core import vfio
from kata_gpu.core.pci import PciFunction
from kata_gpu.errors import InUse, KataGpuError, TimedOut, Unavailable
from kata_gpu.ports import FileKind, Host, HostFiles

ALIVE_S = 10.0  # reading configuration space wakes the device; 13 to 78 ms on a healthy one
_COMMAND = 4
_COMMAND_MEMORY = 2
_HINTS = {
    errno.EPERM: "interrupt remapping is off, or a group member has a host driver: `kata-gpu doctor` IOM-02, IOM-08",
    errno.EACCES: "run as root",
}


class VfioDevice:
    """One open device: 32-bit registers of BAR0, configuration space, reset."""

    def __init__(self, host: Host, fd: int, name: str) -> None:
        """`fd` is the device's file, bound or in its container already."""
        self._host = host
        self._fd = fd
        self.name = name
        self._bar0 = self._region(vfio.REGION_BAR0)
        self._config = self._region(vfio.REGION_CONFIG)
        self.enable_memory()

    def read32(self, offset: int) -> int:
        """One register of BAR0."""
        try:
            return int.from_bytes(self._host.pread(self._fd, 4, self._bar0 + offset), "little")
        except OSError as exc:
            raise _failed("register-read", "reading a register failed", f"{self.name} BAR0 {offset:#x}", exc) from exc

    def write32(self, offset: int, value: int) -> None:
        """Set one register of BAR0."""
        try:
            self._host.pwrite(self._fd, value.to_bytes(4, "little"), self._bar0 + offset)
        except OSError as exc:
            raise _failed("register-write", "writing a register failed", f"{self.name} BAR0 {offset:#x}", exc) from exc

    def config32(self, offset: int) -> int:
        """One dword of configuration space."""
        try:
            return int.from_bytes(self._host.pread(self._fd, 4, self._config + offset), "little")
        except OSError as exc:
            raise _failed("config-read", "reading configuration space failed", self.name, exc) from exc

    def enable_memory(self) -> None:
        """Turn memory decoding on; a reset turns it off, and BAR access is EIO without it."""
        try:
            command = int.from_bytes(self._host.pread(self._fd, 2, self._config + _COMMAND), "little")
            value = (command | _COMMAND_MEMORY).to_bytes(2, "little")
            self._host.pwrite(self._fd, value, self._config + _COMMAND)
        except OSError as exc:
            raise _failed("config-write", "writing configuration space failed", self.name, exc) from exc

    def reset(self) -> None:
        """Function-level reset."""
        try:
            self._host.ioctl(self._fd, vfio.DEVICE_RESET, 0)
        except OSError as exc:
            raise _failed("reset", "the device cannot be reset", self.name, exc) from exc
        self.enable_memory()

    def _region(self, index: int) -> int:
        argument = vfio.region_info(index)
        try:
            self._host.ioctl(self._fd, vfio.DEVICE_GET_REGION_INFO, argument)
        except OSError as exc:
            raise _failed("region", "the device shows no such region", self.name, exc) from exc
        size, offset = vfio.parse_region_info(argument)
        if not size:
            raise Unavailable("region", "the region is empty", where=f"{self.name} region {index}")
        return offset


class VfioSession:
    """Opens devices and holds them until the `with` block ends."""

    def __init__(self, host: Host, *, iommufd: bool) -> None:
        """Nothing is opened yet."""
        self._host = host
        self._iommufd = iommufd
        self._stack = ExitStack()
        self._shared = -1  # the iommufd, or the container
        self._groups: dict[int, int] = {}
        self.devices: dict[PciFunction, VfioDevice] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def open(self, functions: Iterable[PciFunction]) -> None:
        """Take all of them, or raise InUse, Unavailable. What was taken is given back at the end of the block."""
        functions = tuple(functions)
        for function in functions:
            self._require_alive(function)
        for function in functions:
            fd = self._open_cdev(function) if self._iommufd else self._open_by_group(function)
            self.devices[function] = VfioDevice(self._host, fd, str(function))

    def hold(self, functions: Iterable[PciFunction]) -> None:
        """Keep everybody else out without touching the devices: an open group excludes VMs on either API.

        Raises Unavailable.
        """
        for group in dict.fromkeys(f.iommu_group for f in functions):
            if group is None:
                raise Unavailable("no-group", "the device has no IOMMU group")
            self._open(f"/dev/vfio/{group}", f"group {group}")

    def _require_alive(self, function: PciFunction) -> None:
        """Opening a dead device blocks for minutes in the kernel, so ask its configuration space first, in a child."""
        if not responds(self._host, function):
            raise device_dead(str(function))

    def _open_cdev(self, function: PciFunction) -> int:
        if function.vfio_cdev is None:
            raise Unavailable(
                "no-cdev",
                "the device has no VFIO character device",
                where=str(function),
                hint="it is not bound, or the kernel lacks CONFIG_VFIO_DEVICE_CDEV: `kata-gpu doctor` IOM-07",
            )
        if self._shared < 0:
            self._shared = self._open("/dev/iommu", str(function))
        fd = self._open(f"/dev/vfio/devices/{function.vfio_cdev}", str(function))
        self._ioctl(fd, vfio.DEVICE_BIND_IOMMUFD, vfio.bind_iommufd(self._shared), str(function))
        return fd

    def _open_by_group(self, function: PciFunction) -> int:
        group = function.iommu_group
        if group is None:
            raise Unavailable("no-group", "the device has no IOMMU group", where=str(function))
        if self._shared < 0:
            self._shared = self._open("/dev/vfio/vfio", str(function))
        if group not in self._groups:
            first = not self._groups
            self._groups[group] = self._open(f"/dev/vfio/{group}", str(function))
            self._ioctl(self._groups[group], vfio.GROUP_SET_CONTAINER, vfio.descriptor(self._shared), str(function))
            if first:
                self._ioctl(self._shared, vfio.SET_IOMMU, vfio.TYPE1V2_IOMMU, str(function))
        name = bytearray(str(function.address).encode() + b"\0")
        fd = self._ioctl(self._groups[group], vfio.GROUP_GET_DEVICE_FD, name, str(function))
        self._stack.callback(self._close, fd)
        return fd

    def _open(self, path: str, where: str) -> int:
        if self._host.kind(path) is not FileKind.CHAR_DEVICE:
            raise Unavailable("no-vfio-node", "the VFIO node is not there", where=where, got=path, hint="kata-gpu bind")
        try:
            fd = self._host.open(path)
        except OSError as exc:
            raise _failed("vfio-open", "cannot open the VFIO node", f"{where} {path}", exc) from exc
        self._stack.callback(self._close, fd)
        return fd

    def _close(self, fd: int) -> None:
        with suppress(OSError):
            self._host.close(fd)

    def _ioctl(self, fd: int, request: int, argument: bytearray | int, where: str) -> int:
        try:
            return self._host.ioctl(fd, request, argument)
        except OSError as exc:
            raise _failed("vfio-ioctl", f"VFIO request {request:#x} failed", where, exc) from exc


def responds(host: HostFiles, function: PciFunction) -> bool:
    """Whether its configuration space is more than all ones. Raises Unavailable, TimedOut."""
    path = f"/sys/bus/pci/devices/{function.address}/config"
    try:
        return host.read(path, max_bytes=4, deadline_s=ALIVE_S) != b"\xff" * 4
    except OSError as exc:
        raise _failed("config-read", "reading configuration space failed", path, exc) from exc


def device_dead(where: str) -> Unavailable:
    """The error for a device that answers all ones."""
    return Unavailable(
        "device-dead",
        "the device does not answer",
        where=where,
        got="all ones",
        hint=f"`kata-gpu recover {where}` resets its slot; see `kata-gpu doctor` IOM-14",
    )


def _failed(code: str, what: str, where: str, exc: OSError) -> KataGpuError:
    """EBUSY from either API, and EINVAL from a second bind to an iommufd, mean that somebody else has the device."""
    name = errno.errorcode.get(exc.errno or 0, "unknown error")
    if exc.errno == errno.EBUSY or (code == "vfio-ioctl" and exc.errno == errno.EINVAL):
        return InUse("in-use", "somebody else has the device", where=where, got=name, hint="kata-gpu vfio status")
    if exc.errno == errno.ETIMEDOUT:
        return TimedOut(code, what, where=where, got=name)
    return Unavailable(code, what, where=where, got=name, hint=_HINTS.get(exc.errno or 0, ""))
