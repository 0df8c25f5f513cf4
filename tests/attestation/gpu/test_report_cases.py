"""Cases gpu-001 to gpu-049: structure of a report (gpu-attestation.md 8.6)."""

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from attestation.errors import Malformed
from attestation.findings import Result
from attestation.formats.nv_evidence import NvEvidence
from attestation.formats.nv_report import parse_gpu_facts
from attestation.formats.spdm import parse_report
from attestation.simulate.nv_products import PRODUCTS
from attestation.values import Architecture, GpuMode, Level
from attestation.verify.nv_policy import Exactly
from tests.attestation.gpu.support import (
    BLACKWELL,
    FORGE,
    GENUINE,
    HOPPER,
    LS10,
    NONCE,
    falls_short,
    find,
    genuine,
    policy,
    refused,
    verify,
    with_rim,
)

ORDER = int("ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16)
RECORD, OPAQUE_LENGTH, OPAQUE = 45, 3597, 3599
Edit = Callable[[bytes], bytes]


@pytest.fixture(scope="session")
def hopper(vectors: Path) -> NvEvidence:
    return genuine(vectors / "nvidia/hopperAttestationReport.txt", vectors / "nvidia/hopper_cert_chain_case1.txt")


def flip(data: bytes, offset: int, bit: int = 0) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :]


def put(offset: int, value: bytes) -> Edit:
    return lambda signed: signed[:offset] + value + signed[offset + len(value) :]


def block(number: int, offset: int, value: bytes) -> Edit:
    """Write into block `number`, counted from 1."""
    return put(RECORD + (number - 1) * 55 + offset, value)


def opaque(edit: Edit) -> Edit:
    """Replace the opaque data, with a length that fits."""

    def apply(signed: bytes) -> bytes:
        body = edit(signed[OPAQUE:])
        return signed[:OPAQUE_LENGTH] + struct.pack("<H", len(body)) + body

    return apply


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("<HH", kind, len(value)) + value


def resize(delta: int) -> Edit:
    """Change OpaqueLength and nothing else."""

    def apply(signed: bytes) -> bytes:
        (length,) = struct.unpack_from("<H", signed, OPAQUE_LENGTH)
        return put(OPAQUE_LENGTH, struct.pack("<H", length + delta))(signed)

    return apply


def forged(edit: Edit) -> None:
    verify(FORGE.device(nonce=NONCE, mutate=edit))


HEADER = [
    ("request-version", 0, "spdm-version"),
    ("request-code", 1, "spdm-code"),
    ("request-param1", 2, "spdm-param1"),
    ("request-param2", 3, "spdm-param2"),
    ("request-nonce", 4, "report-signature"),
    ("slot", 36, "spdm-slot"),
    ("response-version", 37, "spdm-version"),
    ("response-code", 38, "spdm-code"),
    ("response-param1", 39, "spdm-param1"),
    ("response-param2", 40, "spdm-param2"),
    ("blocks", 41, "record-length"),
    ("record-length", 42, "record-length"),
]


@pytest.mark.parametrize(
    ("offset", "code"), [pytest.param(offset, code, id=f"gpu-001-{name}") for name, offset, code in HEADER]
)
def test_header_bit(hopper: NvEvidence, offset: int, code: str) -> None:
    """One bit of each header field of a genuine report."""
    changed = NvEvidence(report=flip(hopper.report, offset), chain=hopper.chain)
    refused(code, lambda: verify(changed, GENUINE, nonce=None))


@pytest.mark.parametrize("number", [pytest.param(n, id=f"gpu-002-block-{n}") for n in range(1, 65)])
def test_measurement_bit(hopper: NvEvidence, number: int) -> None:
    """One bit in every measurement of a genuine report."""
    changed = NvEvidence(report=flip(hopper.report, RECORD + (number - 1) * 55 + 7), chain=hopper.chain)
    refused("report-signature", lambda: verify(changed, GENUINE, nonce=None))


@pytest.mark.parametrize(
    ("offset", "code"),
    [
        pytest.param(3565, "report-signature", id="gpu-003-responder-nonce"),
        pytest.param(-96 + 5, "report-signature", id="gpu-004-r"),
        pytest.param(-1, "report-signature", id="gpu-004-s"),
    ],
)
def test_genuine_bit(hopper: NvEvidence, offset: int, code: str) -> None:
    """One bit of the responder's nonce, of r and of s."""
    changed = NvEvidence(report=flip(hopper.report, offset % len(hopper.report)), chain=hopper.chain)
    refused(code, lambda: verify(changed, GENUINE, nonce=None))


def _with_signature(edit: Callable[[int, int], bytes]) -> NvEvidence:
    evidence = FORGE.device(nonce=NONCE)
    signature = evidence.report[-96:]
    r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    return NvEvidence(report=evidence.signed + edit(r, s), chain=evidence.chain)


def raw(r: int, s: int) -> bytes:
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def der(r: int, s: int) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    return encode_dss_signature(r, s)


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        pytest.param(lambda _r, s: raw(0, s), "report-signature-range", id="gpu-005-r-zero"),
        pytest.param(lambda r, _s: raw(r, 0), "report-signature-range", id="gpu-006-s-zero"),
        pytest.param(lambda _r, s: raw(ORDER, s), "report-signature-range", id="gpu-007-r-order"),
        pytest.param(lambda r, _s: raw(r, ORDER), "report-signature-range", id="gpu-007-s-order"),
        pytest.param(der, "trailing-bytes", id="gpu-009-der"),
        pytest.param(
            lambda r, s: r.to_bytes(48, "little") + s.to_bytes(48, "little"), "report-signature",
            id="gpu-010-little-endian",
        ),
    ],
)  # fmt: skip
def test_signature_form(edit: Callable[[int, int], bytes], code: str) -> None:
    refused(code, lambda: verify(_with_signature(edit)))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-008-other-s")])
def test_malleable_signature_is_no_error(_case: None) -> None:
    """Both s and n - s verify, and the digest that identifies the report does not change."""
    original, other = verify(FORGE.device(nonce=NONCE)), verify(_with_signature(lambda r, s: raw(r, ORDER - s)))
    assert other.level is Level.TRUSTED
    assert other.signed_digest == original.signed_digest


UNUSED = bytes(48)
STRUCTURE = [
    ("011-request-code", put(1, b"\xe1"), "spdm-code"),
    ("012-response-error", put(38, b"\x7f"), "spdm-code"),
    ("013-version-10", put(0, b"\x10"), "spdm-version"),
    ("013-version-12", put(37, b"\x12"), "spdm-version"),
    ("014-param1", put(2, b"\x00"), "spdm-param1"),
    ("015-param2", put(3, b"\x01"), "spdm-param2"),
    ("016-slot", put(36, b"\x01"), "spdm-slot"),
    *((f"017-blocks-{n}", put(41, bytes([n])), "record-length") for n in (0, 63, 65, 255)),
    *(
        (f"018-record-{n & 0xFFFFFF}", put(42, (n & 0xFFFFFF).to_bytes(3, "little")), "record-length")
        for n in (0, 3519, 3521, -1)
    ),
    ("017-no-block-in-no-byte", lambda s: s[:41] + bytes(4) + s[RECORD + 64 * 55 :], "record-length"),
    ("020-first-again", block(5, 0, b"\x01"), "block-duplicate"),
    ("022-last-too-early", block(5, 0, b"\x40"), "block-order"),
    ("019-index-zero", block(5, 0, b"\x00"), "block-index"),
    ("020-duplicate-same", lambda s: block(6, 0, s[RECORD + 220 : RECORD + 275])(s), "block-duplicate"),
    ("021-duplicate-other", block(6, 0, b"\x05"), "block-duplicate"),
    (
        "022-descending",
        lambda s: (
            s[:RECORD] + b"".join(s[RECORD + i * 55 : RECORD + i * 55 + 55] for i in range(63, -1, -1)) + s[3565:]
        ),
        "block-order",
    ),
    ("023-index-65", block(64, 0, b"\x41"), "block-index"),
    ("024-specification", block(3, 1, b"\x02"), "block-specification"),
    ("025-size-50", block(3, 2, b"\x32\x00"), "block-size"),
    ("025-size-52", block(3, 2, b"\x34\x00"), "block-size"),
    *((f"026-value-size-{n}", block(3, 5, bytes([n, 0])), "block-value-size") for n in (0, 47, 49)),
    ("027-raw-bit-stream", block(3, 4, b"\x81"), "block-value-type"),
    ("028-immutable-rom", block(3, 4, b"\x00"), "block-value-type"),
    ("029-opaque-empty", opaque(lambda _o: b""), "tlv-missing"),
    ("030-opaque-short", resize(-1), "tlv-truncated"),
    ("031-opaque-long", resize(1), "tlv-truncated"),
    ("032-opaque-ffff", put(OPAQUE_LENGTH, b"\xff\xff"), "truncated"),
    ("033-header-truncated", opaque(lambda o: o + b"\x40\x00\x01"), "tlv-truncated"),
    ("034-size-past-end", opaque(lambda o: o + b"\x40\x00\x05\x00abc"), "tlv-truncated"),
    ("036-duplicate-driver", opaque(lambda o: o + tlv(3, b"590.12\0")), "tlv-duplicate"),
    ("037-duplicate-fwid", opaque(lambda o: o + tlv(20, UNUSED)), "tlv-duplicate"),
]


@pytest.mark.parametrize(("edit", "code"), [pytest.param(e, c, id=f"gpu-{name}") for name, e, c in STRUCTURE])
def test_structure(edit: Edit, code: str) -> None:
    """Well signed, wrongly shaped: refused by the parser."""
    refused(code, lambda: forged(edit))


ELEMENTS: list[tuple[str, dict[int, bytes | None], str]] = [
    ("035-empty-3", {3: b""}, "tlv-size"),
    ("035-empty-6", {6: b""}, "tlv-size"),
    ("035-empty-11", {11: b""}, "tlv-size"),
    ("035-empty-20", {20: b""}, "tlv-size"),
    ("039-opaque-version-2", {34: b"\x02\x00"}, "opaque-version"),
    ("040-no-feature-flag", {36: None}, "feature-missing"),
    ("041-feature-9", {36: b"\x09\x00"}, "feature-flag"),
    ("042-contradiction", {36: b"\x02\x00", 21: b"\x55"}, "feature-contradiction"),
    ("043-nvdec0-zero", {11: b"\x00"}, "nvdec0"),
    ("044-driver-nul", {3: b"590\x00.12\x00"}, "driver-version"),
    ("044-driver-not-ascii", {3: "590.1\u0662".encode()}, "driver-version"),
    ("044-driver-path", {3: b"../../x\0"}, "driver-version"),
    ("044-driver-long", {3: b"1" * 3000}, "driver-version"),
    ("045-project-path", {17: b"..%2f\0"}, "project"),
    ("045-vbios-7", {6: bytes(7)}, "tlv-size"),
    ("045-vbios-9", {6: bytes(9)}, "tlv-size"),
]  # fmt: skip


@pytest.mark.parametrize(("tlvs", "code"), [pytest.param(t, c, id=f"gpu-{name}") for name, t, c in ELEMENTS])
def test_elements(tlvs: dict[int, bytes | None], code: str) -> None:
    """Well formed, wrong values: refused before anything is decided on them."""
    refused(code, lambda: verify(FORGE.device(nonce=NONCE, tlvs=tlvs)))


_SIZES = {
    HOPPER: {4: 8, 6: 8, 11: 1, 12: 256, 13: 4, 14: 4, 20: 48, 21: 1, 22: 144, 34: 2, 36: 2},
    BLACKWELL: {33: 2},
    LS10: {6: 14, 22: 8, 23: 2, 24: 2, 25: 2, 26: 128},
}


@pytest.mark.parametrize(
    ("arch", "kind", "size"),
    [
        pytest.param(arch, kind, size, id=f"gpu-035-{arch}-{kind}")
        for arch, sizes in _SIZES.items()
        for kind, size in sizes.items()
    ],
)
def test_elements_have_one_size(arch: Architecture, kind: int, size: int) -> None:
    """One byte less and one more are refused."""
    for wrong in (size - 1, size + 1):
        refused("tlv-size", partial(verify, FORGE.device(arch, nonce=NONCE, tlvs={kind: bytes(wrong)})))


@pytest.mark.parametrize(
    ("arch", "kind"),
    [(HOPPER, kind) for kind in (3, 6, 11, 15, 17, 18)] + [(LS10, kind) for kind in (6, 22, 25)],
)
def test_elements_that_must_be_there(arch: Architecture, kind: int) -> None:
    refused("tlv-missing", lambda: verify(FORGE.device(arch, nonce=NONCE, tlvs={kind: None})))


_PORTS = FORGE.elements(LS10, 0, GpuMode.ON)[26]
_VALUES: list[tuple[str, Architecture, dict[int, bytes | None], str]] = [
    ("042-protected-without-flag", HOPPER, {36: b"\x00\x00", 21: b"\xaa"}, "feature-contradiction"),
    ("042-flag-without-status", HOPPER, {36: b"\x02\x00", 21: None}, "feature-contradiction"),
    ("042-protected-neither", HOPPER, {21: b"\x00"}, "protected-pcie"),
    ("041-feature-3", HOPPER, {36: b"\x03\x00"}, "feature-flag"),
    ("041-feature-256", HOPPER, {36: b"\x00\x01"}, "feature-flag"),
    ("045-sku-path", HOPPER, {18: b"../x\0"}, "project-sku"),
    ("045-chip-sku-dash", HOPPER, {15: b"a-b\0"}, "chip-sku"),
    ("045-chip-path", BLACKWELL, {35: b"GB/100\0"}, "chip-info"),
    ("045-bios-text", LS10, {6: b"96.10.73.00.0G"}, "bios-version"),
    ("143-lock-2", LS10, {25: b"\x02\x00"}, "lock-status"),
    ("143-lock-256", LS10, {25: b"\x00\x01"}, "lock-status"),
    ("144-port-8", LS10, {26: _PORTS[:-1] + b"\x08"}, "switch-port"),
    ("144-port-254", LS10, {26: _PORTS[:-1] + b"\xfe"}, "switch-port"),
]


@pytest.mark.parametrize(("arch", "tlvs", "code"), [pytest.param(a, t, c, id=f"gpu-{i}") for i, a, t, c in _VALUES])
def test_values_of_elements(arch: Architecture, tlvs: dict[int, bytes | None], code: str) -> None:
    refused(code, lambda: verify(FORGE.device(arch, nonce=NONCE, tlvs=tlvs)))


@pytest.mark.parametrize(
    ("tlvs", "feature"),
    [
        pytest.param({34: None}, None, id="gpu-039-no-version"),
        pytest.param({34: b"\x00\x00"}, None, id="gpu-039-version-0"),
        pytest.param({34: b"\x01\x00"}, 0, id="gpu-039-version-1"),
        pytest.param({36: b"\x01\x00"}, 1, id="gpu-041-feature-1"),
    ],
)
def test_firmware_that_does_not_say_its_feature(tlvs: dict[int, bytes | None], feature: int | None) -> None:
    facts = parse_gpu_facts(parse_report(FORGE.device(nonce=NONCE, tlvs=tlvs).report))
    assert (facts.feature, facts.protected_pcie) == (feature, False)


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-145-disabled-link")])
def test_a_link_that_is_off_leads_nowhere(_case: None) -> None:
    links = FORGE.elements(HOPPER, 0, GpuMode.PPCIE)[22]
    evidence = FORGE.device(nonce=NONCE, mode=GpuMode.PPCIE, tlvs={22: bytes(8) + links[8:]})
    facts = parse_gpu_facts(parse_report(evidence.report))
    assert facts.linked_switches == tuple(FORGE.pdi(LS10, link % 4) for link in range(1, 18))
    odd = FORGE.device(nonce=NONCE, mode=GpuMode.PPCIE, tlvs={22: bytes(7) + b"\1" + links[8:]})
    assert parse_gpu_facts(parse_report(odd.report)).linked_switches[0] == b"\1" + bytes(7)


@pytest.mark.parametrize(("extra", "code"), [(0, None), (1, "tlv-count")], ids=["gpu-038-128", "gpu-038-129"])
def test_so_many_elements_are_read(extra: int, code: str | None) -> None:
    known = len(FORGE.elements(HOPPER, 0, GpuMode.ON))
    tlvs: dict[int, bytes | None] = {0x100 + n: b"" for n in range(128 - known + extra)}
    evidence = FORGE.device(nonce=NONCE, tlvs=tlvs)
    if code is None:
        assert len(parse_report(evidence.report).opaque) == 128
    else:
        refused(code, lambda: verify(evidence))


@pytest.mark.parametrize(
    ("size", "code"), [(8192, "trailing-bytes"), (8193, "report-size")], ids=["gpu-048-8192", "gpu-048-8193"]
)
def test_reports_have_a_size(size: int, code: str) -> None:
    refused(code, lambda: parse_report(FORGE.device(nonce=NONCE).report.ljust(size, b"\0")))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-044-driver-64k")])
def test_driver_of_64_kb(_case: None) -> None:
    evidence = FORGE.device(nonce=NONCE)
    huge = NvEvidence(report=evidence.signed + tlv(3, b"1" * 65535) + evidence.report[-96:], chain=evidence.chain)
    refused("report-size", lambda: verify(huge))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-038-unknown-element")])
def test_unknown_element_is_visible(_case: None) -> None:
    """Kept and reported by default, in findings and claims; refused where the policy says none."""
    evidence = FORGE.device(nonce=NONCE, tlvs={0x40: b"\x01\x02"})
    device = verify(evidence)
    assert device.level is Level.TRUSTED
    finding = next(f for f in device.findings if f.check == "opaque-unknown")
    assert (finding.result, finding.got) == (Result.WARN, "(64,)")
    assert device.claims["cgpu-unknown-opaque"] == {"64": "0102"}
    none: tuple[int, ...] = ()
    falls_short(verify(evidence, policy(unknown_opaque=Exactly(none))), "policy-opaque-unknown")


@pytest.mark.parametrize(
    ("nvdec0", "level"),
    [
        pytest.param(b"\xaa", Level.AUTHENTIC, id="gpu-043-nvdec0-on"),
        pytest.param(b"\x55", Level.TRUSTED, id="gpu-043-nvdec0-off"),
    ],
)
def test_index_35(nvdec0: bytes, level: Level) -> None:
    """Index 35 differs from its reference value: counts only while NVDEC0 is on."""
    device = verify(FORGE.device(nonce=NONCE, tlvs={11: nvdec0}, measurements={35: b"\x01" * 48}))
    assert device.level is level
    if level is Level.AUTHENTIC:
        assert "index 35 depends on NVDEC0" in find(device.findings, "measurement-mismatch").hint


@pytest.mark.parametrize(
    ("nvdec0", "level"),
    [
        pytest.param(b"\xaa", Level.TRUSTED, id="gpu-043-something-was-compared"),
        pytest.param(b"\x55", Level.AUTHENTIC, id="gpu-043-nothing-was-compared"),
    ],
)
def test_a_document_that_compares_nothing_matches_nothing(nvdec0: bytes, level: Level) -> None:
    """Its only index is 35, and NVDEC0 is on or off."""
    rim_id = "NV_GPU_DRIVER_GH100_590.12"
    document = FORGE.rim(HOPPER, driver=True, golden={35: (b"\2" * 48,)})
    evidence = FORGE.device(nonce=NONCE, tlvs={11: nvdec0}, measurements={35: b"\2" * 48})
    assert verify(evidence, with_rim(rim_id, document)).level is level


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-046-every-prefix")])
def test_every_prefix(hopper: NvEvidence, _case: None) -> None:
    """A genuine report cut at every offset is Malformed, and nothing else is raised."""
    for length in range(len(hopper.report)):
        with pytest.raises(Malformed):
            parse_report(hopper.report[:length])


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-047-trailing-zero")])
def test_genuine_trailing_zero(vectors: Path, _case: None) -> None:
    """The recorded report with one zero byte after its signature: refused, or tolerated and said."""
    evidence = genuine(vectors / "nvidia/hopper_coco_report1.txt", vectors / "nvidia/hopper_coco_certs1.txt")
    refused("trailing-bytes", lambda: verify(evidence, GENUINE, nonce=None))
    tolerant = replace(GENUINE, policy=policy(trailing_zeros=1).policy)
    device = verify(evidence, tolerant, nonce=None)
    assert device.level is Level.AUTHENTIC
    assert device.claims["cgpu-trailing-zeros"] == 1
    assert find(device.findings, "trailing-zeros").result is Result.WARN


@pytest.mark.parametrize(
    ("trailing", "code"),
    [
        pytest.param(b"\x01", "trailing-bytes", id="gpu-047-trailing-one"),
        pytest.param(b"\x00\x01", "trailing-bytes", id="gpu-047-trailing-zero-one"),
        pytest.param(bytes(65), "trailing-bytes", id="gpu-047-too-many-zeros"),
        pytest.param(bytes(8192), "report-size", id="gpu-047-trailing-8k"),
        pytest.param(bytes(100_000_000), "report-size", id="gpu-048-100-MB"),
    ],
)
def test_trailing(trailing: bytes, code: str) -> None:
    evidence = FORGE.device(nonce=NONCE)
    longer = NvEvidence(report=evidence.report + trailing, chain=evidence.chain)
    refused(code, lambda: verify(longer, policy(trailing_zeros=64)))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-047-as-many-zeros-as-allowed")])
def test_trailing_zeros_that_a_policy_allows(_case: None) -> None:
    evidence = FORGE.device(nonce=NONCE)
    longer = NvEvidence(report=evidence.report + bytes(64), chain=evidence.chain)
    device = verify(longer, policy(trailing_zeros=64))
    assert (device.level, device.claims["cgpu-trailing-zeros"]) == (Level.TRUSTED, 64)
    assert find(device.findings, "trailing-zeros").result is Result.WARN


class Bytes(bytes):
    """A subclass could lie about its length."""


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("11e0", id="gpu-049-str"),
        pytest.param(None, id="gpu-049-none"),
        pytest.param(Bytes(b"\x11\xe0"), id="gpu-049-subclass"),
        pytest.param(bytearray(b"\x11\xe0"), id="gpu-049-bytearray"),
    ],
)
def test_not_bytes(value: bytes) -> None:
    with pytest.raises(TypeError):
        parse_report(value)


def test_forged_devices_are_trusted() -> None:
    """The base that every forged case changes one thing of."""
    for arch in (HOPPER, LS10):
        assert verify(FORGE.device(arch, nonce=NONCE)).level is Level.TRUSTED


@pytest.mark.parametrize("index", [PRODUCTS[LS10].blocks, 40], ids=["first", "any"])
def test_missing_measurement_is_named(index: int) -> None:
    """A document that names an index which the device does not have."""
    golden = {i: (v,) for i, v in FORGE.measurements(LS10).items()} | {index: (UNUSED,)}
    rim_id = "NV_SWITCH_BIOS_5612_0002_890_9610730001"
    device = verify(FORGE.device(LS10, nonce=NONCE), with_rim(rim_id, FORGE.rim(LS10, driver=False, golden=golden)))
    assert find(device.findings, "measurement-missing").got == "absent"
    assert device.level is Level.AUTHENTIC
