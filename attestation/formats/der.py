"""Strict DER, as far as X.509 certificates need it: definite minimal lengths, low tags, nothing after the end.

Exists because every AMD VCEK and VLEK has serial number 0, which X.509 libraries are about to refuse; the walker
only takes bytes apart, and all cryptography stays with `cryptography`. X.690 section 10, RFC 5280 section 4.1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

from attestation.errors import Malformed

MAX_CERTIFICATE_BYTES = 16 * 1024  # AMD leaves have 1.3 KiB, CA certificates 1.7 KiB
MAX_ELEMENTS = 256  # members of one SEQUENCE or SET; AMD leaves have 14 extensions
MAX_INTEGER_BYTES = 1024  # far above RSA-4096; keeps int conversion linear

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, NULL, OID, UTF8_STRING = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x0C
PRINTABLE_STRING, IA5_STRING, UTC_TIME, GENERALIZED_TIME, SEQUENCE, SET = 0x13, 0x16, 0x17, 0x18, 0x30, 0x31
_YEAR_DIGITS = {UTC_TIME: 2, GENERALIZED_TIME: 4}
_COMMON_NAME = bytes.fromhex("550403")  # 2.5.4.3


class Element(NamedTuple):
    """One TLV: its tag, its content and all of its bytes."""

    tag: int
    content: bytes
    raw: bytes


@dataclass(frozen=True, slots=True)
class Extension:
    """Value of one certificate extension, without the OCTET STRING around it."""

    critical: bool
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """An X.509 v3 certificate taken apart. `tbs` is the very slice that was signed; names are raw DER."""

    der: bytes
    tbs: bytes
    algorithm: bytes  # AlgorithmIdentifier, the same inside and outside
    serial: int
    issuer: bytes
    subject: bytes
    issuer_cn: str  # empty where a name has no common name
    subject_cn: str
    not_before: datetime
    not_after: datetime
    spki: bytes
    extensions: Mapping[str, Extension]
    signature: bytes


def _bad(what: str, *, expected: object = "", got: object = "") -> Malformed:
    return Malformed("der", what, where="der", expected=expected, got=got)


def _element(data: bytes, start: int) -> tuple[Element, int]:
    if len(data) - start < 2:
        raise _bad("element ends early", expected="tag and length", got=f"{len(data) - start} bytes")
    tag, length, body = data[start], data[start + 1], start + 2
    if tag & 0x1F == 0x1F:
        raise _bad("high tag number", got=hex(tag))
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4:
            raise _bad("indefinite or oversized length", expected="1 to 4 length bytes", got=size)
        encoded = data[body : body + size]
        length, body = int.from_bytes(encoded, "big"), body + size
        if len(encoded) != size or encoded[0] == 0 or length < 0x80:
            raise _bad("length is not minimal", got=encoded.hex())
    end = body + length
    if end > len(data):
        raise _bad("element ends early", expected=f"{length} bytes", got=len(data) - body)
    return Element(tag, data[body:end], data[start:end]), end


def parse_element(data: bytes, tag: int) -> Element:
    """Exactly one element with this tag, and nothing after it."""
    element, end = _element(data, 0)
    if end != len(data):
        raise _bad("bytes after the end", got=f"{len(data) - end} more bytes")
    return require_tag(element, tag)


def parse_members(content: bytes) -> tuple[Element, ...]:
    """The elements that fill `content` exactly."""
    members, position = [], 0
    while position < len(content):
        element, position = _element(content, position)
        members.append(element)
        if len(members) > MAX_ELEMENTS:
            raise _bad("too many elements", expected=f"at most {MAX_ELEMENTS}")
    return tuple(members)


def require_tag(element: Element, tag: int) -> Element:
    """The element itself, refused unless it has this tag."""
    if element.tag != tag:
        raise _bad("unexpected tag", expected=hex(tag), got=hex(element.tag))
    return element


def parse_integer(element: Element) -> int:
    """A minimally encoded, non-negative INTEGER."""
    content = require_tag(element, INTEGER).content
    if not 1 <= len(content) <= MAX_INTEGER_BYTES:
        raise _bad("integer size", expected=f"1 to {MAX_INTEGER_BYTES} bytes", got=len(content))
    if content[0] & 0x80 or (len(content) > 1 and content[0] == 0 and not content[1] & 0x80):
        raise _bad("integer is negative or not minimal", got=content[:8].hex())
    return int.from_bytes(content, "big")


def parse_oid(element: Element) -> str:
    """Dotted text of an OBJECT IDENTIFIER."""
    content = require_tag(element, OID).content
    if not content or content[-1] & 0x80:
        raise _bad("object identifier ends early", got=content.hex())
    arcs, value, fresh = [], 0, True
    for octet in content:
        if fresh and octet == 0x80:
            raise _bad("object identifier is not minimal", got=content.hex())
        value, fresh = (value << 7) | (octet & 0x7F), not octet & 0x80
        if value >> 64:
            raise _bad("object identifier arc is too large", expected="64 bits")
        if fresh:
            arcs.append(value)
            value = 0
    first = min(arcs[0] // 40, 2)
    return ".".join(map(str, [first, arcs[0] - 40 * first, *arcs[1:]]))


def parse_bits(element: Element) -> bytes:
    """A BIT STRING of whole octets."""
    content = require_tag(element, BIT_STRING).content
    if not content or content[0] != 0:
        raise _bad("bit string has unused bits", got=content[:1].hex())
    return content[1:]


def parse_time(element: Element) -> datetime:
    """UTCTime or GeneralizedTime with seconds and Z, as RFC 5280 section 4.1.2.5 demands."""
    digits = _YEAR_DIGITS.get(element.tag, 0)
    text = element.content.decode("ascii", "replace")
    try:
        if not digits or len(text) != digits + 11 or not (text[:-1].isdigit() and text[-1] == "Z"):
            raise ValueError(text)
        year = int(text[:digits])
        if digits == 2:
            year += 1900 if year >= 50 else 2000
        month, day, hour, minute, second = (int(text[i : i + 2]) for i in range(digits, digits + 10, 2))
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as exc:
        raise _bad("not a certificate time", expected="[YY]YYMMDDHHMMSSZ", got=element.content[:20].hex()) from exc


def parse_text(element: Element) -> str:
    """UTF8String, PrintableString or IA5String."""
    if element.tag not in (UTF8_STRING, PRINTABLE_STRING, IA5_STRING):
        raise _bad("not a text string", got=hex(element.tag))
    try:
        return element.content.decode("utf-8" if element.tag == UTF8_STRING else "ascii")
    except UnicodeDecodeError as exc:
        raise _bad("text string is not text", got=element.content[:20].hex()) from exc


def common_name(name: bytes) -> str:
    """The one common name of a raw Name; empty when there is none. Two are refused: readers would disagree."""
    found = [
        parse_text(pair[1])
        for relative in parse_members(parse_element(name, SEQUENCE).content)
        for attribute in parse_members(require_tag(relative, SET).content)
        if len(pair := parse_members(require_tag(attribute, SEQUENCE).content)) == 2
        and require_tag(pair[0], OID).content == _COMMON_NAME
    ]
    if len(found) > 1:
        raise _bad("name has two common names", got=found[:2])
    return found[0] if found else ""


def parse_certificate(der: bytes) -> Certificate:
    """An X.509 v3 certificate. Raises Malformed for anything that DER or RFC 5280 section 4.1 does not allow."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise _bad("certificate is too large", expected=f"at most {MAX_CERTIFICATE_BYTES} bytes", got=len(der))
    outer = parse_members(parse_element(der, SEQUENCE).content)
    if len(outer) != 3:
        raise _bad("not a certificate", expected="3 members", got=len(outer))
    tbs, algorithm, signature = outer
    fields = parse_members(require_tag(tbs, SEQUENCE).content)
    if len(fields) != 8:  # unique identifiers are obsolete and never present
        raise _bad("not a v3 certificate with extensions", expected="8 fields", got=len(fields))
    version, serial, inner, issuer, validity, subject, spki, extensions = fields
    if version.raw != bytes.fromhex("a003020102"):
        raise _bad("not a v3 certificate", expected="a003020102", got=version.raw[:8].hex())
    if inner.raw != algorithm.raw:
        raise _bad("signature algorithms inside and outside differ")
    dates = parse_members(require_tag(validity, SEQUENCE).content)
    if len(dates) != 2:
        raise _bad("validity", expected="2 times", got=len(dates))
    return Certificate(
        der=der,
        tbs=tbs.raw,
        algorithm=require_tag(algorithm, SEQUENCE).raw,
        serial=parse_integer(serial),
        issuer=require_tag(issuer, SEQUENCE).raw,
        subject=require_tag(subject, SEQUENCE).raw,
        issuer_cn=common_name(issuer.raw),
        subject_cn=common_name(subject.raw),
        not_before=parse_time(dates[0]),
        not_after=parse_time(dates[1]),
        spki=require_tag(spki, SEQUENCE).raw,
        extensions=_extensions(require_tag(extensions, 0xA3)),
        signature=parse_bits(signature),
    )


def _extensions(wrapper: Element) -> Mapping[str, Extension]:
    found: dict[str, Extension] = {}
    for member in parse_members(parse_element(wrapper.content, SEQUENCE).content):
        parts = parse_members(require_tag(member, SEQUENCE).content)
        critical = len(parts) == 3 and parts[1].raw == b"\x01\x01\xff"  # DER leaves out the default FALSE
        if len(parts) != 2 + critical:
            raise _bad("extension", expected="identifier, [critical], value", got=member.raw[:16].hex())
        identifier = parse_oid(parts[0])
        if identifier in found:
            raise _bad("extension is listed twice", got=identifier)
        found[identifier] = Extension(critical, require_tag(parts[-1], OCTET_STRING).content)
    return MappingProxyType(found)
