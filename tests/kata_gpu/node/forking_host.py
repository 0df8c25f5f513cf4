"""The real host with forks as children: as safe as `host/isolate` for rows that block, without starting Python anew."""

import os
import select
import signal
from collections.abc import Callable

from kata_gpu.errors import TimedOut
from kata_gpu.host.real import RealHost
from kata_gpu.ports import READ_LIMIT

_LIMIT = 1 << 16  # a pipe's capacity: the child never waits for its reader
_MAX_FDS = 1024


class ForkingHost(RealHost):
    """Reads and writes in forked children with deadlines."""

    def read(self, path: str, *, max_bytes: int = READ_LIMIT, deadline_s: float | None = None) -> bytes:
        """Contents, cut at `max_bytes`."""
        if deadline_s is None:
            return super().read(path, max_bytes=max_bytes)
        return _in_child(lambda: _read(path, min(max_bytes, _LIMIT - 1)), path, deadline_s)

    def write(self, path: str, data: bytes, *, deadline_s: float) -> None:
        """One write(2)."""
        _in_child(lambda: _write(path, data), path, deadline_s)


def _read(path: str, limit: int) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    return os.read(fd, limit)


def _write(path: str, data: bytes) -> bytes:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, data)
    return b""


def _in_child(act: Callable[[], bytes], path: str, deadline_s: float) -> bytes:
    here, there = os.pipe()
    pid = os.fork()
    if pid == 0:
        for fd in range(3, _MAX_FDS):  # a device that the parent holds must not stay open in a child that is stuck
            if fd != there:
                try:
                    os.close(fd)
                except OSError:
                    continue
        try:
            answer = b"\0" + act()
        except OSError as exc:
            answer = bytes([exc.errno or 5])
        os.write(there, answer)
        os._exit(0)
    os.close(there)
    try:
        if not select.select([here], [], [], deadline_s)[0]:
            os.kill(pid, signal.SIGKILL)
            raise TimedOut("deadline", "the operation does not return", where=path)
        answer = os.read(here, _LIMIT)
    finally:
        os.close(here)
    os.waitpid(pid, 0)
    if answer[:1] != b"\0":
        raise OSError(answer[0], os.strerror(answer[0]), path)
    return answer[1:]
