"""Which pod a process belongs to, from evidence on the node itself: cgroups, and the log folders that kubelet makes."""

import re
from collections.abc import Iterator

from kata_gpu.ports import HostFiles

_UID = r"[0-9a-f]{8}(?:[-_]?[0-9a-f]{4}){3}[-_]?[0-9a-f]{12}"  # static pods have theirs without dashes
_CGROUP = re.compile(rf"pod({_UID})")
# Of the host; and as a privileged container that shares its PID namespace sees them, through process 1.
_LOGS = ("/var/log/pods", "/proc/1/root/var/log/pods")
_MAX_CGROUP = 4096


def pod_names(host: HostFiles) -> dict[str, str]:
    """UID to `namespace/name` of the pods that kubelet keeps logs of (`/var/log/pods/NAMESPACE_NAME_UID`)."""
    names: dict[str, str] = {}
    for folder in _LOGS:
        try:
            entries = host.listdir(folder)
        except OSError:
            continue
        parts = (entry.split("_") for entry in entries)
        names.update({p[2]: f"{p[0]}/{p[1]}" for p in parts if len(p) == 3})
    return names


def pod_uid(host: HostFiles, pid: int) -> str:
    """UID of the pod whose cgroup a process is in; empty where it is in none."""
    try:
        text = host.read(f"/proc/{pid}/cgroup", max_bytes=_MAX_CGROUP).decode("utf-8", "replace")
    except OSError:
        return ""
    match = _CGROUP.search(text)
    return match.group(1).replace("_", "-") if match is not None else ""


def process_ids(host: HostFiles) -> Iterator[int]:
    """Every process of the PID namespace. Raises OSError."""
    return (int(name) for name in host.listdir("/proc") if name.isdecimal())
