"""SNP evidence as guests send it: the Confidential Containers JSON, or raw bytes (tee.md 1.2, 1.7).

The stock attester sends the *parsed* report, so the 1184 signed bytes are rebuilt here; the verifier then sees bytes
only. The certificate table comes from the host and is a list of candidates, never of anchors.
"""

import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import compress
from typing import Any
from uuid import UUID

from attestation.errors import Malformed
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.formats.snp_report import (
    CPUID_SINCE,
    LAYOUT,
    MITIGATION_SINCE,
    REPORT_BYTES,
    SCALAR_BYTES,
    Firmware,
    parse_snp_report,
)
from attestation.formats.snp_tcb import Product, pack_tcb, parse_tcb, product_of

MAX_EVIDENCE_BYTES = 256 * 1024  # three certificates as JSON integers take 35 KiB
MAX_TABLE_BYTES = 16 * 1024  # what the kernel's extended report interface hands over
MAX_TABLE_ENTRIES = 16
_ENTRY_BYTES = 24
_ZERO_OR_ONE = b"\1\1" + bytes(254)  # translation table


class CertKind(StrEnum):
    """Entries of the certificate table that matter here."""

    VCEK = "VCEK"
    VLEK = "VLEK"
    ASK = "ASK"
    ARK = "ARK"


_GUIDS: Mapping[bytes, CertKind] = {
    UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes: CertKind.VCEK,
    UUID("a8074bc2-a25a-483e-aae6-39c045a0b8a1").bytes: CertKind.VLEK,
    UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes: CertKind.ASK,
    UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae").bytes: CertKind.ARK,
}
_IGNORED_TYPES = frozenset({"Empty", "CRL", "ASVK"})  # known to the attester's library, not used from a host's table


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpEvidence:
    """The exact report bytes, and the certificates that came with them (untrusted, DER or PEM)."""

    report: bytes
    certificates: Mapping[CertKind, bytes]


def _bad(code: str, what: str, where: str, *, expected: object = "", got: object = "") -> Malformed:
    return Malformed(code, what, where=f"snp-evidence.{where}", expected=expected, got=got)


def parse_snp_evidence(text: str | bytes) -> SnpEvidence:
    """Evidence as JSON text; see `read_snp_evidence`."""
    document = parse_json(text, max_bytes=MAX_EVIDENCE_BYTES, what="snp-evidence")
    return read_snp_evidence(require_object(document, "snp-evidence"))


def read_snp_evidence(document: Mapping[str, Any]) -> SnpEvidence:
    """`{"attestation_report": {...}, "cert_chain": [...]}` of the stock attester, or `{"raw": b64, "cert_table": b64}`.

    Raises Malformed. What it returns still has to be parsed as a report and verified.
    """
    if "raw" in document:
        table = document.get("cert_table")
        return SnpEvidence(
            report=_base64(document["raw"], "raw"),
            certificates=parse_cert_table(_base64(table, "cert_table")) if table is not None else {},
        )
    report = require_object(document.get("attestation_report"), "snp-evidence.attestation_report")
    return SnpEvidence(report=rebuild_report(report), certificates=_cert_chain(document.get("cert_chain")))


def _base64(value: object, where: str) -> bytes:
    try:
        return b64decode(require_text(value, f"snp-evidence.{where}"), validate=True)
    except ValueError as exc:
        raise _bad("snp-evidence-base64", "not base64", where) from exc


def _uint(document: Mapping[str, Any], name: str, size: int) -> int:
    value = document.get(name)
    if type(value) is not int or not 0 <= value < 1 << 8 * size:  # bool and float are not numbers here
        raise _bad("snp-evidence-number", "not a number of this size", name, expected=f"u{8 * size}", got=repr(value))
    return value


def _octets(value: object, where: str, size: int | None = None) -> bytes:
    if not isinstance(value, list) or len(value) > MAX_TABLE_BYTES or size not in (None, len(value)):
        got = f"{len(value)} members" if isinstance(value, list) else type(value).__name__
        raise _bad("snp-evidence-bytes", "not a byte array of this length", where, expected=size or "bytes", got=got)
    try:
        raw = bytes(value)
        # It took True for 1 and False for 0, so these two are looked at again.
        if not {*map(type, compress(value, raw.translate(_ZERO_OR_ONE)))} <= {int}:
            raise ValueError
    except (TypeError, ValueError) as exc:
        raise _bad("snp-evidence-bytes", "array members are not bytes", where, expected="0 to 255") from exc
    return raw


def _tcb(document: Mapping[str, Any], name: str) -> bytes:
    parts = require_object(document.get(name), f"snp-evidence.{name}")
    if "fmc" not in parts:
        raise _bad("snp-evidence-tcb", "TCB without fmc member", name, expected="fmc: null or number")
    fmc = None if parts["fmc"] is None else _uint(parts, "fmc", 1)
    bootloader, tee, snp, microcode = (_uint(parts, part, 1) for part in ("bootloader", "tee", "snp", "microcode"))
    return pack_tcb(fmc=fmc, bootloader=bootloader, tee=tee, snp=snp, microcode=microcode)


def _firmware(document: Mapping[str, Any], name: str) -> bytes:
    parts = require_object(document.get(name), f"snp-evidence.{name}")
    return bytes([_uint(parts, part, 1) for part in ("build", "minor", "major")])


def _nullable(document: Mapping[str, Any], name: str, size: int, *, present: bool) -> int:
    if present:
        return _uint(document, name, size)
    if document.get(name) is not None:
        raise _bad("snp-evidence-version", "member is newer than the report version", name, expected="null")
    return 0


def rebuild_report(document: Mapping[str, Any]) -> bytes:
    """The 1184 bytes behind the attester's JSON. Reserved bytes are zero, as its parser dropped them."""
    version = _uint(document, "version", 4)
    cpuid, mitigations = version >= CPUID_SINCE, version >= MITIGATION_SINCE
    signature = require_object(document.get("signature"), "snp-evidence.signature")

    def octets(name: str, size: int) -> bytes:
        return _octets(document.get(name), name, size)

    signed = LAYOUT.pack(
        version,
        _uint(document, "guest_svn", 4),
        _uint(document, "policy", 8),
        octets("family_id", 16),
        octets("image_id", 16),
        _uint(document, "vmpl", 4),
        _uint(document, "sig_algo", 4),
        _tcb(document, "current_tcb"),
        _uint(document, "plat_info", 8),
        _uint(document, "key_info", 4),
        octets("report_data", 64),
        octets("measurement", 48),
        octets("host_data", 32),
        octets("id_key_digest", 48),
        octets("author_key_digest", 48),
        octets("report_id", 32),
        octets("report_id_ma", 32),
        _tcb(document, "reported_tcb"),
        bytes(_nullable(document, f"cpuid_{part}", 1, present=cpuid) for part in ("fam_id", "mod_id", "step")),
        octets("chip_id", 64),
        _tcb(document, "committed_tcb"),
        _firmware(document, "current"),
        _firmware(document, "committed"),
        _tcb(document, "launch_tcb"),
        _nullable(document, "launch_mit_vector", 8, present=mitigations),
        _nullable(document, "current_mit_vector", 8, present=mitigations),
    )
    scalars = b"".join(_octets(signature.get(name), f"signature.{name}", SCALAR_BYTES) for name in ("r", "s"))
    return (signed + scalars).ljust(REPORT_BYTES, b"\0")


def render_snp_evidence(raw: bytes, certificates: Mapping[CertKind, bytes]) -> str:
    """The stock attester's JSON of a report: what `parse_snp_evidence` reads back to the same bytes."""
    report = parse_snp_report(raw)
    product = Product.MILAN if report.cpuid is None else product_of(*report.cpuid[:2]) or Product.MILAN

    def tcb(data: bytes, field: str) -> dict[str, int | None]:
        parsed = parse_tcb(data, product, field)
        return {"fmc": parsed.fmc} | {k: v for k, v in parsed.components().items() if k != "fmc"}

    def firmware(version: Firmware) -> dict[str, int]:
        return {"major": version.major, "minor": version.minor, "build": version.build}

    family, model, stepping = report.cpuid or (None, None, None)
    document = {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": report.policy,
        "family_id": list(report.family_id),
        "image_id": list(report.image_id),
        "vmpl": report.vmpl,
        "sig_algo": report.signature_algo,
        "current_tcb": tcb(report.current_tcb, "current_tcb"),
        "plat_info": report.platform_info,
        "key_info": report.key_info,
        "report_data": list(report.report_data),
        "measurement": list(report.measurement),
        "host_data": list(report.host_data),
        "id_key_digest": list(report.id_key_digest),
        "author_key_digest": list(report.author_key_digest),
        "report_id": list(report.report_id),
        "report_id_ma": list(report.report_id_ma),
        "reported_tcb": tcb(report.reported_tcb, "reported_tcb"),
        "cpuid_fam_id": family,
        "cpuid_mod_id": model,
        "cpuid_step": stepping,
        "chip_id": list(report.chip_id),
        "committed_tcb": tcb(report.committed_tcb, "committed_tcb"),
        "current": firmware(report.current),
        "committed": firmware(report.committed),
        "launch_tcb": tcb(report.launch_tcb, "launch_tcb"),
        "launch_mit_vector": report.launch_mit_vector,
        "current_mit_vector": report.current_mit_vector,
        "signature": {
            "r": list(report.signature_r.to_bytes(SCALAR_BYTES, "little")),
            "s": list(report.signature_s.to_bytes(SCALAR_BYTES, "little")),
        },
    }
    chain = [{"cert_type": str(kind), "data": list(data)} for kind, data in certificates.items()]
    return json.dumps({"attestation_report": document, "cert_chain": chain or None}, separators=(",", ":"))


def _cert_chain(value: object) -> Mapping[CertKind, bytes]:
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) > MAX_TABLE_ENTRIES:
        raise _bad("snp-evidence-certs", "not a certificate list", "cert_chain", expected=f"<= {MAX_TABLE_ENTRIES}")
    found: dict[CertKind, bytes] = {}
    for entry in value:
        fields = require_object(entry, "snp-evidence.cert_chain")
        kind = _cert_type(fields.get("cert_type"))
        if kind is not None:
            _add(found, kind, _octets(fields.get("data"), "cert_chain.data"))
    return found


def _cert_type(value: object) -> CertKind | None:
    if (isinstance(value, str) and value in _IGNORED_TYPES) or (isinstance(value, dict) and set(value) == {"OTHER"}):
        return None
    try:
        return CertKind(require_text(value, "snp-evidence.cert_chain.cert_type"))
    except ValueError as exc:
        raise _bad("snp-cert-type", "unknown certificate type", "cert_chain", got=repr(value)[:80]) from exc


def _add(found: dict[CertKind, bytes], kind: CertKind, data: bytes) -> None:
    if found.setdefault(kind, data) != data:
        raise _bad("snp-cert-table", "two different certificates of one type", "cert_chain", got=kind)


def parse_cert_table(table: bytes) -> Mapping[CertKind, bytes]:
    """The host's certificate table: 24-byte entries {GUID, offset, length} up to a zero entry, then the data.

    Raises Malformed for tables without terminator, and for entries that overlap, leave the table or repeat a type.
    Entries with other GUIDs are ignored (GHCB 2.0, section 4.1.8.1).
    """
    if len(table) > MAX_TABLE_BYTES:
        raise _bad("snp-cert-table", "table too large", "cert_table", expected=MAX_TABLE_BYTES, got=len(table))
    spans: list[tuple[int, int, bytes]] = []
    position = 0
    while (entry := table[position : position + _ENTRY_BYTES]) != bytes(_ENTRY_BYTES):
        if len(entry) != _ENTRY_BYTES or len(spans) == MAX_TABLE_ENTRIES:
            raise _bad("snp-cert-table", "no terminating entry", "cert_table", expected=f"<= {MAX_TABLE_ENTRIES}")
        offset, length = (int.from_bytes(entry[i : i + 4], "little") for i in (16, 20))
        spans.append((offset, offset + length, entry[:16]))
        position += _ENTRY_BYTES
    end = position + _ENTRY_BYTES
    found: dict[CertKind, bytes] = {}
    for start, stop, guid in sorted(spans):
        if start < end or stop > len(table) or start == stop:
            raise _bad("snp-cert-table", "entry overlaps or leaves the table", "cert_table", got=f"{start}..{stop}")
        end = stop
        kind = _GUIDS.get(guid)
        if kind is not None:
            _add(found, kind, table[start:stop])
    return found
