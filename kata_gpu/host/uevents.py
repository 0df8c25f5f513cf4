"""Kernel uevents of PCI and VFIO: a hint to look again, never a fact by itself (a lost one is found by the next look).

Source: Linux, netlink(7) NETLINK_KOBJECT_UEVENT; messages are zero-separated `KEY=value` after a header.
"""

import errno
import socket
import threading
from collections.abc import Callable

_NETLINK_KOBJECT_UEVENT = 15
_KERNEL_GROUP = 1
MAX_EVENT = 8192  # the kernel's own limit is 2 KiB of environment
SUBSYSTEMS = (b"SUBSYSTEM=pci", b"SUBSYSTEM=vfio", b"SUBSYSTEM=vfio-dev")


class UeventListener:
    """Calls `wake` for each event of a device that may be ours. Without the right to listen it stays silent."""

    def __init__(self, wake: Callable[[], None], *, connect: Callable[[], socket.socket] | None = None) -> None:
        """`connect` gives the socket that messages come from; the kernel's by default."""
        self._wake = wake
        self._connect = connect or _kernel_socket
        self._socket: socket.socket | None = None

    def start(self) -> bool:
        """False where the kernel does not let us: the periodic look has to do."""
        try:
            opened = self._connect()
        except OSError:
            return False
        self._socket = opened
        threading.Thread(target=self._run, args=(opened,), name="uevents", daemon=True).start()
        return True

    def stop(self) -> None:
        """End."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _run(self, opened: socket.socket) -> None:
        while True:
            try:
                data = opened.recv(MAX_EVENT)
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    return
                self._wake()  # messages were lost, ours perhaps among them
                continue
            if concerns_us(data):
                self._wake()


def _kernel_socket() -> socket.socket:
    opened = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
    try:
        opened.bind((0, _KERNEL_GROUP))
    except OSError:
        opened.close()
        raise
    return opened


def concerns_us(data: bytes) -> bool:
    """Whether a message is about a PCI or VFIO device."""
    return any(field in SUBSYSTEMS for field in data.split(b"\0"))
