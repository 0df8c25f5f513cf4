"""Evidence files as people have them: hex text, base64 or raw reports, and the JSON of NVIDIA's and CoCo's collectors.

Size is checked before anything is decoded. Nothing an envelope says (architecture, versions, its own nonce) is
believed: `arch` is kept only to be compared with the certificate, the rest is dropped (gpu-attestation.md 6.1).
"""

import binascii
import json
import re
from dataclasses import dataclass
from typing import Protocol

from attestation.errors import Malformed
from attestation.formats.certs import MAX_BUNDLE_BYTES
from attestation.formats.spdm import MAX_REPORT_BYTES
from attestation.values import Architecture

MAX_TEXT_BYTES = 64 * 1024  # an 8 KiB report as `\xNN` text is 32 KiB; the rest is white space
MAX_DEVICES = 64  # 8 GPUs and 4 switches are the largest board
MAX_JSON_BYTES = 2 * 1024 * 1024  # 12 devices take 137 kB; 64 with full buffers and indentation fit

_REQUEST_START = b"\x11\xe0"  # SPDM 1.1 GET_MEASUREMENTS: raw bytes, never text
_HEX_NOISE = re.compile(rb"\\x|0x|[\s,]+")
_HEX = re.compile(rb"[0-9A-Fa-f]+")
_LISTS = ("evidence_list", "device_evidence_list")  # NRAS request, CoCo attester
_ARCHITECTURES = {
    "HOPPER": Architecture.HOPPER,
    "BLACKWELL": Architecture.BLACKWELL,
    "LS10": Architecture.LS10,
    "LS_10": Architecture.LS10,
}


class Decoder(Protocol):
    """As `decode_base64`."""

    def __call__(self, text: str, *, where: str) -> bytes:
        """The bytes, or Malformed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NvEvidence:
    """One device's report and chain as bytes, and the architecture that the envelope claims (None: it does not)."""

    report: bytes
    chain: bytes
    arch: Architecture | None = None


def decode_report(data: bytes) -> bytes:
    """Report bytes from raw bytes, hex text (with 0x, \\x, commas, white space) or base64. Raises Malformed."""
    if type(data) is not bytes:
        raise TypeError("an evidence file is bytes")
    if len(data) > MAX_TEXT_BYTES:
        raise Malformed(
            "report-size", "too large", where="report file", expected=f"at most {MAX_TEXT_BYTES} bytes", got=len(data)
        )
    if data.startswith(_REQUEST_START):
        return data
    packed = _HEX_NOISE.sub(b"", data)
    if _HEX.fullmatch(packed) and len(packed) % 2 == 0:
        return bytes.fromhex(packed.decode("ascii"))
    return _base64(b"".join(data.split()), where="report file")


def parse_evidence(data: bytes) -> tuple[NvEvidence, ...]:
    """Devices of a JSON evidence file: a list, one object, an NRAS request or a CoCo device list. Raises Malformed."""
    if type(data) is not bytes:
        raise TypeError("an evidence file is bytes")
    if len(data) > MAX_JSON_BYTES:
        raise Malformed(
            "evidence-size", "too large", where="evidence", expected=f"at most {MAX_JSON_BYTES} bytes", got=len(data)
        )
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as exc:
        raise Malformed("evidence-json", "not JSON", where="evidence", got=str(exc)[:80]) from exc
    return read_evidence(document)


def decode_base64(text: str, *, where: str) -> bytes:
    """Canonical base64, no white space. Raises Malformed."""
    return _base64(text.encode("utf-8", "replace"), where=where)


def read_evidence(document: object, decode_chain: Decoder = decode_base64) -> tuple[NvEvidence, ...]:
    """Devices of a JSON document that was parsed before: the same shapes as `parse_evidence`. Raises Malformed.

    `decode_chain` may remember the chains of devices that attest again and again: each is several thousand characters.
    """
    shared_arch = document.get("arch") if isinstance(document, dict) else None
    if isinstance(document, dict):
        document = next((document[name] for name in _LISTS if name in document), [document])
    if not isinstance(document, list) or not 1 <= len(document) <= MAX_DEVICES:
        raise Malformed(
            "evidence-empty" if document == [] else "evidence-json",
            "not a list of devices",
            where="evidence",
            expected=f"1 to {MAX_DEVICES} devices",
            got=len(document) if isinstance(document, list) else type(document).__name__,
        )
    return tuple(_device(item, shared_arch, decode_chain, where=f"evidence[{i}]") for i, item in enumerate(document))


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Malformed("evidence-json", "member occurs twice", where="evidence", got=[name for name, _ in pairs][:20])
    return members


def _device(item: object, shared_arch: object, decode_chain: Decoder, *, where: str) -> NvEvidence:
    if not isinstance(item, dict):
        raise Malformed("evidence-json", "not an object", where=where, got=type(item).__name__)
    fields: list[bytes] = []
    for name, bound, decode in (
        ("evidence", MAX_REPORT_BYTES, decode_base64),
        ("certificate", MAX_BUNDLE_BYTES, decode_chain),
    ):
        value = item.get(name)
        if not isinstance(value, str):
            raise Malformed("evidence-json", "no base64 text", where=f"{where}.{name}", got=type(value).__name__)
        if len(value) > bound * 2:
            raise Malformed("evidence-size", "too large", where=f"{where}.{name}", expected=bound * 2, got=len(value))
        fields.append(decode(value, where=f"{where}.{name}"))
    return NvEvidence(report=fields[0], chain=fields[1], arch=_architecture(item.get("arch", shared_arch), where))


def _architecture(text: object, where: str) -> Architecture | None:
    if text is None:
        return None
    arch = _ARCHITECTURES.get(text.upper()) if isinstance(text, str) else None
    if arch is None:
        raise Malformed(
            "arch-unknown", "unknown architecture", where=f"{where}.arch", expected="|".join(_ARCHITECTURES),
            got=repr(text)[:40],
        )  # fmt: skip
    return arch


def _base64(text: bytes, *, where: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as exc:
        raise Malformed("base64", "neither hexadecimal nor base64", where=where, got=repr(text[:40])[1:]) from exc
