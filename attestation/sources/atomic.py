"""Files that are there whole or not at all: temp, fsync, rename, fsync of the directory; and bounded reads."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

from attestation.errors import Malformed, Misconfigured, Unavailable


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` in one step, durably. Raises Unavailable; the old content is then intact."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    except OSError as exc:
        raise Unavailable("write-failed", "cannot write", where=str(path), got=exc.strerror) from exc
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        sync_directory(path.parent)
    except OSError as exc:
        with suppress(OSError):
            Path(temporary).unlink()
        raise Unavailable("write-failed", "cannot write", where=str(path), got=exc.strerror) from exc


def sync_directory(path: Path) -> None:
    """Make renames and unlinks in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """The whole file, if it is no larger than `max_bytes`. Raises Misconfigured or Malformed."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as exc:
        raise Misconfigured("unreadable-file", "cannot read", where=str(path), got=exc.strerror) from exc
    if len(content) > max_bytes:
        raise Malformed("file-size", "file too large", where=str(path), expected=f"at most {max_bytes} bytes")
    return content
