"""Who a device is, from its certificates and from nothing else: architecture, chip id, PDI and firmware id.

gpu-attestation.md 2.1, 2.2 and 10 steps 3 and 4. No peer uses the subject alternative name or the issuer's serial
number; both are signed by NVIDIA, while the architecture of an envelope is anybody's claim.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from attestation.errors import Untrusted
from attestation.formats.der import UTF8_STRING, parse_element
from attestation.formats.dice import (
    COMPOSITE_DEVICE_ID,
    DICE_TCB_INFO,
    FLAG_FIXED_WIDTH,
    FLAG_NOT_CONFIGURED,
    parse_composite_device_id,
    parse_dice_tcb_info,
)
from attestation.values import Architecture
from attestation.verify.chain import PathCertificate, VerifiedPath
from attestation.verify.verified import DeviceIdentity

DEVICE_CHAIN = 5  # leaf, BROM, provisioner, identity, root: every chain of every generation (2.1)
_SPDM_NAME = x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1")  # DMTF: manufacturer:product:serial
_COMPOSITE, _TCB_INFO = x509.ObjectIdentifier(COMPOSITE_DEVICE_ID), x509.ObjectIdentifier(DICE_TCB_INFO)
_NAME = re.compile(r"NVIDIA:(GH100|GB1[0-9]{2}|LS_10):([0-9A-F]{16})")
_ARCHITECTURES = {"GH100": Architecture.HOPPER, "LS_10": Architecture.LS10}
_PRODUCTION_FLAGS = frozenset({FLAG_NOT_CONFIGURED, FLAG_FIXED_WIDTH})  # set in production; anything else is refused
_PDI_MASK = (1 << 64) - 1


class FwidMatch(StrEnum):
    """Three values, because old firmware and switches do not report one: absent is not equal."""

    MATCH = "match"
    MISMATCH = "mismatch"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCertificate:
    """Signed facts about one device. `pdi` names it in the tables of its NVLink peers (1.7)."""

    arch: Architecture
    chip: str
    identity: DeviceIdentity
    fwid: bytes
    pdi: bytes
    hardware_model: str


def read_device_certificate(path: VerifiedPath) -> DeviceCertificate:
    """Identity and firmware id of the device at the end of `path`. Raises Malformed and Untrusted."""
    if len(path.certificates) != DEVICE_CHAIN:
        raise Untrusted(
            "chain-length",
            "not a device chain",
            where="device chain",
            expected=f"{DEVICE_CHAIN} certificates",
            got=len(path.certificates),
        )
    chip, chip_id = _spdm_name(path.leaf)
    if not path.leaf.name.startswith(f"{chip} "):
        raise Untrusted(
            "identity-name", "common name and SPDM name disagree", where="leaf", expected=chip, got=path.leaf.name
        )
    return DeviceCertificate(
        arch=_ARCHITECTURES.get(chip, Architecture.BLACKWELL),
        chip=chip,
        identity=DeviceIdentity(chip_id=chip_id, leaf_serial=path.leaf.certificate.serial_number),
        fwid=_firmware_id(path.leaf, path.issuer.spki),
        # The BROM certificate's serial number is one byte of kind, then the PDI that peers list for this device.
        pdi=(path.issuer.certificate.serial_number & _PDI_MASK).to_bytes(8, "big"),
        hardware_model=path.issuer.name,
    )


def match_fwid(certified: bytes, reported: bytes | None) -> FwidMatch:
    """The firmware id that the report states against the one that the certificate was issued for (2.2)."""
    if reported is None:
        return FwidMatch.ABSENT
    return FwidMatch.MATCH if reported == certified else FwidMatch.MISMATCH


def _spdm_name(leaf: PathCertificate) -> tuple[str, str]:
    names = leaf.extensions.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    if not isinstance(names, x509.SubjectAlternativeName):
        raise Untrusted("identity-name", "leaf names no device", where="leaf", expected="SPDM otherName")
    found = [n.value for n in names if isinstance(n, x509.OtherName) and n.type_id == _SPDM_NAME]
    text = parse_element(found[0], UTF8_STRING).content.decode("latin-1") if len(found) == 1 else ""
    match = _NAME.fullmatch(text)
    if match is None:
        raise Untrusted(
            "identity-name", "not an NVIDIA device name", where="leaf", expected=_NAME.pattern, got=repr(text[:80])
        )
    return match[1], match[2]


def _firmware_id(leaf: PathCertificate, issuer_spki: bytes) -> bytes:
    """The certificate's FWID, its inner key bound to the issuer and its flags those of production hardware (2.2)."""
    composite_value, tcb_value = (leaf.extensions.get(oid) for oid in (_COMPOSITE, _TCB_INFO))
    found: list[bytes] = []
    if isinstance(composite_value, x509.UnrecognizedExtension):
        composite = parse_composite_device_id(composite_value.value)
        if composite.issuer_spki != issuer_spki:
            raise Untrusted("fwid-issuer", "CompositeDeviceID names another issuer key", where="leaf")
        found.append(composite.fwid)
    if isinstance(tcb_value, x509.UnrecognizedExtension):
        info = parse_dice_tcb_info(tcb_value.value)
        if unexpected := info.flags - _PRODUCTION_FLAGS:
            raise Untrusted(
                "dice-flags",
                "not production firmware (debug, recovery or not secure)",
                where="leaf",
                expected=sorted(_PRODUCTION_FLAGS),
                got=sorted(unexpected),
            )
        found.append(info.fwids[0])
    if len(set(found)) != 1:
        raise Untrusted(
            "fwid-ambiguous" if found else "fwid-extension",
            "leaf does not state one firmware id",
            where="leaf",
            expected="CompositeDeviceID or DiceTcbInfo",
            got=[f.hex()[:16] for f in found],
        )
    return found[0]
