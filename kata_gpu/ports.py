"""Protocols that adapters implement: exactly the methods their caller uses; tests hold the second one.

Every method of `Host` has the semantics of the system call it is named after and raises OSError with the kernel's
errno; conformance tests compare the implementations row by row. Paths are absolute on the host ("/sys/bus/pci/...").
"""

from enum import StrEnum
from typing import Protocol

READ_LIMIT = 1 << 20  # the largest text we read is modules.alias (about 1 MiB on distribution kernels)


class FileKind(StrEnum):
    """What a path leads to, links followed."""

    FILE = "file"
    DIRECTORY = "directory"
    CHAR_DEVICE = "char-device"
    SOCKET = "socket"
    OTHER = "other"


class HostFiles(Protocol):
    """Reading a host: all that inventory and doctor need."""

    def read(self, path: str, *, max_bytes: int = READ_LIMIT, deadline_s: float | None = None) -> bytes:
        """Contents, cut at `max_bytes`.

        With `deadline_s` the read happens in a disposable child (reading `driver_override` of a device that is being
        unbound blocks forever); TimedOut when it does not answer.
        """
        ...

    def readlink(self, path: str) -> str:
        """Target of a symbolic link, as stored."""
        ...

    def listdir(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        ...

    def kind(self, path: str) -> FileKind | None:
        """What is there; None where nothing is or where it may not be seen."""
        ...


class Host(HostFiles, Protocol):
    """A host that can be changed: sysfs writes with a deadline, and the VFIO user API on file descriptors."""

    def write(self, path: str, data: bytes, *, deadline_s: float) -> None:
        """One write(2) in a disposable child. TimedOut when it does not return: the device may be wedged."""
        ...

    def modprobe(self, module: str, *, deadline_s: float) -> None:
        """Load a kernel module on the host."""
        ...

    def open(self, path: str) -> int:
        """open(2), read-write."""
        ...

    def close(self, fd: int) -> None:
        """close(2)."""
        ...

    def ioctl(self, fd: int, request: int, argument: bytearray) -> int:
        """ioctl(2) with a buffer that the kernel may change. Descriptors inside are descriptors of this port."""
        ...

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """pread(2)."""
        ...

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite(2)."""
        ...

    def monotonic(self) -> float:
        """Seconds on the host's clock; only differences mean anything."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait on the host's clock."""
        ...
