"""Which VFIO driver suits a function: variant drivers announce themselves in modules.alias as `vfio_pci:` aliases."""

from fnmatch import fnmatchcase

from kata_gpu.core.pci import VFIO_PCI


def best_driver(aliases: str, modalias: str) -> str:
    """The variant whose alias matches with the most literal characters, else vfio-pci (as libvirt and the kernel do).

    `aliases` is modules.alias, `modalias` the function's. Driver names use dashes where modules use underscores.
    """
    best, literal = VFIO_PCI, 0
    subject = modalias.removeprefix("pci:")
    for line in aliases.splitlines():
        if not line.startswith("alias vfio_pci:"):
            continue
        fields = line.split()
        if len(fields) != 3:
            continue
        pattern = fields[1].removeprefix("vfio_pci:")
        weight = len(pattern) - 2 * pattern.count("*")
        if fields[2] != "vfio_pci" and weight > literal and fnmatchcase(subject, pattern):
            best, literal = fields[2].replace("_", "-"), weight
    return best
