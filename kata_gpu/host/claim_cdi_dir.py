"""Per-claim CDI files in one directory, and nobody else's files."""

import os
from contextlib import suppress
from pathlib import Path

from kata_gpu.core.claim_cdi import MAX_BYTES, claim_of
from kata_gpu.errors import Malformed, Unavailable
from kata_gpu.host.claim_file import write_synced
from kata_gpu.host.durable import sync_directory


class ClaimCdiDir:
    """`CdiFiles` over `/var/run/cdi`, which is created with mode 0755: runtimes read it."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory

    def names(self) -> tuple[str, ...]:
        """Our per-claim files, sorted."""
        try:
            return tuple(sorted(n for n in os.listdir(self._dir) if claim_of(n)))  # noqa: PTH208
        except FileNotFoundError:
            return ()

    def read(self, name: str) -> bytes | None:
        """Content of one of our files, or None. A link or anything but a file is None: we never wrote it."""
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        with os.fdopen(fd, "rb") as file:
            return file.read(MAX_BYTES + 1)

    def write(self, name: str, content: bytes) -> None:
        """Write under a name that no CDI reader loads, sync, rename, sync. Raises Unavailable."""
        path = self._path(name)
        temporary = self._dir / f".{name}.tmp"
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o755)
            write_synced(temporary, content, mode=0o644)
            os.rename(temporary, path)  # noqa: PTH104 - the exact system call
            sync_directory(self._dir)
        except OSError as exc:
            with suppress(OSError):
                temporary.unlink()
            raise Unavailable("cdi-write", "cannot write the CDI file", where=str(path), got=exc.strerror) from exc

    def remove(self, name: str) -> None:
        """Unlink; a file that is not there is success, any other failure is not swallowed. Raises Unavailable."""
        path = self._path(name)
        try:
            path.unlink()
            sync_directory(self._dir)
        except FileNotFoundError:
            return
        except OSError as exc:
            raise Unavailable("cdi-remove", "cannot remove the CDI file", where=str(path), got=exc.strerror) from exc

    def _path(self, name: str) -> Path:
        if claim_of(name) is None:
            raise Malformed("cdi-file", "not a claim file of ours", got=repr(name))
        return self._dir / name
