"""RuntimeClasses whose pods are VMs that take GPUs over VFIO, told by name: ours, and the handlers of kata-deploy.

RuntimeClasses are written by administrators of the cluster; one under a name of their own tells by its handler.
"""

import re

GPU_CLASS = r"^kata-(qemu-)?nvidia-gpu(-[a-z0-9]+)*$"
CONFIDENTIAL_CLASS = r"^kata-(qemu-)?nvidia-gpu(-ppcie)?-(snp|tdx)(-runtime-rs)?$"


def starts_gpu_vm(name: str) -> bool:
    """Whether a RuntimeClass, or a handler, of this name starts such a VM."""
    return re.fullmatch(GPU_CLASS, name) is not None


def is_confidential(name: str) -> bool:
    """Whether that VM is a confidential one. `kata-nvidia-gpu` is what the cluster makes of it: its handler tells."""
    return re.fullmatch(CONFIDENTIAL_CLASS, name) is not None
