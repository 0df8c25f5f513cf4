"""The real host without children: for conformance rows that never block, on a machine where starting one is slow."""

import os

from kata_gpu.host.real import RealHost
from kata_gpu.ports import READ_LIMIT


class DirectHost(RealHost):
    """Reads and writes in this process, with no deadline: never for the rows of section 2.7, which block for ever."""

    def read(self, path: str, *, max_bytes: int = READ_LIMIT, deadline_s: float | None = None) -> bytes:
        """Contents, cut at `max_bytes`."""
        del deadline_s
        return super().read(path, max_bytes=max_bytes)

    def write(self, path: str, data: bytes, *, deadline_s: float) -> None:
        """One write(2)."""
        del deadline_s
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
