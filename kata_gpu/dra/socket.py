"""A gRPC server on a unix socket whose public name is ours to give and to take.

grpcio replaces a live socket of another process when it binds, and on stop unlinks whatever is at the path by then
(dra.md 1.2). So it never sees the public path: it binds a hidden name in the same directory, and one rename makes that
socket public. A name starting with a dot is ignored by kubelet's watcher.
"""

import os
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

from kata_gpu.errors import Misconfigured, Unavailable

MAX_PATH = 107  # sizeof(sun_path) - 1, unix(7)
_UMASK = threading.Lock()  # umask belongs to the process


def check_path(path: Path) -> None:
    """Refuse what the kernel could not bind. Raises Misconfigured naming the limit."""
    size = len(os.fsencode(path))
    if size > MAX_PATH or not path.is_absolute():
        raise Misconfigured(
            "socket-path",
            "this socket path cannot be used",
            where=str(path),
            expected=f"an absolute path of at most {MAX_PATH} bytes",
            got=size,
            hint="shorten the driver name (27 characters with rolling updates) or kubelet's root directory",
        )


class UnixServer:
    """One gRPC server on one public path. Restarting is seamless: calls in flight end on the old server."""

    def __init__(self, path: Path, register: Callable[[grpc.Server], None], *, workers: int) -> None:
        check_path(path)
        self.path = path
        self._register = register
        self._workers = workers
        self._server: grpc.Server | None = None
        self._inode: tuple[int, int] | None = None

    def start(self) -> None:
        """Serve, then make the socket public; a stale file or socket at the path is replaced. Raises Unavailable."""
        server = grpc.server(ThreadPoolExecutor(self._workers), options=(("grpc.so_reuseport", 0),))
        self._register(server)
        hidden = self.path.with_name(f".{secrets.token_hex(3)}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            with _UMASK:
                old = os.umask(0o077)
                try:
                    server.add_insecure_port(f"unix:{hidden}")
                finally:
                    os.umask(old)
            server.start()
            os.rename(hidden, self.path)  # noqa: PTH104 - atomic, replaces what a dead process left
            stat = self.path.lstat()
        except (OSError, RuntimeError) as exc:
            server.stop(None)
            raise Unavailable("socket-bind", "cannot serve on this socket", where=str(self.path), got=str(exc)) from exc
        previous, self._server, self._inode = self._server, server, (stat.st_dev, stat.st_ino)
        if previous is not None:
            previous.stop(grace=45)  # kubelet's own deadline; returns at once

    @property
    def lost(self) -> bool:
        """Whether the public path no longer leads to this server."""
        try:
            stat = self.path.lstat()
        except OSError:
            return True
        return (stat.st_dev, stat.st_ino) != self._inode

    def unpublish(self) -> None:
        """Remove the public path if it is still ours. Connected clients stay connected."""
        if not self.lost:
            self.path.unlink(missing_ok=True)

    def stop(self, grace_s: float) -> None:
        """Let calls in flight end for `grace_s`, then cut them. Leaves the public path alone."""
        if self._server is not None:
            self._server.stop(grace_s).wait()
