"""Who else manages the GPUs of this node: two managers fight over driver, mode, labels and CDI names.

Told by the program that a process runs, and by the pod that a process runs in: NVIDIA's cc-manager is a
`python main.py`, and its vfio-manager sleeps when it has bound the devices.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from kata_gpu.errors import InUse
from kata_gpu.host.pods import pod_names, pod_uid, process_ids
from kata_gpu.ports import HostFiles

_INTERPRETER = re.compile(r"(?:python|pypy)[\d.]*|(?:ba|da)?sh")


@dataclass(frozen=True, slots=True)
class _Owner:
    """`pods` are beginnings of pod names."""

    name: str
    programs: tuple[str, ...]
    pods: tuple[str, ...]
    paths: tuple[str, ...]
    stop: str


_OWNERS = (
    _Owner(
        "NVIDIA cc-manager",
        ("k8s-cc-manager", "nvidia-k8s-cc-manager", "cc-manager"),
        ("nvidia-cc-manager",),
        ("/run/nvidia/validations/.cc-manager-ctr-ready",),
        "set ccManager.enabled=false in the GPU operator and remove the path",
    ),
    _Owner(
        "NVIDIA vfio-manager",
        ("vfio-manage", "vfio-manager"),
        ("nvidia-vfio-manager",),
        (),
        "set vfioManager.enabled=false in the GPU operator",
    ),
    _Owner(
        "NVIDIA sandbox device plugin",
        (
            "nvidia-sandbox-device-plugin",
            "nvidia-kata-sandbox-device-plugin",
            "sandbox-device-plugin",
            "kata-device-plugin",
        ),
        ("nvidia-sandbox-device-plugin", "nvidia-kata-sandbox-device-plugin", "kata-device-plugin"),
        (),
        "set sandboxDevicePlugin.enabled=false in the GPU operator",
    ),
    _Owner(
        "NVIDIA DRA driver (passthrough)",
        ("gpu-kubelet-plugin",),
        ("nvidia-dra-driver-gpu-kubelet-plugin",),
        ("/var/lib/kubelet/plugins/gpu.nvidia.com/dra.sock",),
        "uninstall it on this node, or run kata-gpu in its nvidia-dra mode",
    ),
)


def find_owners(host: HostFiles) -> dict[str, str]:
    """Managers that are at work, each with the evidence and how to stop it."""
    processes = _processes(host)
    found = {}
    for owner in _OWNERS:
        evidence = _evidence(owner, processes) or next(
            (f"{path} exists" for path in owner.paths if host.kind(path) is not None), None
        )
        if evidence is not None:
            found[owner.name] = f"{evidence}; {owner.stop}"
    return found


def _evidence(owner: _Owner, processes: Iterable["_Process"]) -> str | None:
    for process in processes:
        program = next((p for p in process.programs if p in owner.programs), None)
        if program is not None:
            return f"process {process.pid} ({program})"
        if process.pod.rpartition("/")[2].startswith(owner.pods):
            return f"process {process.pid} of pod {process.pod}"
    return None


def require_sole_owner(host: HostFiles) -> None:
    """Raises InUse naming the first other manager."""
    for name, evidence in find_owners(host).items():
        raise InUse(
            "managed-by-other",
            f"{name} manages the devices of this node",
            got=evidence.partition("; ")[0],
            hint=evidence.partition("; ")[2],
        )


@dataclass(frozen=True, slots=True)
class _Process:
    pid: int
    programs: tuple[str, ...]
    pod: str


def _processes(host: HostFiles) -> list[_Process]:
    names = pod_names(host)
    try:
        pids = list(process_ids(host))
    except OSError:
        return []
    return [_Process(pid, _programs(host, pid), names.get(pod_uid(host, pid), "") if names else "") for pid in pids]


def _programs(host: HostFiles, pid: int) -> tuple[str, ...]:
    """Base name of the program, and of the script where the program is an interpreter."""
    try:
        words = host.read(f"/proc/{pid}/cmdline", max_bytes=4096).decode("utf-8", "replace").split("\0")[:2]
    except OSError:
        return ()
    bases = tuple(word.rsplit("/", 1)[-1] for word in words)
    return bases if _INTERPRETER.fullmatch(bases[0]) else bases[:1]
