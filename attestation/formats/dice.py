"""The two DICE extensions that carry a device's firmware id (FWID), gpu-attestation.md 2.2.

Hopper and LS10 leaves have the older CompositeDeviceID, which also repeats the issuer's public key; Blackwell leaves
have a TCG DiceTcbInfo with operational flags.
"""

from dataclasses import dataclass

from attestation.errors import Malformed
from attestation.formats.der import OCTET_STRING, OID, SEQUENCE, Element, parse_element, parse_members

COMPOSITE_DEVICE_ID = "2.23.133.5.4.1"
DICE_TCB_INFO = "2.23.133.5.4.1.1"
FWID_BYTES = 48

FLAG_NOT_CONFIGURED, FLAG_NOT_SECURE, FLAG_RECOVERY, FLAG_DEBUG, FLAG_FIXED_WIDTH = 0, 1, 2, 3, 31  # TCG DICE 6.1.1

_SHA384 = bytes.fromhex("608648016503040202")
_FWIDS, _FLAGS = 0xA6, 0x87  # context tags [6] constructed and [7] primitive
_MAX_TAG = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class CompositeDeviceId:
    """FWID and the public key of the layer below, which is the key that signed this certificate."""

    fwid: bytes
    issuer_spki: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DiceTcbInfo:
    """FWIDs in order (the first is the one to compare) and the numbers of the operational flags that are set."""

    fwids: tuple[bytes, ...]
    flags: frozenset[int]


def parse_composite_device_id(value: bytes) -> CompositeDeviceId:
    """SEQUENCE { version 1, SubjectPublicKeyInfo, SEQUENCE { sha384, OCTET STRING } }. Raises Malformed."""
    members = parse_members(parse_element(value, SEQUENCE).content)
    if len(members) != 3 or members[0].raw != b"\x02\x01\x01" or members[1].tag != SEQUENCE:
        raise _bad("not a CompositeDeviceID version 1", got=[m.tag for m in members])
    return CompositeDeviceId(fwid=_fwid(members[2]), issuer_spki=members[1].raw)


def parse_dice_tcb_info(value: bytes) -> DiceTcbInfo:
    """DiceTcbInfo with at least one FWID. Raises Malformed."""
    fields: dict[int, Element] = {}
    for member in parse_members(parse_element(value, SEQUENCE).content):
        number = member.tag & 0x1F
        if member.tag & 0xC0 != 0x80 or number > _MAX_TAG or (fields and number <= max(t & 0x1F for t in fields)):
            raise _bad("unexpected member of DiceTcbInfo", got=hex(member.tag))
        fields[member.tag] = member
    if _FWIDS not in fields or not (fwids := tuple(map(_fwid, parse_members(fields[_FWIDS].content)))):
        raise _bad("DiceTcbInfo without FWID", expected="at least one")
    return DiceTcbInfo(fwids=fwids, flags=_flags(fields[_FLAGS].content) if _FLAGS in fields else frozenset())


def _fwid(element: Element) -> bytes:
    parts = parse_members(element.content) if element.tag == SEQUENCE else ()
    if len(parts) != 2 or parts[0].tag != OID or parts[0].content != _SHA384 or parts[1].tag != OCTET_STRING:
        raise _bad("FWID is not a SHA-384 digest", got=element.raw[:16].hex())
    if len(parts[1].content) != FWID_BYTES:
        raise _bad("FWID length", expected=FWID_BYTES, got=len(parts[1].content))
    return parts[1].content


def _flags(content: bytes) -> frozenset[int]:
    """Named bits of a BIT STRING: bit 0 is the most significant bit of the first octet."""
    if not 2 <= len(content) <= 5 or content[0] > 7:
        raise _bad("flags are not a bit string of at most 32 bits", got=content.hex())
    return frozenset(
        8 * position + bit for position, octet in enumerate(content[1:]) for bit in range(8) if octet & 0x80 >> bit
    )


def _bad(what: str, *, expected: object = "", got: object = "") -> Malformed:
    return Malformed("fwid-extension", what, where="leaf certificate", expected=expected, got=got)
