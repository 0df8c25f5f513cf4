"""The first register state of a vCPU as QEMU and KVM launch it under SEV-SNP (AMD APM vol. 2, table B-4).

One 4 KiB page a vCPU, measured after everything else. Only non-zero fields are listed.
"""

from enum import IntEnum

from kata_gpu.core.measure.ovmf import PAGE

BSP_EIP = 0xFFFFFFF0
SNP_ACTIVE = 1  # SEV_FEATURES bit 0
_SEGMENTS = {  # offset: selector, attributes, limit
    0x000: (0x0000, 0x93, 0xFFFF),  # ES
    0x020: (0x0000, 0x93, 0xFFFF),  # SS
    0x030: (0x0000, 0x93, 0xFFFF),  # DS
    0x040: (0x0000, 0x93, 0xFFFF),  # FS
    0x050: (0x0000, 0x93, 0xFFFF),  # GS
    0x060: (0x0000, 0x00, 0xFFFF),  # GDTR
    0x070: (0x0000, 0x82, 0xFFFF),  # LDTR
    0x080: (0x0000, 0x00, 0xFFFF),  # IDTR
    0x090: (0x0000, 0x8B, 0xFFFF),  # TR
}
_REGISTERS = (  # offset, width in bytes, value
    (0x0D0, 8, 0x1000),  # EFER.SVME
    (0x148, 8, 0x40),  # CR4.MCE
    (0x158, 8, 0x10),  # CR0.ET
    (0x160, 8, 0x400),  # DR7
    (0x168, 8, 0xFFFF0FF0),  # DR6
    (0x170, 8, 0x2),  # RFLAGS
    (0x268, 8, 0x0007040600070406),  # PAT after reset
    (0x3E8, 8, 0x1),  # XCR0
    (0x408, 4, 0x1F80),  # MXCSR
    (0x410, 2, 0x37F),  # x87 control word
)


class CpuModel(IntEnum):
    """CPUID signatures (Fn0000_0001 EAX) of QEMU's EPYC models; a VM has it in RDX at reset."""

    EPYC_V4 = 0x800F12
    EPYC_ROME = 0x830F10
    EPYC_MILAN = 0xA00F11
    EPYC_GENOA = 0xA10F10
    EPYC_TURIN = 0xB00F00


def render_vmsa(*, eip: int, signature: int, sev_features: int) -> bytes:
    """The page of one vCPU that starts at `eip`."""
    page = bytearray(PAGE)

    def put(offset: int, width: int, value: int) -> None:
        page[offset : offset + width] = value.to_bytes(width, "little")

    def segment(offset: int, selector: int, attributes: int, limit: int, base: int) -> None:
        put(offset, 2, selector)
        put(offset + 2, 2, attributes)
        put(offset + 4, 4, limit)
        put(offset + 8, 8, base)

    for offset, (selector, attributes, limit) in _SEGMENTS.items():
        segment(offset, selector, attributes, limit, 0)
    segment(0x010, 0xF000, 0x9B, 0xFFFF, eip & 0xFFFF0000)  # CS
    for offset, width, value in _REGISTERS:
        put(offset, width, value)
    put(0x178, 8, eip & 0xFFFF)  # RIP
    put(0x310, 8, signature)  # RDX
    put(0x3B0, 8, sev_features)
    return bytes(page)
