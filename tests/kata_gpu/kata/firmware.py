"""A firmware image of the test's own: metadata as edk2 writes it, arbitrary content."""

import struct
from uuid import UUID

from kata_gpu.core.measure.ovmf import SEV_ES_RESET_BLOCK, SEV_HASH_TABLE, SEV_METADATA, TDVF_METADATA

FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
SEV_SECTIONS = [(0x800000, 0x9000, 1), (0x80B000, 0x2000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3),
                (0x80F000, 0x1000, 4), (0x810000, 0x1000, 0x10), (0x811000, 0xF000, 1)]  # fmt: skip
TDVF_SECTIONS = [(0x8000, 0x8000, 0xFFFF8000, 0x8000, 0, 1), (0, 0x1000, 0xFFFF0000, 0x1000, 1, 0),
                 (0, 0, 0x80B000, 0x2000, 2, 0), (0, 0, 0x810000, 0x10000, 3, 0), (0, 0, 0, 0x80000000, 4, 2)]  # fmt: skip


def entry(guid: UUID, data: bytes) -> bytes:
    return data + struct.pack("<H", len(data) + 18) + guid.bytes_le


def firmware(size: int = 0x10000, *, sev: bool = True, tdvf: bool = True, kernel_hashes: bool = True) -> bytes:
    """An image of `size` bytes whose SEV metadata lies at 0x1000 and TDVF metadata at 0x2000."""
    image = bytearray((n * 7 + (n >> 8)) & 0xFF for n in range(size))
    sections = [s for s in SEV_SECTIONS if kernel_hashes or s[2] != 0x10]
    image[0x1000 : 0x1000 + 16 + 12 * len(sections)] = struct.pack(
        "<4sIII", b"ASEV", 16 + 12 * len(sections), 1, len(sections)
    ) + b"".join(struct.pack("<III", *s) for s in sections)
    image[0x2000 : 0x2000 + 16 + 32 * len(TDVF_SECTIONS)] = struct.pack(
        "<4sIII", b"TDVF", 16 + 32 * len(TDVF_SECTIONS), 1, len(TDVF_SECTIONS)
    ) + b"".join(struct.pack("<IIQQII", *s) for s in TDVF_SECTIONS)
    table = b""
    if tdvf:
        table += entry(TDVF_METADATA, struct.pack("<I", size - 0x2000))
    if sev:
        table += entry(SEV_METADATA, struct.pack("<I", size - 0x1000))
        table += entry(SEV_HASH_TABLE, struct.pack("<II", 0x810C00, 0x400))
        table += entry(SEV_ES_RESET_BLOCK, struct.pack("<I", 0x80B004))
    # The footer's length covers the table and itself.
    table += struct.pack("<H", len(table) + 18) + FOOTER.bytes_le
    image[size - 32 - len(table) : size - 32] = table
    return bytes(image)
