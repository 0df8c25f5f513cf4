"""Files by position: open for a while, read exactly, write everything. Threads share a descriptor without seeking."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attestation.errors import Malformed

_NEW_FILE_MODE = 0o644  # what these helpers create is ciphertext


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """Descriptor that is closed at the end."""
    fd = os.open(path, flags | os.O_CLOEXEC, _NEW_FILE_MODE)
    try:
        yield fd
    finally:
        os.close(fd)


def read_exact(fd: int, view: memoryview, offset: int, where: str) -> None:
    """Fill the view from this offset; an early end is Malformed."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise Malformed("truncated", "file ends early", where=where, expected=len(view), got=done)
        done += count


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """All of it, or an OSError."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], offset + done)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    with opened(folder, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)
