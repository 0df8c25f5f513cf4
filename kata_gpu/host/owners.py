"""Who else manages the GPUs of this node: two managers fight over driver, mode, labels and CDI names."""

from dataclasses import dataclass

from kata_gpu.errors import InUse
from kata_gpu.ports import HostFiles


@dataclass(frozen=True, slots=True)
class _Owner:
    name: str
    programs: tuple[str, ...]
    paths: tuple[str, ...]
    stop: str


_OWNERS = (
    _Owner(
        "NVIDIA cc-manager",
        ("k8s-cc-manager", "cc-manager"),
        ("/run/nvidia/validations/.cc-manager-ctr-ready",),
        "set ccManager.enabled=false in the GPU operator and remove the path",
    ),
    _Owner(
        "NVIDIA vfio-manager", ("vfio-manage", "vfio-manager"), (), "set vfioManager.enabled=false in the GPU operator"
    ),
    _Owner(
        "NVIDIA sandbox device plugin",
        (
            "nvidia-sandbox-device-plugin",
            "nvidia-kata-sandbox-device-plugin",
            "sandbox-device-plugin",
            "kata-device-plugin",
        ),
        (),
        "set sandboxDevicePlugin.enabled=false in the GPU operator",
    ),
    _Owner(
        "NVIDIA DRA driver (passthrough)",
        ("gpu-kubelet-plugin",),
        ("/var/lib/kubelet/plugins/gpu.nvidia.com/dra.sock",),
        "uninstall it on this node, or run kata-gpu in its nvidia-dra mode",
    ),
)


def find_owners(host: HostFiles) -> dict[str, str]:
    """Managers that are at work, each with the evidence and how to stop it."""
    programs = _programs(host)
    found = {}
    for owner in _OWNERS:
        program = next((p for p in owner.programs if p in programs), None)
        path = next((p for p in owner.paths if host.kind(p) is not None), None)
        if program is not None:
            found[owner.name] = f"process {programs[program]} ({program}); {owner.stop}"
        elif path is not None:
            found[owner.name] = f"{path} exists; {owner.stop}"
    return found


def require_sole_owner(host: HostFiles) -> None:
    """Raises InUse naming the first other manager."""
    for name, evidence in find_owners(host).items():
        raise InUse(
            "managed-by-other",
            f"{name} manages the devices of this node",
            got=evidence.partition("; ")[0],
            hint=evidence.partition("; ")[2],
        )


def _programs(host: HostFiles) -> dict[str, int]:
    """Base name of the program, and of the script of an interpreter, of every process."""
    found: dict[str, int] = {}
    try:
        names = host.listdir("/proc")
    except OSError:
        return {}
    for name in names:
        if not name.isdecimal():
            continue
        try:
            words = host.read(f"/proc/{name}/cmdline", max_bytes=4096).split(b"\0")[:2]
        except OSError:
            continue
        for word in words:
            found.setdefault(word.decode("utf-8", "replace").rsplit("/", 1)[-1], int(name))
    return found
