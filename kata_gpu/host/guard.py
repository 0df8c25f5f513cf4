"""The in-use guard: who holds a device. Nothing in the kernel protects a VM from a node agent, so this must.

A reset of a device that a VM uses succeeds silently, and an unbind wedges it. Every unbind, reset and mode change
asks here first, and there is no way around it. Evidence, each kind of which misses what another one sees:
open files and mappings of every process, a probe open of the group, and what kubelet has allocated.
"""

import errno
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from kata_gpu.core.pci import PciAddress, PciFunction
from kata_gpu.errors import InUse, Unavailable
from kata_gpu.ports import FileKind, Host, HostFiles

_ANONYMOUS = "anon_inode:[vfio-device]"
_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12})")
_NODES = ("/dev/vfio/", "/dev/nvidia")
_MAX_COMMAND = 160


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
    """Looks for holders. `allocated` names the pod that kubelet gave a device to; `pods` names pods by UID."""

    def __init__(
        self,
        host: Host,
        *,
        own_pid: int,
        allocated: Mapping[PciAddress, str] | None = None,
        pods: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is read yet."""
        self._host = host
        self._own_pid = own_pid
        self._allocated = allocated or {}
        self._pods = pods or {}

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
        """Holders of each function. One scan of all processes serves all functions.

        Only with `probe` are groups opened, which a VM that starts at that instant would feel: for those who are about
        to change the device under the node's lock, not for those who look.
        """
        functions = tuple(functions)
        scan = _scan(self._host, self._own_pid, self._pods)
        return {f.address: self._of(f, scan, probe=probe) for f in functions}

    def _of(self, function: PciFunction, scan: list["_Process"], *, probe: bool) -> tuple[Holder, ...]:
        names = {f"/dev/vfio/{function.iommu_group}"}
        if function.vfio_cdev is not None:
            names.add(f"/dev/vfio/devices/{function.vfio_cdev}")
        holders = [p.holder(next(iter(names & p.files))) for p in scan if names & p.files]
        if function.driver == "nvidia":
            users = [(p, n) for p in scan if (n := next((f for f in p.files if f.startswith("/dev/nvidia")), None))]
            holders += [p.holder(name) for p, name in users]
        if pod := self._allocated.get(function.address):
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


def _scan(host: HostFiles, own_pid: int, pods: Mapping[str, str]) -> list[_Process]:
    """Processes with files of VFIO or the NVIDIA driver open or mapped. Those that end meanwhile hold nothing."""
    try:
        pids = [int(name) for name in host.listdir("/proc") if name.isdecimal()]
    except OSError as exc:
        raise Unavailable("guard-proc", "cannot list processes", where="/proc", got=exc.strerror) from exc
    found = []
    for pid in pids:
        if pid == own_pid:
            continue
        files = _files(host, pid)
        if files:
            found.append(_Process(pid, files, _command(host, pid), _pod(host, pid, pods)))
    return found


def _files(host: HostFiles, pid: int) -> frozenset[str]:
    files = set()
    try:
        names = host.listdir(f"/proc/{pid}/fd")
    except PermissionError as exc:
        raise Unavailable(
            "guard-permission",
            "cannot see who uses the devices",
            where=f"/proc/{pid}/fd",
            hint="run as root with hostPID",
        ) from exc
    except OSError:
        return frozenset()
    for name in names:
        try:
            target = host.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target == _ANONYMOUS or target.startswith(_NODES):
            files.add(target)
    try:
        if _ANONYMOUS.encode() in host.read(f"/proc/{pid}/maps"):
            files.add(_ANONYMOUS)
    except OSError:
        pass
    return frozenset(files)


def _command(host: HostFiles, pid: int) -> str:
    """Command line for people: whatever a process calls itself, it cannot move the reader's cursor."""
    try:
        raw = host.read(f"/proc/{pid}/cmdline", max_bytes=4096)
    except OSError:
        return "unknown"
    text = "".join(c if c.isprintable() else " " for c in raw.decode("utf-8", "replace"))
    return text.strip()[:_MAX_COMMAND] or "unknown"


def _pod(host: HostFiles, pid: int, pods: Mapping[str, str]) -> str:
    try:
        match = _POD.search(host.read(f"/proc/{pid}/cgroup", max_bytes=4096).decode("utf-8", "replace"))
    except OSError:
        return ""
    if match is None:
        return ""
    uid = match.group(1).replace("_", "-")
    return pods.get(uid, uid)
