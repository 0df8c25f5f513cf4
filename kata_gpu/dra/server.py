"""The kubelet plugin as a process: sockets in the right order, guarded, and taken down without harm to a successor.

dra.md 1.2. The DRA socket accepts before the registrar socket exists; on the way out the registrar goes first. With an
instance id (the pod UID) two instances serve side by side during an update; without one a lock refuses the second.
"""

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from kata_gpu.dra._pb import registration_v1_pb2_grpc
from kata_gpu.dra.health import Health
from kata_gpu.dra.registration import Registered, Registration
from kata_gpu.dra.service import DraService
from kata_gpu.dra.socket import UnixServer, check_path
from kata_gpu.errors import InUse, Unavailable

INSTANCE_LOCK = "instance.lock"
DRA_WORKERS = 8  # prepare, unprepare and health streams
REGISTRAR_WORKERS = 2  # kubelet asks one at a time, its monitor another
DRAIN_S = 20.0  # calls in flight at shutdown


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginPaths:
    """Where kubelet looks. `instance` is the pod UID for rolling updates, or empty."""

    kubelet_root: Path
    driver: str
    instance: str = ""

    @property
    def data(self) -> Path:
        """State and DRA socket."""
        return self.kubelet_root / "plugins" / self.driver

    @property
    def dra_socket(self) -> Path:
        """Endpoint that GetInfo names."""
        return self.data / (f"dra-{self.instance}.sock" if self.instance else "dra.sock")

    @property
    def registrar_socket(self) -> Path:
        """Socket that kubelet discovers."""
        middle = f"-{self.instance}" if self.instance else ""
        return self.kubelet_root / "plugins_registry" / f"{self.driver}{middle}-reg.sock"

    def check(self) -> None:
        """Raises Misconfigured for a path that the kernel cannot bind."""
        check_path(self.dra_socket)
        check_path(self.registrar_socket)


class PluginServer:
    """Both servers of one instance."""

    def __init__(self, paths: PluginPaths, service: DraService, health: Health) -> None:
        """Raises Misconfigured for impossible paths; touches nothing yet."""
        paths.check()
        self._paths = paths
        self._registration = Registration(paths.driver, str(paths.dra_socket))
        self._health = health
        self._log = structlog.get_logger("plugin")
        self._lock_fd = -1

        def dra(server: grpc.Server) -> None:
            service.register(server)
            health.register(server)

        def registrar(server: grpc.Server) -> None:
            registration_v1_pb2_grpc.add_RegistrationServicer_to_server(self._registration, server)

        self._dra = UnixServer(paths.dra_socket, dra, workers=DRA_WORKERS)
        self._registrar = UnixServer(paths.registrar_socket, registrar, workers=REGISTRAR_WORKERS)

    @property
    def registered(self) -> Registered:
        """What kubelet last said."""
        return self._registration.state

    def start(self) -> None:
        """Serve. Raises InUse when another instance without an id of its own is alive."""
        if not self._paths.instance:
            self._lock_instance()
        self._dra.start()
        self._registrar.start()
        self._log.info("serving", endpoint=str(self._paths.dra_socket))

    def heal(self) -> bool:
        """Publish again what was removed or replaced from outside; kubelet's reinstall wipes directories.

        Call at least every 10 s. True when something had to be done. Raises Unavailable where it cannot be, and InUse
        where another instance has taken the place meanwhile.
        """
        if self._lock_fd >= 0 and not os.fstat(self._lock_fd).st_nlink:
            os.close(self._lock_fd)
            self._lock_fd = -1
            self._lock_instance()
        lost = [s for s in (self._dra, self._registrar) if s.lost]
        for server in lost:
            self._log.warning("socket-lost", path=str(server.path))
            server.start()
        return bool(lost)

    def stop(self) -> None:
        """Registrar first, then drain, then the rest. Touches own sockets only; ResourceSlices stay."""
        self._registrar.unpublish()
        self._registrar.stop(0)
        self._health.close()
        self._dra.stop(DRAIN_S)
        self._dra.unpublish()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _lock_instance(self) -> None:
        path = self._paths.data / INSTANCE_LOCK
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise Unavailable("instance-lock", "cannot lock", where=str(path), got=exc.strerror) from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise InUse(
                "instance-running",
                "another instance of this driver serves this node",
                where=str(path),
                hint="stop it first, or give each instance its pod UID for rolling updates",
            ) from None
        self._lock_fd = fd
