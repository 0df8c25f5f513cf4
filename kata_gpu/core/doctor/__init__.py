"""Doctor: every host prerequisite as a check, and the report over them (node.md 1).

A check is a pure function of `HostFacts`; the adapter `kata_gpu.host.facts` gathers those from a live host, a mounted
root or a support bundle.
"""

from kata_gpu.core.doctor.check import Check, Finding, Profile, Severity, Status
from kata_gpu.core.doctor.containers import CONTAINERS
from kata_gpu.core.doctor.devices import DEVICES
from kata_gpu.core.doctor.drivers import DRIVERS
from kata_gpu.core.doctor.facts import HostFacts
from kata_gpu.core.doctor.iommu import IOMMU_VFIO
from kata_gpu.core.doctor.kata import KATA
from kata_gpu.core.doctor.kubernetes import KUBERNETES
from kata_gpu.core.doctor.platform import PLATFORM
from kata_gpu.core.doctor.report import Report, examine
from kata_gpu.core.doctor.tee import INTEL_TDX, SEV_SNP

SECTIONS = (PLATFORM, SEV_SNP, INTEL_TDX, IOMMU_VFIO, DEVICES, DRIVERS, KUBERNETES, CONTAINERS, KATA)
CHECKS: tuple[Check, ...] = tuple(row for section in SECTIONS for row in section.rows)

__all__ = ["CHECKS", "SECTIONS", "Check", "Finding", "HostFacts", "Profile", "Report", "Severity", "Status", "examine"]
