"""The interfaces of this VM that evidence comes from: PCI bus, configfs-tsm, event log of the firmware."""

from dataclasses import dataclass, field
from pathlib import Path

from attestation.guest.pci import PCI_DEVICES
from attestation.guest.tsm import CCEL, Configfs, KernelConfigfs


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The real one by default. NVML and NSCQ are libraries: the loader finds them."""

    pci: Path = PCI_DEVICES
    configfs: Configfs = field(default_factory=KernelConfigfs)
    ccel: Path = CCEL
