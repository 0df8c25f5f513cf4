"""Protocols that adapters implement: exactly the methods their caller uses; tests hold the second one.

Every method of `Host` has the semantics of the system call it is named after and raises OSError with the kernel's
errno; conformance tests compare the implementations row by row. Paths are absolute on the host ("/sys/bus/pci/...").
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from kata_gpu.core.filekind import FileKind as FileKind  # noqa: PLC0414 - part of the port

if TYPE_CHECKING:
    from kata_gpu.core.checkpoint import Checkpoint
    from kata_gpu.core.inventory import Inventory

JsonObject = dict[str, Any]

READ_LIMIT = 1 << 20  # the largest text we read is modules.alias (about 1 MiB on distribution kernels)


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


class Probes(Protocol):
    """What no file tells. None where it was not tried: on a bundle, or without the privilege."""

    def command(self, *argv: str) -> str | None:
        """Standard output of a program that changes nothing; "" where the program is not installed."""
        ...

    def opens(self, path: str) -> bool | None:
        """Whether a device node opens read-write."""
        ...

    def connects(self, host: str, port: int) -> str | None:
        """Why no TCP connection comes about; "" where it does."""
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

    def ioctl(self, fd: int, request: int, argument: bytearray | int) -> int:
        """ioctl(2) with a number, or a buffer that the kernel may change. Descriptors are descriptors of this port."""
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


class NodeDevices(Protocol):
    """Devices of this node as the claim path needs them. Deadlines are seconds from the call."""

    def observe(self) -> "Inventory":
        """The inventory as it is now, with modes as last read back."""
        ...

    def verify(self, inventory: "Inventory", addresses: Collection[str]) -> "Inventory":
        """The same inventory with the modes of free devices read again from their registers."""
        ...

    def bind(self, address: str, *, deadline_s: float) -> None:
        """Bring the device and its companions to VFIO and wait for the node; nothing to do where it is there.

        TimedOut leaves the attempt under way, a retry continues it. Any other error means that it was rolled back.
        """
        ...

    def reset(self, address: str, *, deadline_s: float) -> None:
        """Reset the function. Raises when it could not be reset or does not answer afterwards."""
        ...

    def holders(self, inventory: "Inventory", addresses: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """By address, for people to read: who has the VFIO node of a device open. Free devices are left out."""
        ...


class ClaimStore(Protocol):
    """The checkpoint file and its lock, shared by two instances during a rolling update."""

    def locked(self, deadline_s: float) -> AbstractContextManager[None]:
        """Exclusive among threads and processes. TimedOut when it is not free in time."""
        ...

    def load(self) -> "Checkpoint":
        """The checkpoint; empty where there is none yet. Raises Malformed or Misconfigured as it was parsed."""
        ...

    def save(self, checkpoint: "Checkpoint") -> None:
        """Durable when it returns; unchanged when it raises Unavailable."""
        ...


class CdiFiles(Protocol):
    """Files of ours in the CDI directory, by name."""

    def names(self) -> tuple[str, ...]:
        """Names of our per-claim files, sorted."""
        ...

    def read(self, name: str) -> bytes | None:
        """Content, or None."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Atomic and durable; no partial or temporary file is left. Raises Unavailable."""
        ...

    def remove(self, name: str) -> None:
        """Gone when it returns; it may have been gone before. Raises Unavailable."""
        ...


class Kube(Protocol):
    """The Kubernetes API with objects as plain dicts. Paths are absolute ("/apis/resource.k8s.io/v1/...").

    Raises the errors of `core.api_errors`, and Unavailable for everything that a retry may cure.
    """

    def get(self, path: str, *, timeout_s: float) -> JsonObject:
        """One object."""
        ...

    def list(self, path: str, *, field_selector: str = "", timeout_s: float) -> tuple[list[JsonObject], str]:
        """All objects of a collection, and the resourceVersion to watch from."""
        ...

    def create(self, path: str, body: JsonObject, *, timeout_s: float) -> JsonObject:
        """The object as the server stored it."""
        ...

    def replace(self, path: str, body: JsonObject, *, timeout_s: float) -> JsonObject:
        """The object as the server stored it."""
        ...

    def merge(self, path: str, body: JsonObject, *, timeout_s: float) -> JsonObject:
        """JSON merge patch."""
        ...

    def apply(self, path: str, body: JsonObject, *, manager: str, timeout_s: float) -> JsonObject:
        """Server-side apply, forced: for fields that are ours alone."""
        ...

    def delete(self, path: str, *, uid: str = "", timeout_s: float) -> None:
        """Delete; not being there is success. With `uid` only that very object."""
        ...

    def watch(
        self, path: str, *, resource_version: str, field_selector: str = "", timeout_s: float
    ) -> Iterator[JsonObject]:
        """Events until the server closes. Raises Gone when the version is too old."""
        ...
