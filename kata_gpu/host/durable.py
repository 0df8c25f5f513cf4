"""Files that survive a crash whole: written beside, synced, renamed, directory synced."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kata_gpu.errors import Unavailable


def replace_file(path: Path, data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Put `data` at `path` atomically; with `durable` it is on disk when this returns.

    The temporary name ends in .tmp, which CDI watchers ignore. Raises Unavailable; then the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # of a crash, or somebody's in /tmp: its mode and its readers are not ours
        fd = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        temporary.rename(path)
        if durable:
            sync_directory(path.parent)
    except OSError as exc:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise Unavailable("write-failed", "cannot write the file", where=str(path), got=exc.strerror) from exc


def sync_directory(path: Path) -> None:
    """fsync(2) of a directory: makes a rename or unlink in it durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class DurableDir:
    """A directory of small files, each replaced or removed atomically and durably."""

    def __init__(self, path: Path) -> None:
        """The directory is made when the first file is put there."""
        self.path = path

    def names(self) -> list[str]:
        """File names, sorted; without temporary ones. Raises Unavailable."""
        try:
            return sorted(p.name for p in self.path.iterdir() if not p.name.endswith(".tmp"))
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise Unavailable("read-failed", "cannot list", where=str(self.path), got=exc.strerror) from exc

    def get(self, name: str, *, max_bytes: int = 1 << 20) -> bytes | None:
        """Contents, or None where there is no such file. Raises Unavailable, also for one that is too large."""
        try:
            with (self.path / name).open("rb") as file:
                data = file.read(max_bytes + 1)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise Unavailable("read-failed", "cannot read", where=str(self.path / name), got=exc.strerror) from exc
        if len(data) > max_bytes:
            raise Unavailable(
                "file-size", "file is too large", where=str(self.path / name), expected=f"at most {max_bytes} bytes"
            )
        return data

    def put(self, name: str, data: bytes) -> None:
        """Write a file."""
        with _translated(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / name, data)

    def remove(self, name: str) -> None:
        """Remove a file; that it is gone already is success."""
        with _translated(self.path / name):
            try:
                (self.path / name).unlink()
            except FileNotFoundError:
                return
            sync_directory(self.path)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise Unavailable("write-failed", "cannot change", where=str(path), got=exc.strerror) from exc
