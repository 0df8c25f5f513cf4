"""`SimKernel`: the Host port on a simulated machine, its state optionally kept in a file between processes."""

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kata_gpu.errors import TimedOut
from kata_gpu.host.simkernel import drivers, events, vfio
from kata_gpu.host.simkernel.machine import Machine, Process
from kata_gpu.host.simkernel.nodes import Attr, Device, Dir, Link, Node, place, resolve
from kata_gpu.host.simkernel.state_file import OURS, StateFile, run_directory
from kata_gpu.host.simkernel.syscall import Blocked, fail
from kata_gpu.host.simkernel.tree import build
from kata_gpu.ports import READ_LIMIT, FileKind


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
        self._file = None if path is None else StateFile(path)
        self._dead = False
        self._root: Dir | None = None
        self.machine = machine if machine is not None else Machine()
        self._shape = events.shape(self.machine)
        if machine is None and self._file is not None:
            self._take(self._file.load())

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
        if not isinstance(node, Attr) or node.show is None:
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
        if not isinstance(node, Link):
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
        if isinstance(node, Attr):
            return FileKind.FILE
        return FileKind.CHAR_DEVICE if isinstance(node, Device) else FileKind.SOCKET

    # Host port: changing.

    def write(self, path: str, data: bytes, *, deadline_s: float) -> None:
        """One write(2)."""
        with self._changing(path, data):
            node = self._resolve(path)
            if not isinstance(node, Attr) or node.store is None:
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
            if not isinstance(node, Device):
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
        if self._file is None:
            raise fail(errno.EOPNOTSUPP)
        return events.listen(run_directory(self._file.path))

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
            if self._file is not None:
                os.kill(os.getpid(), 9)
            raise Crashed
        machine.writes += 1

    def _resolve(self, path: str, *, follow: bool = True) -> Node:
        if self._root is None:
            self._root = build(self.machine)
            if self._file is not None:
                for at, name in OURS.items():
                    place(self._root, at, partial(_directory_of, run_directory(self._file.path) / name))
        return resolve(self._root, path, follow=follow)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._file is None:
            yield
            return
        with self._file.locked():
            self._refresh()
            yield

    def _refresh(self) -> None:
        self._alive()
        if self._file is not None and self._file.changed():
            self._take(self._file.load())

    def _take(self, machine: Machine) -> None:
        """The state of another process is ours; files of processes that are gone are closed."""
        self.machine = machine
        self._shape = events.shape(machine)
        for handle in list(machine.handles):
            known = handle.pid in machine.processes or handle.pid == self.pid
            if not known and not Path(f"/proc/{handle.pid}").exists():
                self._drop(machine, handle.pid)
        self._root = None

    def _save(self) -> None:
        if self._file is None or self._dead:
            return
        self._file.save(self.machine)
        before, self._shape = self._shape, events.shape(self.machine)
        events.tell(run_directory(self._file.path), before, self._shape)


def _directory_of(path: Path) -> Node:
    """Real files as a directory of the simulated host."""
    if not path.is_dir():
        return {}
    return {p.name: Attr(show=p.read_bytes) for p in path.iterdir() if p.is_file()}
