"""The in-use guard: who holds a device. Nothing in the kernel protects a VM from a node agent, so this must.

A reset of a device that a VM uses succeeds silently, and an unbind wedges it. Every unbind, reset and mode change
asks here first, and there is no way around it. Evidence, each kind of which misses what another one sees:
open files and mappings of every process, a probe open of the group, and what kubelet has allocated. Where a piece of
evidence cannot be had, the answer is not "free": a container sees only its own processes, and without
CAP_SYS_PTRACE not their files, and an opened cdev shows nowhere else.
"""

import errno
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kata_gpu.core.pci import PciAddress, PciFunction
from kata_gpu.errors import InUse, Unavailable
from kata_gpu.host.blocked import keeps_group
from kata_gpu.host.pods import pod_names, pod_uid, process_ids
from kata_gpu.ports import FileKind, Host, HostFiles

_ANONYMOUS = "anon_inode:[vfio-device]"
# The path of an open or mapped file, or the rest of a line of `maps`. A node in a jail has another beginning, and one
# that has been made anew since has " (deleted)" behind it.
_FILE = re.compile(rb"(/dev/(?:vfio/|nvidia)[^\n]*?|anon_inode:\[vfio-device\])(?: \(deleted\))?$", re.MULTILINE)
_CDEVS = "/dev/vfio/devices/"
_MARKS = (b"vfio", b"nvidia")
_ENDED = {errno.ENOENT, errno.ESRCH}  # of a file below /proc/PID: the process has ended, or has closed it
_MAX_COMMAND = 160
_HOST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO of linux/proc_ns.h: a constant of the kernel's user API
_MAX_MAPS = 1 << 26  # 262144 mappings, the most that anybody configures as vm.max_map_count, of some 200 bytes each

Allocated = Callable[[], Mapping[PciAddress, str]]
"""What kubelet has given to pods, asked anew each time: device to `namespace/pod`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Somebody who uses a device. `pid` 0: known from the kernel or kubelet, not from a process."""

    pid: int
    how: str
    command: str = ""
    pod: str = ""

    def __str__(self) -> str:
        who = f"process {self.pid} ({self.command})" if self.pid else self.how
        return " ".join(
            part
            for part in (who, f"of pod {self.pod}" if self.pod else "", f"by {self.how}" if self.pid else "")
            if part
        )


class Guard:
    """Looks for holders. `allocated` asks kubelet; None where it has no say."""

    def __init__(self, host: Host, *, own_pid: int, allocated: Allocated | None = None) -> None:
        """Nothing is read yet."""
        self._host = host
        self._own_pid = own_pid
        self._allocated = allocated

    def require_free(self, functions: Iterable[PciFunction]) -> None:
        """Raises InUse naming the device and its holder."""
        for address, holders in self.holders(functions, probe=True).items():
            if holders:
                raise InUse(
                    "in-use",
                    f"held by {'; '.join(str(h) for h in holders)}",
                    where=str(address),
                    hint="stop that pod or VM first; kata-gpu never takes a device from it",
                )

    def holders(self, functions: Iterable[PciFunction], *, probe: bool = False) -> dict[PciAddress, tuple[Holder, ...]]:
        """Holders of each function. One scan of all processes serves all functions. Raises Unavailable.

        Only with `probe` are groups opened, which a VM that starts at that instant would feel: for those who are about
        to change the device under the node's lock, not for those who look.
        """
        functions = tuple(functions)
        allocated = self._allocated() if self._allocated is not None else {}
        scan = _scan(self._host, self._own_pid)
        return {f.address: self._of(f, scan, allocated.get(f.address), probe=probe) for f in functions}

    def _of(self, function: PciFunction, scan: list["_Process"], pod: str | None, *, probe: bool) -> tuple[Holder, ...]:
        names = {f"/dev/vfio/{function.iommu_group}"}
        if function.vfio_cdev is not None:
            names.add(_CDEVS + function.vfio_cdev)
        if keeps_group(self._host, function):  # its cdev is gone, and open all the same
            open_cdevs = {name for p in scan for name in p.files if name.startswith(_CDEVS)}
            names |= {name for name in open_cdevs if self._host.kind(name) is None}
        holders = [p.holder(next(iter(names & p.files))) for p in scan if names & p.files]
        if function.driver == "nvidia":
            users = [(p, n) for p in scan if (n := next((f for f in p.files if f.startswith("/dev/nvidia")), None))]
            holders += [p.holder(name) for p, name in users]
        if pod is not None:
            holders.append(Holder(pid=0, how="kubelet's allocation", pod=pod))
        if probe and not holders and function.on_vfio and self._busy(function):
            anonymous = [p.holder(_ANONYMOUS) for p in scan if _ANONYMOUS in p.files]
            holders = anonymous or [Holder(pid=0, how="the kernel says that its IOMMU group is in use")]
        return tuple(holders)

    def _busy(self, function: PciFunction) -> bool:
        """Probe the group: EBUSY when it is open, a cdev of it is bound, or only a device file is left.

        It takes exclusivity for an instant and resets nothing.
        """
        path = f"/dev/vfio/{function.iommu_group}"
        if self._host.kind(path) is not FileKind.CHAR_DEVICE:
            return False
        try:
            self._host.close(self._host.open(path))
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                return True
            raise Unavailable(
                "guard-probe", "cannot tell whether the device is in use", where=path, got=exc.strerror
            ) from exc
        return False


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    files: frozenset[str]
    command: str
    pod: str

    def holder(self, name: str) -> Holder:
        return Holder(pid=self.pid, how=name, command=self.command, pod=self.pod)


def _scan(host: HostFiles, own_pid: int) -> list[_Process]:
    """Processes with files of VFIO or the NVIDIA driver open or mapped. Those that end meanwhile hold nothing."""
    _require_host_processes(host)
    try:
        pids = [pid for pid in process_ids(host) if pid != own_pid]
    except OSError as exc:
        raise Unavailable("guard-proc", "cannot list processes", where="/proc", got=exc.strerror) from exc
    found = [(pid, files) for pid in pids if (files := _files(host, pid))]
    names = pod_names(host) if found else {}
    uids = {pid: pod_uid(host, pid) for pid, _ in found}
    return [_Process(pid, files, _command(host, pid), names.get(uids[pid], uids[pid])) for pid, files in found]


def _require_host_processes(host: HostFiles) -> None:
    """Another PID namespace shows none of the host's VMs."""
    try:
        namespace = host.readlink("/proc/self/ns/pid")
    except OSError as exc:
        namespace = exc.strerror or "unreadable"
    if namespace != _HOST_PID_NAMESPACE:
        raise Unavailable(
            "guard-pid-namespace",
            "cannot see the processes of the host",
            where="/proc/self/ns/pid",
            expected=_HOST_PID_NAMESPACE,
            got=namespace,
            hint="run on the host, or in a pod with hostPID: true",
        )


def _files(host: HostFiles, pid: int) -> frozenset[str]:
    """Its VFIO and NVIDIA files; none where it has ended. Raises Unavailable where it may not be looked at."""
    files: set[bytes] = set()
    maps = b""
    try:
        for name in host.listdir(f"/proc/{pid}/fd"):
            files.update(_FILE.findall(_target(host, f"/proc/{pid}/fd/{name}")))
        maps = host.read(f"/proc/{pid}/maps", max_bytes=_MAX_MAPS)
    except OSError as exc:
        if exc.errno not in _ENDED:
            raise Unavailable(
                "guard-permission",
                "cannot see who uses the devices",
                where=f"/proc/{pid}",
                got=exc.strerror,
                hint="run as root with CAP_SYS_PTRACE, in a pod with hostPID: true and privileged",
            ) from exc
    if len(maps) >= _MAX_MAPS:
        raise Unavailable("guard-maps", "a process has too many mappings to look through", where=f"/proc/{pid}/maps")
    if any(mark in maps for mark in _MARKS):
        files.update(_FILE.findall(maps))
    return frozenset(file.decode("utf-8", "replace") for file in files)


def _target(host: HostFiles, path: str) -> bytes:
    """Where a descriptor leads; empty where it was closed meanwhile. Raises OSError."""
    try:
        return host.readlink(path).encode("utf-8", "surrogateescape")
    except OSError as exc:
        if exc.errno not in _ENDED:
            raise
        return b""


def _command(host: HostFiles, pid: int) -> str:
    """Command line for people: whatever a process calls itself, it cannot move the reader's cursor."""
    try:
        raw = host.read(f"/proc/{pid}/cmdline", max_bytes=4096)
    except OSError:
        return "unknown"
    text = "".join(c if c.isprintable() else " " for c in raw.decode("utf-8", "replace"))
    return text.strip()[:_MAX_COMMAND] or "unknown"
