"""What an OVMF image says about itself: the table of GUIDed entries below the reset vector (edk2 ResetVectorVtf0).

The table ends 32 bytes below the end of the image with a footer entry; every entry is read backwards as
data, length (u16, of the whole entry), GUID. SEV metadata and TDVF metadata are found through it.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from uuid import UUID

from kata_gpu.errors import Malformed

MAX_OVMF_BYTES = 16 << 20  # images are 2 to 4 MiB
FOUR_GIB = 1 << 32
PAGE = 4096
_FOOTER = UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
SEV_ES_RESET_BLOCK = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
SEV_HASH_TABLE = UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
SEV_METADATA = UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
TDVF_METADATA = UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
_ENTRY = 18  # length and GUID
_MAX_SECTIONS = 64


class SevSectionType(IntEnum):
    """Sections of the SEV metadata (OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm)."""

    SEC_MEM = 1
    SECRETS = 2
    CPUID = 3
    SVSM_CAA = 4
    KERNEL_HASHES = 0x10


@dataclass(frozen=True, slots=True)
class Section:
    """A range of guest memory that launch measures."""

    gpa: int
    size: int
    type: int


@dataclass(frozen=True, slots=True)
class Ovmf:
    """A parsed image; `entries` maps GUID to the entry's data."""

    image: bytes
    entries: Mapping[UUID, bytes]

    @property
    def gpa(self) -> int:
        """Guest address of the first byte: the image ends at 4 GiB."""
        return FOUR_GIB - len(self.image)

    def _offset_from_end(self, guid: UUID, what: str) -> int:
        data = self.entries.get(guid)
        if data is None or len(data) != 4:
            raise Malformed(
                "ovmf-no-metadata", f"the firmware has no {what}", where="firmware", expected=f"entry {guid}"
            )
        offset = len(self.image) - int.from_bytes(data, "little")
        if not 0 <= offset < len(self.image):
            raise Malformed("ovmf-offset", f"{what} lies outside the firmware", where="firmware", got=offset)
        return offset

    @property
    def sev_es_reset_eip(self) -> int:
        """Where application processors start. Raises Malformed."""
        data = self.entries.get(SEV_ES_RESET_BLOCK)
        if data is None or len(data) < 4:
            raise Malformed("ovmf-no-reset-block", "the firmware has no SEV-ES reset block", where="firmware")
        return int(struct.unpack_from("<I", data)[0])

    @property
    def sev_hash_table_gpa(self) -> int:
        """Where QEMU puts the hashes of kernel, initrd and command line. Raises Malformed."""
        data = self.entries.get(SEV_HASH_TABLE)
        if data is None or len(data) < 4:
            raise Malformed("ovmf-no-hash-table", "the firmware has no table for kernel hashes", where="firmware",
                            expected="the AMDSEV build of OVMF")  # fmt: skip
        return int(struct.unpack_from("<I", data)[0])

    @property
    def sev_sections(self) -> tuple[Section, ...]:
        """SEV metadata, in measurement order. Raises Malformed."""
        at = self._offset_from_end(SEV_METADATA, "SEV-SNP metadata")
        signature, _size, version, count = _unpack("<4sIII", self.image, at)
        if signature != b"ASEV" or version != 1 or not 0 < count <= _MAX_SECTIONS:
            raise Malformed("ovmf-sev-metadata", "bad SEV metadata header", where="firmware", expected="ASEV version 1",
                            got=f"{signature!r} version {version} with {count} sections")  # fmt: skip
        sections = tuple(Section(*_unpack("<III", self.image, at + 16 + 12 * n)) for n in range(count))
        for section in sections:
            if section.type not in [*SevSectionType] or section.gpa % PAGE or section.size % PAGE or not section.size:
                raise Malformed("ovmf-sev-section", "bad SEV metadata section", where="firmware", got=section)
        return sections


def _unpack(layout: str, data: bytes, at: int) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(layout, data, at)
    except struct.error as exc:
        raise Malformed("ovmf-truncated", "metadata runs past the end", where="firmware", got=f"offset {at}") from exc


def parse_ovmf(image: bytes) -> Ovmf:
    """Read the table of an image. Raises Malformed where there is none."""
    if len(image) > MAX_OVMF_BYTES or len(image) % PAGE or not image:
        raise Malformed("ovmf-size", "not a firmware image", where="firmware",
                        expected=f"whole pages, at most {MAX_OVMF_BYTES} bytes", got=len(image))  # fmt: skip
    end = len(image) - 32
    length, guid = _footer(image, end)
    if guid != _FOOTER or not _ENTRY <= length <= end:
        raise Malformed(
            "ovmf-no-table", "no GUIDed table below the reset vector", where="firmware", expected=str(_FOOTER)
        )
    start, at = end - length, end - _ENTRY
    entries: dict[UUID, bytes] = {}
    while at - _ENTRY >= start:
        size, guid = _footer(image, at)
        if size < _ENTRY or at - size < start:
            raise Malformed("ovmf-entry", "table entry has an impossible length", where="firmware", got=size)
        entries.setdefault(guid, image[at - size : at - _ENTRY])
        at -= size
    return Ovmf(image, entries)


def _footer(image: bytes, end: int) -> tuple[int, UUID]:
    raw = image[end - _ENTRY : end]
    return int.from_bytes(raw[:2], "little"), UUID(bytes_le=raw[2:])
