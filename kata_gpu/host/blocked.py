"""Unbinds that wait for the users of a device: it looks unbound and is not, and most of what is written to it blocks.

The driver link and the cdev are gone at once, the group's node stays until the last user goes, and the task that wrote
`unbind`, dead or alive, waits in one function of the kernel (measured on 6.1, 6.12 and 6.17).
"""

from kata_gpu.core.pci import PciFunction
from kata_gpu.host.pods import process_ids
from kata_gpu.ports import FileKind, HostFiles

WAIT_CHANNEL = b"vfio_unregister_group_dev"


def keeps_group(host: HostFiles, function: PciFunction) -> bool:
    """Whether a driverless function still has the VFIO node of its group, as while its unbind is blocked."""
    if function.driver is not None or function.iommu_group is None:
        return False
    return host.kind(f"/dev/vfio/{function.iommu_group}") is FileKind.CHAR_DEVICE


def unbind_waits(host: HostFiles) -> bool:
    """Whether a task sits in an unbind that waits for VFIO users; so it is where nobody can tell."""
    try:
        pids = list(process_ids(host))
    except OSError:
        return True
    return any(_channel(host, pid) == WAIT_CHANNEL for pid in pids)


def _channel(host: HostFiles, pid: int) -> bytes:
    try:
        return host.read(f"/proc/{pid}/wchan", max_bytes=64).strip()
    except OSError:
        return b""
