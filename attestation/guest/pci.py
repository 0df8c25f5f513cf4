"""How many NVIDIA devices the VM really has, by the kernel's own list: what evidence must cover, none left out."""

from dataclasses import dataclass
from pathlib import Path

from attestation.errors import Unavailable

PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_GPU_CLASSES = ("0x0300", "0x0302")  # VGA and 3D controllers (PCI Code and ID Assignment, class 03)
_SWITCH_CLASS = "0x0680"  # NVSwitches are "other bridges"


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaDevices:
    """Counts of what can attest."""

    gpus: int
    switches: int


def count_devices(root: Path = PCI_DEVICES) -> NvidiaDevices:
    """Count by vendor and class. Raises Unavailable when the kernel's list cannot be read."""
    try:
        classes = [
            (function / "class").read_text().strip()
            for function in sorted(root.iterdir())
            if (function / "vendor").read_text().strip() == _NVIDIA
        ]
    except OSError as exc:
        raise Unavailable("pci", "cannot list PCI devices", where=str(root), got=exc.strerror) from exc
    return NvidiaDevices(
        gpus=sum(c.startswith(_GPU_CLASSES) for c in classes),
        switches=sum(c.startswith(_SWITCH_CLASS) for c in classes),
    )
