"""All rows that hold for a kernel, on that kernel: one machine for each way of booting it."""

from collections.abc import Sequence
from pathlib import Path

from tests.kata_gpu.node.conformance import BOOT_ID, BOOTS, ROWS
from tests.lab.machine import IOMMU, NO_REMAPPING, PYTHON, Kernel, boot

RUN_S = 420.0
APPEND = {
    "no-iommu": "intel_iommu=off",
    "passthrough": "iommu=pt",
    "lockdown": "lockdown=integrity",
    "vfio-ids": f"vfio-pci.ids={BOOT_ID}",
}


def run_rows(kernel: Kernel, qemu: Sequence[str], share: Path) -> dict[str, str]:
    """Row to what this kernel gave. Raises debian.Unavailable."""
    found: dict[str, str] = {}
    for how in BOOTS:
        if not any(kernel.profile in row.kernels and row.boot == how for row in ROWS):
            continue
        modules = str(kernel.modules or "-")
        outcome = boot(
            [PYTHON, "-B", "-m", "tests.lab.conformance_in_guest", kernel.profile, how, modules],
            kernel=kernel, qemu=qemu, share=share / how, timeout_s=RUN_S, append=APPEND.get(how, ""),
            iommu=NO_REMAPPING if how == "no-remapping" else IOMMU,
        )  # fmt: skip
        assert outcome.status == 0, outcome.output[-4000:]
        found |= {row["id"]: row["got"] for row in outcome.rows()}
    return found
