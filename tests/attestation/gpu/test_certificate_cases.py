"""Cases gpu-061 to gpu-086: certificate chains and firmware ids (gpu-attestation.md 8.6)."""

import base64
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from attestation.errors import Malformed
from attestation.findings import Result
from attestation.formats.certs import parse_bundle
from attestation.formats.dice import parse_composite_device_id, parse_dice_tcb_info
from attestation.simulate import der
from attestation.simulate.nvidia import ForgedEvidence, NvidiaForge
from attestation.simulate.pki import CERTIFYING, CertSpec, mint, to_pem
from attestation.values import Architecture, Level
from attestation.verify.chain import VerifiedPath, require_valid, verify_path
from attestation.verify.identity import FwidMatch
from attestation.verify.nv_policy import OneOf, Unchecked
from tests.attestation.gpu.support import (
    BLACKWELL,
    FORGE,
    FORGED,
    HOPPER,
    LS10,
    NONCE,
    NOW,
    falls_short,
    find,
    policy,
    refused,
    verify,
    with_rim,
)

Certificates = list[x509.Certificate]


def chain(arch: Architecture = HOPPER, index: int = 0) -> Certificates:
    return list(mint(FORGE.device_specs(arch, index)))


def with_chain(certificates: Certificates) -> ForgedEvidence:
    return replace(FORGE.device(nonce=NONCE), chain=to_pem(certificates))


def with_specs(edit: Callable[[list[CertSpec]], list[CertSpec]], arch: Architecture = HOPPER) -> ForgedEvidence:
    return FORGE.device(arch, nonce=NONCE, specs=edit(FORGE.device_specs(arch, 0)))


def changed(position: int, **changes: object) -> Callable[[list[CertSpec]], list[CertSpec]]:
    """One specification changed; everything is signed properly afterwards."""

    def edit(specs: list[CertSpec]) -> list[CertSpec]:
        specs[position] = replace(specs[position], **changes)  # type: ignore[arg-type]
        return specs

    return edit


_ECDSA_SHA256, _ECDSA_SHA384 = (bytes.fromhex(f"300a06082a8648ce3d04030{n}") for n in (2, 3))
RIM_CHAIN = list(mint(FORGE.rim_specs(HOPPER)))
STRANGER = list(mint(NvidiaForge(seed="stranger").device_specs(HOPPER, 0)))

SHAPES: list[tuple[str, Certificates, str]] = [
    ("061-leaf-removed", chain()[1:], "leaf-usage"),
    ("062-root-removed", chain()[:-1], "chain-root"),
    ("063-intermediate-removed", chain()[:2] + chain()[3:], "chain-issuer"),
    ("064-reversed", chain()[::-1], "chain-root"),
    ("065-leaf-twice", chain()[:1] + chain(), "chain-ca"),
    ("066-unrelated-appended", [*chain(), STRANGER[-1]], "chain-root"),
    ("068-same-names-own-root", STRANGER, "chain-root"),
    ("069-rim-root", [*chain()[:-1], RIM_CHAIN[-1]], "chain-root"),
    ("070-rim-chain-for-device", RIM_CHAIN, "chain-root"),
]


@pytest.mark.parametrize(
    ("certificates", "code"), [pytest.param(certs, code, id=f"gpu-{name}") for name, certs, code in SHAPES]
)
def test_shape(certificates: Certificates, code: str) -> None:
    refused(code, lambda: verify(with_chain(certificates)))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-070-device-chain-for-rim")])
def test_device_chain_signs_a_document(_case: None) -> None:
    """A device's key over reference values: its root is not the one for documents."""
    document = FORGE.rim(
        HOPPER, driver=True, specs=FORGE.device_specs(HOPPER, 0)[:1] + FORGE.device_specs(HOPPER, 0)[1:]
    )
    device = verify(FORGE.device(nonce=NONCE), with_rim("NV_GPU_DRIVER_GH100_590.12", document))
    falls_short(device, "chain-root")


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-067-thousand-certificates")])
def test_thousand_certificates(_case: None) -> None:
    evidence = replace(FORGE.device(nonce=NONCE), chain=to_pem(chain()) * 200)
    refused("chain-length", lambda: verify(evidence))


P256 = ec.derive_private_key(7, ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = FORGE.key("other leaf")
LEAF_BY_LEAF = [
    ("072-ca-without-usage", {"ca": True}, "chain-ca"),
    ("072-ca-with-usage", {"ca": True, "usage": CERTIFYING}, "chain-length"),
]
SPECS: list[tuple[str, Callable[[list[CertSpec]], list[CertSpec]], str]] = [
    ("071-no-digital-signature", changed(0, usage=frozenset({"key_agreement"})), "leaf-usage"),
    ("071-no-key-usage", changed(0, usage=None), "leaf-usage"),
    *(
        (
            name,
            lambda specs, change=change: [
                replace(specs[0], key=OTHER, serial=7), replace(specs[0], **change), *specs[1:]
            ],
            code,
        )
        for name, change, code in LEAF_BY_LEAF
    ),
    ("073-no-basic-constraints", changed(2, ca=None), "chain-ca"),
    ("071-signs-certificates", changed(0, usage=frozenset({"digital_signature", "key_cert_sign"})), "leaf-usage"),
    ("073-ca-false", changed(2, ca=False), "chain-ca"),
    ("073-no-key-usage", changed(2, usage=None), "chain-ca"),
    ("073-root-no-ca", changed(4, ca=None), "chain-ca"),
    ("073-critical", changed(2, critical=(x509.PolicyConstraints(0, None),)), "certificate-critical"),
    ("074-path-length", changed(3, path_length=1), "chain-path-length"),
    ("075-p256-leaf", changed(0, key=P256), "certificate-key"),
    ("075-rsa-leaf", changed(0, key=RSA), "certificate-key"),
    ("076-sha256-signature", changed(1, digest=hashes.SHA256()), "certificate-algorithm"),
    ("077-expired", changed(0, not_after=datetime(2026, 11, 20, tzinfo=UTC)), "certificate-expired"),
    ("077-not-yet-valid", changed(0, not_before=datetime(2026, 11, 22, tzinfo=UTC)), "certificate-not-yet-valid"),
    ("077-expired-intermediate", changed(2, not_after=datetime(2026, 11, 20, tzinfo=UTC)), "certificate-expired"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "code"), [pytest.param(e, c, id=f"gpu-{name}") for name, e, c in SPECS])
def test_profile(edit: Callable[[list[CertSpec]], list[CertSpec]], code: str) -> None:
    """One property of one certificate is wrong; every signature is right."""
    specs = edit(FORGE.device_specs(HOPPER, 0))
    evidence = replace(FORGE.device(nonce=NONCE), chain=to_pem(mint(specs)))
    refused(code, lambda: verify(evidence))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-076-sha1-signature")])
def test_sha1_signature(_case: None) -> None:
    """No library signs certificates with SHA-1 any more: the identifier is put there by hand."""
    ders = parse_bundle(FORGE.device(nonce=NONCE).chain)
    sha384, sha1 = bytes.fromhex("06082a8648ce3d040303"), bytes.fromhex("06072a8648ce3d0401")
    old = ders[1].replace(sha384, b"\x06\x08" + sha1[2:] + b"\x01")
    path = [ders[0], old, *ders[2:]]
    refused("certificate-algorithm", lambda: verify_path(path, anchors=FORGE.trust.device_roots, where="chain"))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-078-end-of-time")])
def test_end_of_time(_case: None) -> None:
    """notAfter 9999-12-31 does not overflow, whatever the grace."""
    device = verify(FORGE.device(nonce=NONCE))
    assert device.level is Level.TRUSTED
    path = verify_path(parse_bundle(FORGE.device(nonce=NONCE).chain), anchors=FORGE.trust.device_roots, where="chain")
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    require_valid(path, last, where="chain", grace=last - NOW)


def signed_by_hand(change: Callable[[bytes], bytes], outer: bytes = _ECDSA_SHA384) -> list[bytes]:
    """The chain of a device whose leaf was changed before its issuer signed it."""
    leaf, *issuers = parse_bundle(FORGE.device(nonce=NONCE).chain)
    tbs = change(x509.load_der_x509_certificate(leaf).tbs_certificate_bytes)
    key = FORGE.device_specs(HOPPER, 0)[1].key
    return [der.sequence(tbs, outer, der.bits(key.sign(tbs, ec.ECDSA(hashes.SHA384())))), *issuers]


def _serial(value: bytes) -> Callable[[bytes], bytes]:
    """Another serial number of the same length: 20 bytes after `[0] 2`, INTEGER."""
    return lambda tbs: tbs[:11] + value + tbs[11 + len(value) :]


BY_HAND: list[tuple[str, list[bytes], str | None]] = [
    ("as-it-was", signed_by_hand(lambda tbs: tbs), None),
    ("gpu-076-inner-algorithm", signed_by_hand(lambda tbs: tbs.replace(_ECDSA_SHA384, _ECDSA_SHA256, 1)),
     "certificate-algorithm"),
    ("gpu-076-outer-algorithm", signed_by_hand(lambda tbs: tbs, _ECDSA_SHA256), "certificate-algorithm"),
    ("serial-zero", signed_by_hand(_serial(bytes(20))), "certificate-serial"),
    ("serial-negative", signed_by_hand(_serial(b"\x80")), "certificate-serial"),
    ("serial-positive", signed_by_hand(_serial(b"\x7f")), None),
]  # fmt: skip


@pytest.mark.parametrize(("ders", "code"), [pytest.param(d, c, id=name) for name, d, c in BY_HAND])
def test_what_no_library_would_sign(ders: list[bytes], code: str | None) -> None:
    """Well signed, all of them: only the property itself is wrong."""

    def run() -> VerifiedPath:
        return verify_path(ders, anchors=FORGE.trust.device_roots, where="chain")

    if code is None:
        assert len(run().certificates) == 5
    else:
        refused(code, run)


@pytest.mark.parametrize(
    ("between", "code"),
    [
        pytest.param(0, None, id="gpu-067-two"),
        pytest.param(6, None, id="gpu-067-eight"),
        pytest.param(7, "chain-length", id="gpu-067-nine"),
        pytest.param(-1, "chain-length", id="gpu-067-one"),
    ],
)
def test_lengths(between: int, code: str | None) -> None:
    leaf, *_, root = FORGE.rim_specs(HOPPER)
    middle = [replace(root, name=f"middle {n}", serial=n + 1) for n in range(between)]
    ders = [c.public_bytes(Encoding.DER) for c in mint([leaf, *middle, root])][: between + 2]

    def run() -> VerifiedPath:
        return verify_path(ders, anchors=FORGE.trust.rim_roots, where="chain")

    if code is None:
        assert len(run().certificates) == between + 2
    else:
        refused(code, run)


def fwid_of(value: bytes | None) -> Callable[[list[CertSpec]], list[CertSpec]]:
    """A leaf whose FWID extension holds `value`, or none."""

    def edit(specs: list[CertSpec]) -> list[CertSpec]:
        name, genuine = specs[0].extensions
        assert isinstance(genuine, x509.UnrecognizedExtension)
        kept = () if value is None else (x509.UnrecognizedExtension(genuine.oid, value),)
        specs[0] = replace(specs[0], extensions=(name, *kept))
        return specs

    return edit


def _extension(**changes: object) -> bytes:
    arch = changes.pop("arch", HOPPER)
    brom = FORGE.device_specs(HOPPER, 0)[1].key
    made = FORGE.fwid_extension(arch, changes.pop("issuer", brom), **changes)  # type: ignore[arg-type]
    return made.value


SHORT = (
    _extension()
    .replace(b"\x04\x30", b"\x04\x2f")[:-1]
    .replace(b"\x30\x3d", b"\x30\x3c")
    .replace(b"\x30\x81\xba", b"\x30\x81\xb9")
)
FWIDS = [
    ("079-absent", fwid_of(None), "fwid-extension"),
    ("079-47-bytes", fwid_of(SHORT), "fwid-extension"),
    ("079-mismatch", fwid_of(_extension(fwid=bytes(48))), "fwid-mismatch"),
    ("082-other-issuer-key", fwid_of(_extension(issuer=OTHER)), "fwid-issuer"),
]


@pytest.mark.parametrize(("edit", "code"), [pytest.param(e, c, id=f"gpu-{name}") for name, e, c in FWIDS])
def test_firmware_id(edit: Callable[[list[CertSpec]], list[CertSpec]], code: str) -> None:
    refused(code, lambda: verify(with_specs(edit)))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-080-fwid-not-reported")])
def test_firmware_id_not_reported(_case: None) -> None:
    """A driver that always reports a FWID and does not is a downgrade; older ones are policy's business."""
    missing = FORGE.device(nonce=NONCE, tlvs={20: None})
    refused("fwid-absent", lambda: verify(missing))
    waived = verify(missing, policy(fwid=Unchecked("engineering board")))
    finding = next(f for f in waived.findings if f.check == "fwid")
    assert (finding.result, finding.expected) == (Result.SKIPPED, "unchecked: engineering board")
    first = FORGE.device(nonce=NONCE, tlvs={20: None, 3: b"550.0\0"})
    refused("fwid-absent", lambda: verify(first))
    old = FORGE.device(nonce=NONCE, tlvs={20: None, 3: b"549.99\0"})
    falls_short(verify(old), "policy-fwid")
    either = OneOf(frozenset({FwidMatch.MATCH, FwidMatch.ABSENT}))
    assert next(f for f in verify(old, policy(fwid=either)).findings if f.check == "fwid").result is Result.PASS


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-081-two-extensions")])
def test_two_firmware_ids(_case: None) -> None:
    def both(specs: list[CertSpec]) -> list[CertSpec]:
        extra = FORGE.fwid_extension(BLACKWELL, specs[1].key, fwid=bytes(48))
        specs[0] = replace(specs[0], extensions=(*specs[0].extensions, extra))
        return specs

    refused("fwid-ambiguous", lambda: verify(with_specs(both)))


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param("90000001", id="gpu-083-debug"),
        pytest.param("c0000001", id="gpu-083-not-secure"),
        pytest.param("a0000001", id="gpu-083-recovery"),
    ],
)
def test_dice_flags(flags: str) -> None:
    assert verify(FORGE.device(BLACKWELL, nonce=NONCE)).level is Level.TRUSTED
    edit = fwid_of(_extension(arch=BLACKWELL, flags=flags))
    refused("dice-flags", lambda: verify(with_specs(edit, BLACKWELL)))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-084-no-fwids")])
def test_dice_without_fwids(_case: None) -> None:
    empty = b"\x30\x0a\x80\x06NVIDIA\xa6\x00"
    refused("fwid-extension", lambda: verify(with_specs(fwid_of(empty), BLACKWELL)))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-085-name-and-envelope")])
def test_name_decides_the_architecture(_case: None) -> None:
    refused("arch-mismatch", lambda: verify(FORGE.device(LS10, nonce=NONCE), arch=HOPPER))


NAMES = [
    ("085-other-vendor", "OTHER:GH100:0011223344556677", "identity-name"),
    ("085-other-chip", "NVIDIA:GB100:0011223344556677", "identity-name"),
    ("085-unknown-chip", "NVIDIA:XX100:0011223344556677", "identity-name"),
    ("085-short-id", "NVIDIA:GH100:00112233", "identity-name"),
]


@pytest.mark.parametrize(("name", "code"), [pytest.param(n, c, id=f"gpu-{case}") for case, n, c in NAMES])
def test_device_name(name: str, code: str) -> None:
    def edit(specs: list[CertSpec]) -> list[CertSpec]:
        specs[0] = replace(specs[0], extensions=(FORGE.spdm_name(name), specs[0].extensions[1]))
        return specs

    refused(code, lambda: verify(with_specs(edit)))


_OWN = FORGE.device_specs(HOPPER, 0)[0].extensions[0]
assert isinstance(_OWN, x509.SubjectAlternativeName)
(_OWN_NAME,) = _OWN
_STRANGE_NAME = x509.OtherName(x509.ObjectIdentifier("1.2.3.4"), b"\x0c\x01x")
ALTERNATIVES: list[tuple[str, x509.ExtensionType | None, str | None]] = [
    ("alone", x509.SubjectAlternativeName([_OWN_NAME]), None),
    ("beside-others", x509.SubjectAlternativeName([x509.DNSName("a.example"), _STRANGE_NAME, _OWN_NAME]), None),
    ("twice", x509.SubjectAlternativeName([_OWN_NAME, _OWN_NAME]), "identity-name"),
    ("of-another-kind", x509.SubjectAlternativeName([_STRANGE_NAME]), "identity-name"),
    ("none", None, "identity-name"),
]


@pytest.mark.parametrize(("names", "code"), [pytest.param(n, c, id=f"gpu-085-{i}") for i, n, c in ALTERNATIVES])
def test_alternative_names(names: x509.ExtensionType | None, code: str | None) -> None:
    """Exactly one SPDM name; other names are nobody's business."""

    def edit(specs: list[CertSpec]) -> list[CertSpec]:
        fwid = specs[0].extensions[1]
        specs[0] = replace(specs[0], extensions=(fwid,) if names is None else (names, fwid))
        return specs

    evidence = with_specs(edit)
    if code is None:
        assert verify(evidence).level is Level.TRUSTED
    else:
        refused(code, lambda: verify(evidence))


PEM = FORGE.device(nonce=NONCE).chain
TEXTS = [
    ("086-nul", b"\0" + PEM, "pem-syntax"),
    ("086-nul-inside", PEM[:100] + b"\0" + PEM[101:], "base64"),
    ("086-crlf", PEM.replace(b"\n", b"\r\n"), "pem-syntax"),
    ("086-garbage-between", PEM.replace(b"-----\n-----", b"-----\ngarbage\n-----"), "pem-syntax"),
    ("086-10-MB", b"x" * 10_000_000, "chain-size"),
    ("086-10-MB-of-pem", PEM * 2500, "chain-length"),
    ("086-empty", b"", "chain-empty"),
]


@pytest.mark.parametrize(("text", "code"), [pytest.param(t, c, id=f"gpu-{name}") for name, t, c in TEXTS])
def test_pem_text(text: bytes, code: str) -> None:
    refused(code, lambda: verify(replace(FORGE.device(nonce=NONCE), chain=text)))


_PEM_BEGIN, _PEM_END = b"-----BEGIN CERTIFICATE-----\n", b"\n-----END CERTIFICATE-----"


def pem_of(*sizes: int, after: bytes = b"\n") -> bytes:
    """PEM blocks that hold so many bytes each."""
    return b"".join(_PEM_BEGIN + base64.b64encode(bytes(size)) + _PEM_END + after for size in sizes)


BUNDLES: list[tuple[str, bytes, str | int]] = [
    ("086-der", b"\x30" * 100, 1),
    ("086-one", pem_of(1), 1),
    ("086-without-last-line-feed", pem_of(1, after=b""), 1),
    ("086-eight", pem_of(*[1] * 8), 8),
    ("086-nine", pem_of(*[1] * 9), "chain-length"),
    ("086-largest-certificate", pem_of(4096), 1),
    ("086-certificate-too-large", pem_of(4097), "certificate-size"),
    ("086-certificate-of-nothing", pem_of(0), "certificate-size"),
    ("086-no-end", pem_of(1).partition(_PEM_END)[0], "pem-syntax"),
    ("086-text-after-the-end", pem_of(1, after=b"x"), "pem-syntax"),
    ("086-space-after-the-end", pem_of(1, after=b" \n"), "pem-syntax"),
    ("086-line-between", pem_of(1, after=b"\n\n") + pem_of(1), "pem-syntax"),
    ("086-largest", b"x" * (16 * 1024), "pem-syntax"),
    ("086-too-large", b"x" * (16 * 1024 + 1), "chain-size"),
    ("086-many-and-too-large", pem_of(*[1] * 300), "chain-length"),
    ("086-eight-and-too-large", pem_of(*[1] * 8) + b"x" * 16 * 1024, "chain-size"),
]


@pytest.mark.parametrize(("data", "expected"), [pytest.param(d, e, id=f"gpu-{i}") for i, d, e in BUNDLES])
def test_bundles(data: bytes, expected: str | int) -> None:
    if isinstance(expected, int):
        assert len(parse_bundle(data)) == expected
    else:
        refused(expected, lambda: parse_bundle(data))


def test_a_bundle_is_bytes() -> None:
    with pytest.raises(TypeError):
        parse_bundle(bytearray(PEM))  # type: ignore[arg-type]


_SHA384, _DIGEST = der.oid("2.16.840.1.101.3.4.2.2"), der.octets(b"\1" * 48)
_SPKI, _FWID = der.sequence(b"key"), der.sequence(_SHA384, _DIGEST)
_SHA256_FWID = der.sequence(der.oid("2.16.840.1.101.3.4.2.1"), der.octets(b"\1" * 48))
COMPOSITES: list[tuple[str, bytes, bool]] = [
    ("good", der.sequence(der.integer(1), _SPKI, _FWID), True),
    ("two-members", der.sequence(der.integer(1), _SPKI), False),
    ("four-members", der.sequence(der.integer(1), _SPKI, _FWID, _FWID), False),
    ("version-2", der.sequence(der.integer(2), _SPKI, _FWID), False),
    ("key-of-another-tag", der.sequence(der.integer(1), der.octets(b"key"), _FWID), False),
    ("other-digest", der.sequence(der.integer(1), _SPKI, _SHA256_FWID), False),
    ("after", der.sequence(der.integer(1), _SPKI, _FWID) + b"\0", False),
    ("fwid-of-three", der.sequence(der.integer(1), _SPKI, der.sequence(_SHA384, _DIGEST, _DIGEST)), False),
    ("fwid-of-one", der.sequence(der.integer(1), _SPKI, der.sequence(_SHA384)), False),
    (
        "digest-name-of-another-tag",
        der.sequence(der.integer(1), _SPKI, der.sequence(b"\4" + _SHA384[1:], _DIGEST)),
        False,
    ),
    ("digest-of-another-tag", der.sequence(der.integer(1), _SPKI, der.sequence(_SHA384, b"\3" + _DIGEST[1:])), False),
    ("fwid-of-another-tag", der.sequence(der.integer(1), _SPKI, b"\x31" + _FWID[1:]), False),
]


@pytest.mark.parametrize(("value", "good"), [pytest.param(v, g, id=f"gpu-079-{i}") for i, v, g in COMPOSITES])
def test_composite_device_ids(value: bytes, good: bool) -> None:
    if good:
        known = parse_composite_device_id(value)
        assert (known.fwid, known.issuer_spki) == (b"\1" * 48, _SPKI)
        return
    with pytest.raises(Malformed):
        parse_composite_device_id(value)


def tcb_info(*members: bytes) -> bytes:
    return der.sequence(*members)


_FWIDS, _FLAGS = der.tlv(0xA6, _FWID), der.tlv(0x87, b"\0\x80\0\0\1")
TCB_INFOS: list[tuple[str, bytes, frozenset[int] | None]] = [
    ("good", tcb_info(der.tlv(0x80, b"v"), _FWIDS, _FLAGS, der.tlv(0x89, b"t")), frozenset({0, 31})),
    ("other-flags", tcb_info(_FWIDS, der.tlv(0x87, b"\0\x70\0\0\0")), frozenset({1, 2, 3})),
    ("two-fwids", tcb_info(der.tlv(0xA6, _FWID, _FWID), _FLAGS), frozenset({0, 31})),
    ("no-fwids", tcb_info(_FLAGS), None),
    ("empty-fwids", tcb_info(der.tlv(0xA6), _FLAGS), None),
    ("no-flags", tcb_info(_FWIDS), frozenset()),
    ("flags-of-one-octet", tcb_info(_FWIDS, der.tlv(0x87, b"\7\x80")), frozenset({0})),
    ("flags-of-no-octet", tcb_info(_FWIDS, der.tlv(0x87, b"\0")), None),
    ("flags-of-five-octets", tcb_info(_FWIDS, der.tlv(0x87, b"\0\x80\0\0\1\0")), None),
    ("eight-unused-bits", tcb_info(_FWIDS, der.tlv(0x87, b"\x08\x80")), None),
    (
        "fwid-of-47",
        tcb_info(der.tlv(0xA6, _FWID.replace(b"\1" * 48, b"\1" * 47).replace(b"\4\x30", b"\4\x2f")), _FLAGS),
        None,
    ),
    ("other-digest", tcb_info(der.tlv(0xA6, _SHA256_FWID), _FLAGS), None),
    ("universal-tag", tcb_info(der.integer(1), _FWIDS, _FLAGS), None),
    ("tag-10", tcb_info(_FWIDS, _FLAGS, der.tlv(0x8A, b"x")), None),
    ("out-of-order", tcb_info(_FLAGS, _FWIDS), None),
    ("twice", tcb_info(_FWIDS, _FLAGS, _FLAGS), None),
]


@pytest.mark.parametrize(("value", "flags"), [pytest.param(v, f, id=f"gpu-083-{i}") for i, v, f in TCB_INFOS])
def test_dice_tcb_infos(value: bytes, flags: frozenset[int] | None) -> None:
    if flags is not None:
        known = parse_dice_tcb_info(value)
        assert (known.fwids[0], known.flags) == (b"\1" * 48, flags)
        return
    with pytest.raises(Malformed):
        parse_dice_tcb_info(value)


def test_every_certificate_is_needed_as_it_is() -> None:
    """A flipped bit anywhere in any certificate of the chain, the root included, is refused."""
    evidence = FORGE.device(nonce=NONCE)
    ders = parse_bundle(evidence.chain)
    for position, raw in enumerate(ders):
        for offset in range(0, len(raw), 29):
            bad = raw[:offset] + bytes([raw[offset] ^ 4]) + raw[offset + 1 :]
            path = [*ders[:position], bad, *ders[position + 1 :]]
            refused_somehow(path)


def refused_somehow(path: list[bytes]) -> None:
    from attestation.errors import AttestationError

    with pytest.raises(AttestationError):
        verify_path(path, anchors=FORGE.trust.device_roots, where="chain", cache=None)


def test_known_issuers_cost_no_second_verification() -> None:
    """The cache keeps issuers, never device leaves."""
    assert FORGED.cache is not None
    verify(FORGE.device(nonce=NONCE, index=5))
    before = len(FORGED.cache.chains)
    verify(FORGE.device(nonce=NONCE, index=5))
    assert len(FORGED.cache.chains) == before
    assert find(verify(FORGE.device(nonce=NONCE, index=5)).findings, "simulated-roots").result is Result.WARN
