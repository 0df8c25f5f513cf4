"""A simulated host: the kernel's PCI, driver, IOMMU and VFIO semantics, and NVIDIA devices, behind the Host port.

Conformance tests compare it row by row with a real kernel. It proves our sequencing, not silicon.
"""
