"""`SimKernel`: the Host port on a simulated machine, its state optionally kept in a file between processes."""

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kata_gpu.errors import Malformed, Misconfigured, TimedOut
from kata_gpu.host.durable import replace_file
from kata_gpu.host.simkernel import drivers, events, tree, vfio
from kata_gpu.host.simkernel.drivers import Blocked, fail
from kata_gpu.host.simkernel.machine import Handle, Machine, Process
from kata_gpu.ports import READ_LIMIT, FileKind

FORMAT = "kata-gpu simulated host 1"
MAX_STATE_BYTES = 16 << 20  # an 8+4 host takes some 60 KiB


class Crashed(BaseException):
    """The process died here, as by kill -9: nothing after it reaches the host."""


class SimKernel:
    """A simulated host. With `path`, every operation is atomic between processes that share the file.

    `machine.crash_after = n` kills the caller at the n-th write: by `Crashed`, after which this object refuses
    everything, or with `path` by SIGKILL to the own process.
    """

    def __init__(self, machine: Machine | None = None, *, path: Path | None = None, pid: int | None = None) -> None:
        """Take a machine, or load one from `path`. Raises Malformed or Misconfigured."""
        self.path = path
        self.pid = os.getpid() if pid is None else pid
        self.log: list[tuple[str, bytes]] = []
        self._dead = False
        self._root: tree.Dir | None = None
        self._seen: tuple[int, int] | None = None
        self.machine = machine if machine is not None else Machine()
        self._shape = events.shape(self.machine)
        if machine is None:
            self._load()

    @classmethod
    def create(cls, machine: Machine, path: Path) -> "SimKernel":
        """Write a new state file. Raises Unavailable."""
        kernel = cls(machine, path=path)
        kernel._save()
        return kernel

    # Host port: reading.

    def read(self, path: str, *, max_bytes: int = READ_LIMIT, deadline_s: float | None = None) -> bytes:
        """Contents of a file."""
        self._refresh()
        node = self._resolve(path)
        if isinstance(node, Mapping):
            raise fail(errno.EISDIR)
        if not isinstance(node, tree.Attr) or node.show is None:
            raise fail(errno.EACCES)
        try:
            return node.show()[:max_bytes]
        except Blocked:
            self.machine.now += deadline_s or 0.0
            raise TimedOut("read-blocked", "reading does not return", where=path, got=f"{deadline_s} s") from None

    def readlink(self, path: str) -> str:
        """Target of a link."""
        self._refresh()
        node = self._resolve(path, follow=False)
        if not isinstance(node, tree.Link):
            raise fail(errno.EINVAL)
        return str(node)

    def listdir(self, path: str) -> list[str]:
        """Names in a directory, sorted."""
        self._refresh()
        node = self._resolve(path)
        if not isinstance(node, Mapping):
            raise fail(errno.ENOTDIR)
        return sorted(node)

    def kind(self, path: str) -> FileKind | None:
        """What a path leads to."""
        self._refresh()
        try:
            node = self._resolve(path)
        except OSError:
            return None
        if isinstance(node, Mapping):
            return FileKind.DIRECTORY
        if isinstance(node, tree.Attr):
            return FileKind.FILE
        return FileKind.CHAR_DEVICE if isinstance(node, tree.Device) else FileKind.SOCKET

    # Host port: changing.

    def write(self, path: str, data: bytes, *, deadline_s: float) -> None:
        """One write(2)."""
        with self._changing(path, data):
            node = self._resolve(path)
            if not isinstance(node, tree.Attr) or node.store is None:
                raise fail(errno.EISDIR if isinstance(node, Mapping) else errno.EACCES)
            try:
                node.store(data)
            except Blocked:
                self.machine.now += deadline_s
                raise TimedOut("write-blocked", "writing does not return", where=path, got=f"{deadline_s} s") from None

    def modprobe(self, module: str, *, deadline_s: float) -> None:
        """Load a module."""
        del deadline_s
        with self._changing(f"modprobe {module}", b""):
            drivers.load_module(self.machine, module)

    def open(self, path: str) -> int:
        """open(2)."""
        with self._changing():
            node = self._resolve(path)
            if not isinstance(node, tree.Device):
                raise fail(errno.EACCES)
            return vfio.open_node(self.machine, self.pid, node.kind, node.target)

    def close(self, fd: int) -> None:
        """close(2)."""
        with self._changing():
            vfio.close(self.machine, self.pid, fd)

    def ioctl(self, fd: int, request: int, argument: bytearray | int) -> int:
        """ioctl(2)."""
        with self._changing(f"ioctl {request:#x}"):
            try:
                return vfio.ioctl(self.machine, self.pid, fd, request, argument)
            except Blocked:
                raise TimedOut("ioctl-blocked", "the device does not answer", where=hex(request)) from None

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """pread(2)."""
        self._refresh()
        return vfio.pread(self.machine, self.pid, fd, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """pwrite(2). Only a changed setting counts as a write: a register by itself means nothing."""
        self._alive()
        chip = self.machine.functions[vfio.handle(self.machine, self.pid, fd).target].chip
        before = dict(chip.knobs) if chip is not None else {}
        written = vfio.pwrite(self.machine, self.pid, fd, data, offset)
        if chip is not None and chip.knobs != before:
            self.log.append((f"settings {before} -> {chip.knobs}", b""))
            self._save()
            self._count()
        return written

    def monotonic(self) -> float:
        """The machine's own clock."""
        return self.machine.now

    def sleep(self, seconds: float) -> None:
        """Advance it: nothing waits."""
        self.machine.now += seconds

    def uevents(self) -> socket.socket:
        """Messages of this host for a new listener. Raises OSError."""
        if self.path is None:
            raise fail(errno.EOPNOTSUPP)
        return events.listen(run_directory(self.path))

    # What tests and `kata-gpu sim` do to the machine.

    @contextmanager
    def edit(self) -> Iterator[Machine]:
        """Change the machine from outside, as hardware or another process would."""
        with self._locked():
            yield self.machine
            self._root = None
            self._save()

    def hold(
        self, pid: int, kind: str, target: str, *, cmdline: list[str], cgroup: str = "/", bound: bool = False
    ) -> None:
        """Let another process of the host open a group, a cdev or only keep a device file."""
        with self.edit() as machine:
            machine.processes[pid] = Process(
                pid=pid, comm=cmdline[0].rsplit("/", 1)[-1][:15], cmdline=cmdline, cgroup=cgroup
            )
            fd = vfio.open_node(machine, pid, kind, target)
            vfio.handle(machine, pid, fd).bound = bound

    def drop(self, pid: int) -> None:
        """End a process of the host: its files are closed."""
        with self.edit() as machine:
            self._drop(machine, pid)

    def crash(self) -> "SimKernel":
        """What a new process sees after this one died: our files closed by the kernel, the rest as it was."""
        self._dead = True
        self._drop(self.machine, self.pid)
        self.machine.crash_after = None
        return SimKernel(self.machine, pid=self.pid)

    def reboot(self) -> "SimKernel":
        """Power cycle: bindings are lost, staged settings become active, native drivers probe."""
        machine = self.machine
        machine.handles.clear()
        machine.processes.clear()
        drivers.take_boot_ids(machine)
        machine.tainted = 0
        machine.boot_id = f"{int(machine.boot_id[:8], 16) + 1 & 0xFFFFFFFF:08x}{machine.boot_id[8:]}"
        for function in machine.functions.values():
            function.driver = function.override = function.cdev = None
            function.pending = ""
            function.queue.clear()
            drivers.drop_made_up_group(function)
            if function.chip is not None:
                function.chip.reset(machine.now)
            drivers.autoprobe(machine, function)
        return SimKernel(machine, pid=self.pid)

    def _drop(self, machine: Machine, pid: int) -> None:
        for handle in [h for h in reversed(machine.handles) if h.pid == pid]:
            vfio.close(machine, pid, handle.fd)
        machine.processes.pop(pid, None)
        self._root = None

    # State file.

    @contextmanager
    def _changing(self, what: str = "", data: bytes = b"") -> Iterator[None]:
        self._alive()
        with self._locked():
            if what:
                self._count()
            try:
                yield
                if what:
                    self.log.append((what, data))
            finally:
                self._root = None
                self._save()

    def _alive(self) -> None:
        if self._dead:
            raise Crashed

    def _count(self) -> None:
        machine = self.machine
        if machine.crash_after is not None and machine.writes >= machine.crash_after:
            self._dead = True
            if self.path is not None:
                os.kill(os.getpid(), 9)
            raise Crashed
        machine.writes += 1

    def _resolve(self, path: str, *, follow: bool = True) -> tree.Node:
        if self._root is None:
            self._root = tree.build(self.machine)
            if self.path is not None:
                for place, name in OURS.items():
                    tree.place(self._root, place, partial(_directory_of, run_directory(self.path) / name))
        return tree.resolve(self._root, path, follow=follow)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self.path is None:
            yield
            return
        with self.path.with_name(self.path.name + ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._refresh()
            yield

    def _refresh(self) -> None:
        self._alive()
        if self.path is not None and self._stamp() != self._seen:
            self._load()

    def _stamp(self) -> tuple[int, int] | None:
        assert self.path is not None
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _load(self) -> None:
        if self.path is None:
            return
        try:
            self._seen = self._stamp()
            raw = self.path.read_bytes()
        except OSError as exc:
            raise Misconfigured(
                "sim-state",
                "the simulated host cannot be read",
                where=str(self.path),
                got=exc.strerror,
                hint=f"kata-gpu sim create --preset hgx-h100 {self.path}",
            ) from exc
        try:
            data = json.loads(raw[: MAX_STATE_BYTES + 1])
            if data.pop("format") != FORMAT:
                raise ValueError(f"a format that is not {FORMAT}")
            self.machine = Machine.from_json(data)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            got = f"no {exc}" if isinstance(exc, KeyError) else exc
            raise Malformed(
                "sim-state",
                "not the state of a simulated host",
                where=str(self.path),
                expected="a file that `kata-gpu sim create` wrote",
                got=got,
            ) from exc
        self._shape = events.shape(self.machine)
        for handle in list(self.machine.handles):
            if handle.pid not in self.machine.processes and handle.pid != self.pid and not _running(handle):
                self._drop(self.machine, handle.pid)
        self._root = None

    def _save(self) -> None:
        if self.path is None or self._dead:
            return
        data = json.dumps({"format": FORMAT} | self.machine.to_json(), separators=(",", ":")).encode()
        replace_file(self.path, data, durable=False)
        self._seen = self._stamp()
        before, self._shape = self._shape, events.shape(self.machine)
        events.tell(run_directory(self.path), before, self._shape)


OURS = {"/run/cdi": "cdi", "/var/lib/kata-gpu": "state"}
"""Directories of the simulated host that are real: below `run_directory`, for our own files."""


def run_directory(path: Path) -> Path:
    """Where the real files of a simulated host are: its /run/cdi and our state."""
    return path.with_name(f"{path.name}.d")


def _directory_of(path: Path) -> tree.Node:
    """Real files as a directory of the simulated host."""
    if not path.is_dir():
        return {}
    return {p.name: tree.Attr(show=p.read_bytes) for p in path.iterdir() if p.is_file()}


def _running(handle: Handle) -> bool:
    return Path(f"/proc/{handle.pid}").exists()
