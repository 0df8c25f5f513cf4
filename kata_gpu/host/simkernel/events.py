"""Uevents of a simulated host, as the kernel writes them: a datagram for each listener that has a socket in its folder.

A hint like the kernel's own: a listener that is slow or gone loses messages, and nobody waits for it.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata_gpu.host.simkernel.machine import Machine

Shape = dict[str, tuple[str, str | None]]  # address -> path below /sys/devices, driver
FOLDER = "uevents"


def shape(machine: Machine) -> Shape:
    """What events are about: which functions there are, and on which drivers."""
    return {address: (f.path, f.driver) for address, f in machine.functions.items()}


def listen(directory: Path) -> socket.socket:
    """The socket of a new listener. Raises OSError."""
    (directory / FOLDER).mkdir(parents=True, exist_ok=True)
    opened = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    with _short(directory / FOLDER) as folder:
        opened.bind(str(folder / f"{os.getpid()}-{secrets.token_hex(4)}"))
    return opened


def tell(directory: Path, before: Shape, after: Shape) -> None:
    """One message to every listener for each function that came, went, or changed its driver."""
    if before == after or not (directory / FOLDER).is_dir():
        return
    messages = [_message(a, before.get(a), after.get(a)) for a in sorted(before.keys() | after.keys())]
    with _short(directory / FOLDER) as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for listener in folder.iterdir():
            try:
                for message in filter(None, messages):
                    sender.sendto(message, socket.MSG_DONTWAIT, str(listener))
            except ConnectionRefusedError:  # its process is gone
                listener.unlink(missing_ok=True)
            except (BlockingIOError, FileNotFoundError):
                continue


def _message(address: str, before: tuple[str, str | None] | None, after: tuple[str, str | None] | None) -> bytes:
    if before == after:
        return b""
    if before is None or after is None:
        action = "add" if before is None else "remove"
    else:
        action = "bind" if after[1] else "unbind"
    path = (after or before or ("",))[0]
    fields = (f"ACTION={action}", f"DEVPATH=/devices/{path}", "SUBSYSTEM=pci", f"PCI_SLOT_NAME={address}")
    return "\0".join((f"{action}@/devices/{path}", *fields, "")).encode()


@contextmanager
def _short(directory: Path) -> Iterator[Path]:
    """The folder by a name of a few bytes: a socket's path has 107."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
