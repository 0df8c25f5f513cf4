"""`RealHost`: the Host port on this machine, or read-only on a directory that holds another machine's tree."""

# ruff: noqa: PTH114, PTH115, PTH116, PTH118, PTH208
# This adapter is the system calls, under their own names.

import errno
import fcntl
import os
import stat
import time
from pathlib import Path

from kata_gpu.host import isolate
from kata_gpu.ports import READ_LIMIT, FileKind

MAX_LINKS = 40  # the kernel's own limit
_NODES = ".nodes"  # device nodes of a rendered tree, "kind path" a line


class RealHost:
    """The host below `root`. With another root than "/" nothing can be changed and no link leads out of it."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Nothing is read yet."""
        self.root = root
        self._live = root == Path("/")
        self._nodes: dict[str, FileKind] | None = None

    def read(self, path: str, *, max_bytes: int = READ_LIMIT, deadline_s: float | None = None) -> bytes:
        """Contents, cut at `max_bytes`. Raises OSError."""
        real = self._path(path)
        if deadline_s is not None and self._live:
            return isolate.read(real, max_bytes=max_bytes, deadline_s=deadline_s)
        fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not self._live and not stat.S_ISREG(os.fstat(fd).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", path)
            chunks, left = [], max_bytes
            while left > 0 and (chunk := os.read(fd, min(left, 1 << 16))):
                chunks.append(chunk)
                left -= len(chunk)
            return b"".join(chunks)
        finally:
            os.close(fd)

    def readlink(self, path: str) -> str:
        """Target as stored."""
        return os.readlink(self._path(path, follow=False))

    def listdir(self, path: str) -> list[str]:
        """Names, sorted; on another root with the device nodes that are only listed there."""
        if self._live:
            return sorted(os.listdir(path))
        nodes = {node.rpartition("/")[2] for node in self._listed() if node.rpartition("/")[0] == path.rstrip("/")}
        try:
            return sorted({*os.listdir(self._path(path)), *nodes})
        except FileNotFoundError:
            if not nodes:
                raise
            return sorted(nodes)

    def kind(self, path: str) -> FileKind | None:
        """What a path leads to."""
        if not self._live and (kind := self._listed().get(path)) is not None:
            return kind
        try:
            mode = os.stat(self._path(path)).st_mode
        except OSError:
            return None
        if stat.S_ISREG(mode):
            return FileKind.FILE
        if stat.S_ISDIR(mode):
            return FileKind.DIRECTORY
        if stat.S_ISCHR(mode):
            return FileKind.CHAR_DEVICE
        return FileKind.SOCKET if stat.S_ISSOCK(mode) else FileKind.OTHER

    def write(self, path: str, data: bytes, *, deadline_s: float) -> None:
        """One write(2) in a child."""
        isolate.write(self._writable(path), data, deadline_s=deadline_s)

    def modprobe(self, module: str, *, deadline_s: float) -> None:
        """Load a module."""
        self._writable(f"modprobe {module}")
        isolate.modprobe(module, deadline_s=deadline_s)

    def open(self, path: str) -> int:
        """open(2), read-write."""
        return os.open(self._writable(path), os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        """close(2)."""
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: bytearray | int) -> int:
        """ioctl(2)."""
        result: int = fcntl.ioctl(fd, request, argument)
        return result

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """pread(2)."""
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite(2)."""
        return os.pwrite(fd, data, offset)

    def monotonic(self) -> float:
        """CLOCK_MONOTONIC."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def _writable(self, path: str) -> str:
        """Write semantics are never emulated on a plain directory."""
        if not self._live:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return path

    def _path(self, path: str, *, follow: bool = True) -> str:
        """Where a host path is below the root, links resolved inside it: a bundle cannot point outside."""
        if self._live:
            return path
        todo = [p for p in reversed(path.split("/")) if p]
        trail: list[str] = []
        links = 0
        while todo:
            name = todo.pop()
            if name in {".", ".."}:
                del trail[-1 if name == ".." else len(trail) :]
                continue
            here = os.path.join(self.root, *trail, name)
            if (todo or follow) and os.path.islink(here):
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = os.readlink(here)
                if target.startswith("/"):
                    trail = []
                todo.extend(p for p in reversed(target.split("/")) if p)
            else:
                trail.append(name)
        return os.path.join(self.root, *trail)

    def _listed(self) -> dict[str, FileKind]:
        if self._nodes is None:
            try:
                lines = (self.root / _NODES).read_text(encoding="utf-8", errors="replace").splitlines()
            except OSError:
                lines = []
            kinds = {"char-device": FileKind.CHAR_DEVICE, "socket": FileKind.SOCKET}
            pairs = (line.partition(" ") for line in lines)
            self._nodes = {path: kinds[kind] for kind, _, path in pairs if kind in kinds}
        return self._nodes
