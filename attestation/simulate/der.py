"""DER writer for simulated certificates: library builders refuse the serial number 0 that AMD's leaves have."""

from datetime import datetime

from attestation.formats import der


def tlv(tag: int, *parts: bytes) -> bytes:
    """One element around its content."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def sequence(*parts: bytes) -> bytes:
    """SEQUENCE of elements."""
    return tlv(der.SEQUENCE, *parts)


def integer(value: int) -> bytes:
    """Non-negative INTEGER, minimal."""
    return tlv(der.INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    """OBJECT IDENTIFIER."""
    first, second, *rest = map(int, dotted.split("."))
    content = b""
    for arc in (40 * first + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        content += bytes(reversed(groups))
    return tlv(der.OID, content)


def bits(content: bytes, unused: int = 0) -> bytes:
    """BIT STRING."""
    return tlv(der.BIT_STRING, bytes([unused]), content)


def octets(content: bytes) -> bytes:
    """OCTET STRING."""
    return tlv(der.OCTET_STRING, content)


def boolean_true() -> bytes:
    """BOOLEAN TRUE."""
    return tlv(der.BOOLEAN, b"\xff")


def ia5(text: str) -> bytes:
    """IA5String."""
    return tlv(der.IA5_STRING, text.encode("ascii"))


def time(moment: datetime) -> bytes:
    """UTCTime up to 2049, as RFC 5280 demands."""
    if moment.year < 2050:
        return tlv(der.UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return tlv(der.GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def name(common_name: str, organization: str) -> bytes:
    """Name with organization and common name."""
    pairs = (("2.5.4.10", organization), ("2.5.4.3", common_name))
    return sequence(*(tlv(der.SET, sequence(oid(kind), tlv(der.UTF8_STRING, text.encode()))) for kind, text in pairs))


def extension(identifier: str, value: bytes, *, critical: bool = False) -> bytes:
    """Certificate extension."""
    return sequence(oid(identifier), boolean_true() if critical else b"", octets(value))
