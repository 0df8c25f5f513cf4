"""TDX MRTD of a TDVF image (Intel TDX module, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND as KVM issues them page by page).

Only what the image itself fixes: kernel and command line go to RTMR1 and RTMR2 and are measured by the firmware
at run time, so their reference values are taken from a first, supervised boot.
"""

import hashlib
import struct
from dataclasses import dataclass

from kata_gpu.core.measure.ovmf import PAGE, TDVF_METADATA, Ovmf
from kata_gpu.errors import Malformed

_HEADER = struct.Struct("<4sIII")  # signature, length, version, number of sections
_SECTION = struct.Struct("<IIQQII")  # data offset, raw size, address, size, type, attributes
_MR_EXTEND = 1 << 0
_PAGE_AUG = 1 << 1
_CHUNK = 256  # TDH.MR.EXTEND measures 256 bytes a call
_MAX_SECTIONS = 64
_MAX_PAGES = 1 << 16  # 256 MiB; TDVF adds a few MiB


@dataclass(frozen=True, slots=True)
class TdvfSection:
    """One section of the TDVF metadata."""

    offset: int
    raw_size: int
    gpa: int
    size: int
    type: int
    attributes: int


def parse_tdvf(ovmf: Ovmf) -> tuple[TdvfSection, ...]:
    """TDVF metadata sections. Raises Malformed."""
    data = ovmf.entries.get(TDVF_METADATA)
    if data is None or len(data) != 4:
        raise Malformed("ovmf-no-tdvf", "the firmware has no TDVF metadata", where="firmware",
                        expected="OVMF.inteltdx.fd")  # fmt: skip
    at = len(ovmf.image) - struct.unpack("<I", data)[0]
    if not 0 <= at <= len(ovmf.image) - _HEADER.size:
        raise Malformed("ovmf-tdvf-offset", "TDVF metadata lies outside the firmware", where="firmware", got=at)
    signature, length, version, count = _HEADER.unpack_from(ovmf.image, at)
    if signature != b"TDVF" or version != 1 or not 0 < count <= _MAX_SECTIONS or length != 16 + count * _SECTION.size:
        raise Malformed("ovmf-tdvf-header", "bad TDVF metadata header", where="firmware", expected="TDVF version 1",
                        got=f"{signature!r} version {version} with {count} sections")  # fmt: skip
    if at + length > len(ovmf.image):
        raise Malformed("ovmf-truncated", "metadata runs past the end", where="firmware", got=f"offset {at}")
    sections = tuple(
        TdvfSection(*_SECTION.unpack_from(ovmf.image, at + _HEADER.size + n * _SECTION.size)) for n in range(count)
    )
    for s in sections:
        bad = s.gpa % PAGE or s.size % PAGE or s.raw_size > s.size or s.offset + s.raw_size > len(ovmf.image)
        added = not s.attributes & _PAGE_AUG  # the rest is only accepted later and measured by nobody
        if bad or (added and s.size // PAGE > _MAX_PAGES):
            raise Malformed("ovmf-tdvf-section", "bad TDVF section", where="firmware", got=s)
    return sections


def mrtd(ovmf: Ovmf) -> bytes:
    """48-byte MRTD."""
    running = hashlib.sha384()
    for section in parse_tdvf(ovmf):
        if section.attributes & _PAGE_AUG:
            continue
        content = ovmf.image[section.offset : section.offset + section.raw_size].ljust(section.size, b"\0")
        for at in range(0, section.size, PAGE):
            running.update(_call(b"MEM.PAGE.ADD", section.gpa + at))
            if section.attributes & _MR_EXTEND:
                for chunk in range(at, at + PAGE, _CHUNK):
                    running.update(_call(b"MR.EXTEND", section.gpa + chunk) + content[chunk : chunk + _CHUNK])
    return running.digest()


def _call(name: bytes, gpa: int) -> bytes:
    """The 128 bytes that the TDX module hashes for one call."""
    return name.ljust(16, b"\0") + gpa.to_bytes(8, "little") + bytes(104)
