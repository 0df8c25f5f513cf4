"""SPDM 1.1 evidence of NVIDIA devices: GET_MEASUREMENTS request followed by its MEASUREMENTS response.

gpu-attestation.md 1.1 to 1.3 and 1.5. Everything before the signature is signed, so the parser keeps that very slice;
every byte is accounted for, and what the opaque data of a device *means* is not decided here (`nv_report`).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from attestation.errors import Malformed
from attestation.formats.reader import Reader

MAX_REPORT_BYTES = 8 * 1024  # NVML report buffer 0x2000 (gpu-attestation.md 1.8); reports seen have at most 4274 bytes
MAX_TLVS = 128  # 17 seen; ids above 36 have never been seen
BLOCK_BYTES = 55
DIGEST_BYTES = 48
SIGNATURE_BYTES = 96

# 1.1: (offset, field, value); the nonce is at 4 to 35, NumberOfBlocks at 41, MeasurementRecordLength at 42 to 44.
_CONSTANTS = (
    (0, "request.version", 0x11),
    (1, "request.code", 0xE0),  # GET_MEASUREMENTS
    (2, "request.param1", 0x01),  # signature requested
    (3, "request.param2", 0xFF),  # all blocks
    (36, "request.slot", 0x00),
    (37, "response.version", 0x11),
    (38, "response.code", 0x60),  # MEASUREMENTS
    (39, "response.param1", 0x00),
    (40, "response.param2", 0x00),
)
_NONCE, NONCE_BYTES = 4, 32  # the responder's nonce, after the measurements, has the same length
_HEADER_TOTAL = 45
_DMTF, _DIGEST_OF_MUTABLE_FIRMWARE = 0x01, 0x01
_HEADER = struct.Struct("<BBHBH")
_TLV = struct.Struct("<HH")
_BLOCK_CONSTANTS = (_DMTF, BLOCK_BYTES - 4, _DIGEST_OF_MUTABLE_FIRMWARE, DIGEST_BYTES)
_BLOCK_FIELDS = ("specification", "size", "value-type", "value-size")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpdmReport:
    """A report of valid shape; nothing in it is proven. `signed` is the slice that `signature` (r then s) covers.

    `measurements[i]` is block i+1, which reference documents call index i. `opaque` has every element by its type.
    """

    nonce: bytes
    measurements: tuple[bytes, ...]
    responder_nonce: bytes
    opaque: Mapping[int, bytes]
    signed: bytes
    signature: bytes
    trailing_zeros: int


def parse_report(data: bytes, *, max_trailing_zeros: int = 0) -> SpdmReport:
    """Parse with exact consumption; at most `max_trailing_zeros` zero bytes may follow the signature (1.5).

    Raises Malformed, and TypeError for anything that is not exactly `bytes`.
    """
    if type(data) is not bytes:
        raise TypeError("a report is bytes")
    if len(data) > MAX_REPORT_BYTES:
        raise Malformed(
            "report-size", "too large", where="report", expected=f"at most {MAX_REPORT_BYTES} bytes", got=len(data)
        )
    reader = Reader(data, "report")
    header = reader.take(_HEADER_TOTAL, "header")
    for offset, field, want in _CONSTANTS:
        if header[offset] != want:
            raise Malformed(
                f"spdm-{field.partition('.')[2]}",
                "unexpected value",
                where=f"report.{field}",
                expected=f"{want:#04x}",
                got=f"{header[offset]:#04x}",
            )
    blocks, record_bytes = header[41], int.from_bytes(header[42:45], "little")
    if blocks == 0 or record_bytes != blocks * BLOCK_BYTES:
        raise Malformed(
            "record-length",
            "number of blocks and record length disagree",
            where="report.response",
            expected=f"N blocks of {BLOCK_BYTES} bytes",
            got=f"{blocks} blocks in {record_bytes} bytes",
        )
    measurements = _parse_record(reader.take(record_bytes, "response.record"), blocks)
    responder_nonce = reader.take(NONCE_BYTES, "response.nonce")
    opaque = _parse_opaque(reader.take(reader.u16le("response.opaque-length"), "response.opaque"))
    signed = data[: reader.position]
    signature = reader.take(SIGNATURE_BYTES, "response.signature")
    trailing = reader.take(reader.remaining, "trailing")
    if len(trailing) > max_trailing_zeros or any(trailing):
        raise Malformed(
            "trailing-bytes",
            "report goes on after its signature",
            where="report",
            expected=f"at most {max_trailing_zeros} zero bytes",
            got=f"{len(trailing)} bytes {trailing[:16].hex()}",
        )
    return SpdmReport(
        nonce=header[_NONCE : _NONCE + NONCE_BYTES],
        measurements=measurements,
        responder_nonce=responder_nonce,
        opaque=opaque,
        signed=signed,
        signature=signature,
        trailing_zeros=len(trailing),
    )


@lru_cache(maxsize=256)  # NumberOfBlocks is one byte
def _record_layout(blocks: int) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """Header and digest of every block in turn, and the headers that there must be."""
    headers = tuple(_HEADER.pack(index, *_BLOCK_CONSTANTS) for index in range(1, blocks + 1))
    return struct.Struct(f"{_HEADER.size}s{DIGEST_BYTES}s" * blocks), headers


def reread_report(data: bytes, before: SpdmReport) -> SpdmReport | None:
    """The report of a device that says the very same as `before` but for both nonces and the signature, else None."""
    end, responder_nonce = len(before.signed), _HEADER_TOTAL + BLOCK_BYTES * len(before.measurements)
    tail = responder_nonce + NONCE_BYTES
    if (
        before.trailing_zeros
        or len(data) != end + SIGNATURE_BYTES
        or data[:_NONCE] != before.signed[:_NONCE]
        or data[_NONCE + NONCE_BYTES : responder_nonce] != before.signed[_NONCE + NONCE_BYTES : responder_nonce]
        or data[tail:end] != before.signed[tail:]
    ):
        return None
    return SpdmReport(
        nonce=data[_NONCE : _NONCE + NONCE_BYTES],
        measurements=before.measurements,
        responder_nonce=data[responder_nonce:tail],
        opaque=before.opaque,
        signed=data[:end],
        signature=data[end:],
        trailing_zeros=0,
    )


def _parse_record(record: bytes, blocks: int) -> tuple[bytes, ...]:
    """1.2: blocks 1..N in ascending order, each one SHA-384 digest, without slack."""
    layout, headers = _record_layout(blocks)
    fields = layout.unpack(record)
    if fields[::2] != headers:
        number = next(i for i in range(blocks) if fields[2 * i] != headers[i])
        raise _bad_block(fields[2 * number], number + 1, total=blocks)
    return fields[1::2]


def _bad_block(header: bytes, expected: int, *, total: int) -> Malformed:
    index, *constants = _HEADER.unpack(header)
    if index != expected:
        return _misplaced(index, expected, total=total)
    name, want, got = next(
        row for row in zip(_BLOCK_FIELDS, _BLOCK_CONSTANTS, constants, strict=True) if row[1] != row[2]
    )
    return Malformed(f"block-{name}", "unexpected value", where=f"report.block[{index}]", expected=want, got=got)


def _misplaced(index: int, expected: int, *, total: int) -> Malformed:
    if not 1 <= index <= total:
        code, what = "block-index", "index out of range"
    elif index < expected:
        code, what = "block-duplicate", "index seen before"
    else:
        code, what = "block-order", "indices are not ascending from 1"
    return Malformed(code, what, where="report.block", expected=expected, got=index)


def _parse_opaque(data: bytes) -> Mapping[int, bytes]:
    """1.3: type and size are little-endian u16; every byte belongs to an element; no type occurs twice."""
    found: dict[int, bytes] = {}
    end = 0
    while end < len(data):
        if len(data) - end < _TLV.size:
            raise _short_tlv("header", _TLV.size, len(data) - end)
        kind, size = _TLV.unpack_from(data, end)
        start = end + _TLV.size
        end = start + size
        if end > len(data):
            raise _short_tlv(f"element[{kind}]", size, len(data) - start)
        if kind in found:
            raise Malformed("tlv-duplicate", "element occurs twice", where="report.opaque", got=f"type {kind}")
        found[kind] = data[start:end]
    if len(found) > MAX_TLVS:
        raise Malformed("tlv-count", "too many elements", where="report.opaque", expected=f"at most {MAX_TLVS}")
    return found


def _short_tlv(what: str, want: int, got: int) -> Malformed:
    return Malformed(
        "tlv-truncated", "opaque data ends early", where=f"report.opaque.{what}", expected=f"{want} bytes", got=got
    )
