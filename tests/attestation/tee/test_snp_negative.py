"""Groups 1 to 34 of tee.md 5.4 on forged evidence: valid evidence with one thing changed, and the code it gives."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import AttestationError, Malformed, Misconfigured, Unavailable, Untrusted
from attestation.formats import der as der_reader
from attestation.formats.initdata import parse_init_data
from attestation.formats.snp_evidence import (
    CertKind,
    SnpEvidence,
    parse_cert_table,
    parse_snp_evidence,
    render_snp_evidence,
)
from attestation.formats.snp_report import REPORT_BYTES, Firmware, parse_snp_report
from attestation.formats.snp_tcb import Product, Tcb, parse_tcb, render_tcb
from attestation.simulate import der
from attestation.simulate.amd import (
    LEAF_START,
    SimulatedChip,
    mint_report,
    simulated_amd_collateral,
    simulated_amd_trust,
)
from attestation.simulate.amd_pki import (
    ORGANIZATION,
    PSS_SHA384,
    CertificateForm,
    authorities,
    ca_form,
    ca_keys,
    mint_crl,
)
from attestation.simulate.pki import spki
from attestation.verify.expected import CpuExpected
from attestation.verify.snp import verify_snp
from attestation.verify.snp_certs import AmdCache
from attestation.verify.snp_policy import Rule, SnpPolicy, TcbFloors
from attestation.verify.snp_trust import ChainRules, CrlMode, LeafKind, StaticAmdCollateral
from tests.attestation.tee.snp_cases import (
    TODAY,
    failures,
    flipped,
    open_policy,
    pool,
    refusal,
    verify_forged,
    with_extension,
    with_leaf,
    with_report,
)

CHIP = SimulatedChip()
TURIN = SimulatedChip(product=Product.TURIN)
GOOD = CHIP.evidence()
P384_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
R_OFFSET, S_OFFSET = 0x2A0, 0x2A0 + 72


def scalar(offset: int, value: int) -> SnpEvidence:
    """GOOD with R or S replaced."""
    raw = value.to_bytes(72, "little")
    return with_report(GOOD, GOOD.report[:offset] + raw + GOOD.report[offset + 72 :])


def forged(chip: SimulatedChip = CHIP, /, **changes: Any) -> SnpEvidence:
    """A validly signed report with some fields changed."""
    return chip.evidence(chip.fields().with_(**changes))


@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("kind", list(LeafKind))
def test_forged_evidence_is_accepted(product: Product, kind: LeafKind) -> None:
    """The base of everything below: what is forged verifies under the forge's roots."""
    chip = SimulatedChip(product=product, kind=kind)
    assert refusal(chip.evidence(), open_policy(chip.chip_id.hex())) == []
    assert refusal(parse_snp_evidence(chip.evidence_json()), open_policy(chip.chip_id.hex())) == []


_SIGNATURE: list[tuple[str, SnpEvidence, list[str]]] = [
    ("tee-001-reserved", with_report(GOOD, flipped(GOOD.report, 0x2A)), ["snp-signature-invalid"]),
    ("tee-001-tcb", with_report(GOOD, flipped(GOOD.report, 0x180)), ["snp-signature-invalid"]),
    ("tee-001-last", with_report(GOOD, flipped(GOOD.report, 0x29F)), ["snp-signature-invalid"]),
    ("tee-002-r-high-byte", with_report(GOOD, flipped(GOOD.report, R_OFFSET + 48)), ["snp-signature-encoding"]),
    ("tee-002-s-high-byte", with_report(GOOD, flipped(GOOD.report, S_OFFSET + 71)), ["snp-signature-encoding"]),
    ("tee-002-r-is-2-384", scalar(R_OFFSET, 1 << 384), ["snp-signature-encoding"]),
    ("tee-003-r-zero", scalar(R_OFFSET, 0), ["snp-signature-encoding"]),
    ("tee-003-s-zero", scalar(S_OFFSET, 0), ["snp-signature-encoding"]),
    ("tee-004-r-is-n", scalar(R_OFFSET, P384_ORDER), ["snp-signature-invalid"]),
    ("tee-004-s-is-n", scalar(S_OFFSET, P384_ORDER), ["snp-signature-invalid"]),
    ("tee-004-r-is-1", scalar(R_OFFSET, 1), ["snp-signature-invalid"]),
    ("tee-004-r-above-n", scalar(R_OFFSET, P384_ORDER + 1), ["snp-signature-invalid"]),
    ("tee-009-unsigned", forged(key_info=7 << 2), ["snp-signing-key"]),
    ("tee-009-reserved-key", forged(key_info=2 << 2), ["snp-signing-key"]),
    ("tee-010-algorithm-0", forged(signature_algo=0), ["snp-signature-algorithm"]),
    ("tee-010-algorithm-2", forged(signature_algo=2), ["snp-signature-algorithm"]),
    ("tee-011-version-1", forged(version=1), ["snp-version"]),
    ("tee-011-version-4", forged(version=4), ["snp-version"]),
    ("tee-011-version-6", forged(version=6), ["snp-version"]),
    ("tee-011-version-max", forged(version=0xFFFFFFFF), ["snp-version"]),
    ("tee-012-short", with_report(GOOD, GOOD.report[:-1]), ["snp-length"]),
    ("tee-012-long", with_report(GOOD, GOOD.report + b"\0"), ["snp-length"]),
    ("tee-012-empty", with_report(GOOD, b""), ["snp-length"]),
]


@pytest.mark.parametrize(("evidence", "codes"), [pytest.param(e, c, id=i) for i, e, c in _SIGNATURE])
def test_structure_and_signature(evidence: SnpEvidence, codes: list[str]) -> None:
    assert refusal(evidence) == codes


_STRICT = SnpPolicy(
    floors={Product.GENOA: TcbFloors(reported=CHIP.reported_tcb, committed=CHIP.reported_tcb, launch=CHIP.reported_tcb)}
)


def _floor(name: str, step: int = 1) -> SnpPolicy:
    tcb = CHIP.reported_tcb
    raised = replace(tcb, **{name: tcb.components()[name] + step})
    return SnpPolicy(floors={Product.GENOA: TcbFloors(reported=raised)})


_KEYS = frozenset({"ab" * 48})
_POLICY: list[tuple[str, SnpEvidence, SnpPolicy, list[str]]] = [
    ("tee-005-debug", forged(policy=0xB0000), SnpPolicy(), ["snp-debug"]),
    ("tee-006-migrate", forged(policy=0x70000), SnpPolicy(), ["snp-migration"]),
    ("tee-006-migration-agent", forged(report_id_ma=bytes(32)), SnpPolicy(), ["snp-migration"]),
    ("tee-007-bit-17", forged(policy=0x10000), SnpPolicy(), ["snp-policy-bit-17"]),
    ("tee-008-vmpl-1", forged(vmpl=1), SnpPolicy(), ["snp-vmpl"]),
    ("tee-008-vmpl-3", forged(vmpl=3), SnpPolicy(vmpls=frozenset({3})), []),
    ("tee-008-vmpl-4", forged(vmpl=4), SnpPolicy(vmpls=frozenset({4})), ["snp-vmpl-range"]),
    ("tee-008-host-requested", forged(vmpl=0xFFFFFFFF), SnpPolicy(), ["snp-vmpl-range"]),
    ("tee-023-masked", forged(chip_id=bytes(64)), SnpPolicy(), ["snp-chip-id-masked"]),
    ("tee-023-masked-allowed", forged(chip_id=bytes(64)), SnpPolicy(masked_chip=True), []),
    *(
        (f"tee-023-masked-{name}-{chip.product}", forged(chip, chip_id=bytes(64)), policy, codes)
        for chip in (CHIP, TURIN)
        for listed in [frozenset({chip.chip_id.hex()})]
        for name, policy, codes in (
            ("denied", SnpPolicy(masked_chip=True, chip_deny=listed), ["snp-chip-denied"]),
            ("listed", SnpPolicy(masked_chip=True, chip_allow=listed), []),
            ("unlisted", SnpPolicy(masked_chip=True, chip_allow=frozenset({"ab" * 64})), ["snp-chip-not-allowed"]),
        )
    ),
    ("tee-024-provisional", forged(current=(1, 56, 0)), SnpPolicy(), ["snp-provisional-firmware"]),
    ("tee-024-allowed", forged(current=(1, 56, 0)), SnpPolicy(provisional_firmware=True), []),
    ("tee-026-at-floor", GOOD, _STRICT, []),
    *((f"tee-026-{n}", GOOD, _floor(n), ["snp-reported-tcb-low"]) for n in CHIP.reported_tcb.components()),
    (
        "tee-026-committed",
        forged(committed_tcb=render_tcb(replace(CHIP.reported_tcb, microcode=83))),
        replace(_STRICT, provisional_firmware=True),
        ["snp-committed-tcb-low"],
    ),
    (
        "tee-026-launch",
        forged(launch_tcb=render_tcb(replace(CHIP.reported_tcb, snp=1))),
        _STRICT,
        ["snp-launch-tcb-low"],
    ),
    ("tee-026-firmware", GOOD, SnpPolicy(min_firmware=Firmware(1, 56, 0)), ["snp-firmware-low"]),
    ("tee-026-firmware-at-floor", GOOD, SnpPolicy(min_firmware=Firmware(1, 55, 40)), []),
    (
        "tee-026-firmware-committed",
        forged(current=(1, 56, 0)),
        SnpPolicy(min_firmware=Firmware(1, 56, 0), provisional_firmware=True),
        ["snp-firmware-low"],
    ),
    ("tee-027-alias-check", forged(platform_info=0x05), SnpPolicy(), ["snp-alias-check"]),
    ("tee-028-mitigations", TURIN.evidence(), SnpPolicy(mitigations=0x3F), []),
    ("tee-028-launch", forged(TURIN, launch_mit_vector=0x1F), SnpPolicy(mitigations=0x3F), ["snp-mitigation"]),
    ("tee-028-current", forged(TURIN, current_mit_vector=0x3E), SnpPolicy(mitigations=1), ["snp-mitigation"]),
    ("tee-028-version-3", GOOD, SnpPolicy(mitigations=1), ["snp-mitigation", "snp-mitigation"]),
    ("smt-platform-and-guest", forged(), SnpPolicy(smt=Rule.FORBID), ["snp-smt", "snp-smt"]),
    ("smt-allowed", forged(platform_info=0x24, policy=0x20000), SnpPolicy(smt=Rule.FORBID), []),
    ("single-socket", forged(), SnpPolicy(single_socket=Rule.REQUIRE), ["snp-single-socket"]),
    ("hiding", forged(), SnpPolicy(ciphertext_hiding=Rule.REQUIRE), ["snp-ciphertext-hiding"] * 2),
    ("abi", forged(), SnpPolicy(min_abi=(1, 51)), ["snp-abi-low"]),
    ("abi-at-floor", forged(policy=0x30133), SnpPolicy(min_abi=(1, 51)), []),
    ("abi-minor-low", forged(policy=0x30132), SnpPolicy(min_abi=(1, 51)), ["snp-abi-low"]),
    ("abi-largest", forged(policy=0x3FFFF), SnpPolicy(min_abi=(255, 255)), []),
    ("abi-minor-is-no-major", forged(policy=0x300FF), SnpPolicy(min_abi=(1, 0)), ["snp-abi-low"]),
    ("guest-svn", forged(), SnpPolicy(min_guest_svn=1), ["snp-guest-svn-low"]),
    ("guest-svn-at-floor", forged(guest_svn=1), SnpPolicy(min_guest_svn=1), []),
    ("id-key", forged(), SnpPolicy(id_keys=_KEYS), ["snp-id-key"]),
    ("id-key-listed", forged(id_key_digest=b"\xab" * 48), SnpPolicy(id_keys=_KEYS), []),
    ("author-key", forged(), SnpPolicy(author_keys=_KEYS), ["snp-author-key"]),
    ("author-key-unused", forged(author_key_digest=b"\xab" * 48), SnpPolicy(author_keys=_KEYS), ["snp-author-key"]),
    ("author-key-listed", forged(author_key_digest=b"\xab" * 48, key_info=1), SnpPolicy(author_keys=_KEYS), []),
    ("family-id", forged(), SnpPolicy(family_ids=frozenset({"ab" * 16})), ["snp-family-id"]),
    ("family-id-listed", forged(family_id=b"\xab" * 16), SnpPolicy(family_ids=frozenset({"ab" * 16})), []),
    ("image-id", forged(), SnpPolicy(image_ids=frozenset({"ab" * 16})), ["snp-image-id"]),
    ("image-id-listed", forged(image_id=b"\xab" * 16), SnpPolicy(image_ids=frozenset({"ab" * 16})), []),
    ("chip-denied", GOOD, SnpPolicy(chip_deny=frozenset({CHIP.chip_id.hex()})), ["snp-chip-denied"]),
    ("chip-not-allowed", GOOD, SnpPolicy(chip_allow=frozenset({"ab" * 64})), ["snp-chip-not-allowed"]),
    (
        "vlek-by-default",
        SimulatedChip(kind=LeafKind.VLEK).evidence(),
        SnpPolicy(),
        ["snp-leaf-kind-denied", "snp-csp-id"],
    ),
]


@pytest.mark.parametrize(("evidence", "policy", "codes"), [pytest.param(e, p, c, id=i) for i, e, p, c in _POLICY])
def test_policy(evidence: SnpEvidence, policy: SnpPolicy, codes: list[str]) -> None:
    assert refusal(evidence, policy) == codes


# Policy field, code, bits of PLATFORM_INFO and of the guest policy (AMD 56860 tables 23 and 10).
_BITS: list[tuple[str, str, tuple[int, ...], tuple[int, ...]]] = [
    ("smt", "snp-smt", (0,), (16,)),
    ("tsme", "snp-tsme", (1,), ()),
    ("ecc", "snp-ecc", (2,), ()),
    ("rapl_disabled", "snp-rapl", (3,), (23,)),
    ("ciphertext_hiding", "snp-ciphertext-hiding", (4,), (24,)),
    ("single_socket", "snp-single-socket", (), (20,)),
    ("cxl", "snp-cxl", (), (21,)),
    ("aes_xts", "snp-aes-xts", (), (22,)),
    ("page_swap_disabled", "snp-page-swap", (), (25,)),
]
_ALIAS_CHECKED, _MUST_BE_ONE = 1 << 5, 1 << 17
_EVERY_PLATFORM_BIT, _EVERY_GUEST_BIT = 0xFF, 0x3F30000  # of the guest's but debug and migration


@pytest.mark.parametrize(("field", "code", "platform", "guest"), [pytest.param(*row, id=row[0]) for row in _BITS])
def test_each_bit_has_one_rule(field: str, code: str, platform: tuple[int, ...], guest: tuple[int, ...]) -> None:
    mine, theirs = sum(1 << b for b in platform), sum(1 << b for b in guest)
    only = forged(platform_info=_ALIAS_CHECKED | mine, policy=_MUST_BE_ONE | theirs)
    others = forged(platform_info=_EVERY_PLATFORM_BIT & ~mine, policy=_EVERY_GUEST_BIT & ~theirs)
    require, forbid = (SnpPolicy(**{field: rule}) for rule in (Rule.REQUIRE, Rule.FORBID))  # type: ignore[arg-type]
    codes = [code] * (len(platform) + len(guest))
    assert (refusal(only, require), refusal(only, forbid)) == ([], codes)
    assert (refusal(others, require), refusal(others, forbid)) == (codes, [])


def _unasked(policy: SnpPolicy) -> list[str]:
    return [finding.got for finding in verify_forged(GOOD, policy).findings if finding.code == "snp-bits-unasked"]


def test_bits_that_no_rule_asks_about_are_named() -> None:
    fields = [field for field, *_ in _BITS]
    every = dict.fromkeys(fields, Rule.FORBID)
    assert _unasked(SnpPolicy(**every)) == []  # type: ignore[arg-type]
    assert _unasked(SnpPolicy(**(every | {"cxl": Rule.ANY, "ecc": Rule.ANY}))) == ["platform-ecc, policy-cxl"]  # type: ignore[arg-type]


_CLAIMED_BITS = {
    "platform_info": {
        0: "platform_smt_enabled", 1: "platform_tsme_enabled", 2: "platform_ecc", 3: "platform_rapl_disabled",
        4: "platform_ciphertext_hiding", 5: "platform_alias_check_complete", 7: "platform_tio",
    },
    "policy": {
        16: "policy_smt_allowed", 18: "policy_migrate_ma", 19: "policy_debug_allowed", 20: "policy_single_socket",
        21: "policy_cxl", 25: "policy_page_swap_disabled",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("word", "bit", "claim"),
    [pytest.param(w, b, c, id=c) for w, bits in _CLAIMED_BITS.items() for b, c in bits.items()],
)
def test_each_bit_has_one_claim(word: str, bit: int, claim: str) -> None:
    claims = verify_forged(forged(**{word: 1 << bit})).claims
    names = _CLAIMED_BITS[word].values()
    assert {name for name in names if claims[name] is True} == {claim}


def test_the_abi_is_claimed_in_its_two_bytes() -> None:
    claims = verify_forged(forged(policy=0x3A5C3)).claims
    assert (claims["policy_abi_major"], claims["policy_abi_minor"]) == (0xA5, 0xC3)


@pytest.mark.parametrize("chip", [pytest.param(c, id=f"tee-023-{c.product}") for c in (CHIP, TURIN)])
def test_a_masked_chip_has_the_name_that_its_leaf_gives_it(chip: SimulatedChip) -> None:
    """So revocations, hosts of GPUs and the rate by chip meet it; the claim stays what the report says."""
    cpu = verify_forged(forged(chip, chip_id=bytes(64)), SnpPolicy(masked_chip=True))
    assert cpu.chip_id == verify_forged(chip.evidence()).chip_id != ""
    assert cpu.claims["chip_id"] == "00" * 64


def test_a_providers_key_vouches_for_any_chip() -> None:
    """A VLEK names no chip, so the report's CHIP_ID meets nothing that it could contradict."""
    evidence = forged(SimulatedChip(kind=LeafKind.VLEK), chip_id=CHIP.chip_id)
    assert refusal(evidence, open_policy(CHIP.chip_id.hex())) == []
    assert verify_forged(evidence, open_policy()).chip_id == CHIP.chip_id.hex()


@pytest.mark.parametrize(
    ("chip_id", "codes"),
    [
        pytest.param(bytes(64), [], id="tee-023-vlek-masked"),
        pytest.param(CHIP.chip_id, [], id="tee-023-vlek-listed"),
        pytest.param(bytes(range(64)), ["snp-chip-not-allowed"], id="tee-023-vlek-unlisted"),
    ],
)
def test_a_list_of_chips_asks_whoever_names_one(chip_id: bytes, codes: list[str]) -> None:
    evidence = forged(SimulatedChip(kind=LeafKind.VLEK), chip_id=chip_id)
    assert refusal(evidence, open_policy(CHIP.chip_id.hex())) == codes


def test_a_low_tcb_is_explained_and_no_floor_is_said() -> None:
    low = [f for f in verify_forged(GOOD, _floor("microcode")).findings if f.code == "snp-reported-tcb-low"]
    assert [f.hint for f in low] == ["too low: microcode"]
    unasked = [f.check for f in verify_forged(GOOD).findings if f.code == "snp-no-floor"]
    assert unasked == ["snp-reported-tcb", "snp-committed-tcb", "snp-launch-tcb"]


def test_a_masked_chip_under_a_providers_key_has_no_name() -> None:
    evidence = forged(SimulatedChip(kind=LeafKind.VLEK), chip_id=bytes(64))
    assert verify_forged(evidence, open_policy()).chip_id == ""


_MISCONFIGURED: list[tuple[str, Callable[[], object], str]] = [
    ("milan-without-chips", lambda: SnpPolicy(products=frozenset(Product)), "snp-milan-allow-list"),
    ("vlek-without-provider", lambda: SnpPolicy(leaf_kinds=frozenset(LeafKind)), "snp-vlek-csp"),
    ("no-products", lambda: SnpPolicy(products=frozenset()), "snp-policy-empty"),
]


@pytest.mark.parametrize(("make", "code"), [pytest.param(m, c, id=i) for i, m, c in _MISCONFIGURED])
def test_policies_that_cannot_be_meant(make: Callable[[], object], code: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        make()
    assert caught.value.code == code


def _reported(**changes: int) -> bytes:
    return render_tcb(replace(CHIP.reported_tcb, **changes))


def _spl(chip: SimulatedChip, name: str) -> SnpEvidence:
    """A report whose reported TCB is one above its leaf in one component."""
    tcb = chip.reported_tcb
    raw = render_tcb(replace(tcb, **{name: tcb.components()[name] + 1}))
    return forged(chip, reported_tcb=raw, current_tcb=raw, committed_tcb=raw)


_VLEK = SimulatedChip(kind=LeafKind.VLEK)
_FORM = CHIP.leaf_form()
_AGREEMENT: list[tuple[str, SnpEvidence, list[str]]] = [
    (
        "tee-015-same-key-other-hwid",
        with_leaf(CHIP, with_extension(_FORM, "4", bytes(range(64)))),
        ["snp-chip-id-mismatch"],
    ),
    (
        "tee-015-turin-hwid",
        with_leaf(TURIN, with_extension(TURIN.leaf_form(), "4", b"12345678")),
        ["snp-chip-id-mismatch"],
    ),
    ("tee-015-hwid-as-octet-string", with_leaf(CHIP, with_extension(_FORM, "4", der.octets(CHIP.chip_id))), []),
    ("tee-015-short-hwid", with_leaf(CHIP, with_extension(_FORM, "4", CHIP.chip_id[:63])), ["snp-hwid"]),
    ("tee-015-no-hwid", with_leaf(CHIP, with_extension(_FORM, "4", None)), ["snp-leaf-extension"]),
    ("tee-016-subject-of-the-other-kind", with_leaf(CHIP, replace(_FORM, subject="SEV-VLEK")), ["snp-leaf-kind"]),
    (
        "tee-016-vlek-for-vcek-report",
        SnpEvidence(report=GOOD.report, certificates={CertKind.VCEK: _VLEK.leaf_form().sign()}),
        ["snp-leaf-kind"],
    ),
    (
        "tee-016-vlek-in-its-own-slot",
        SnpEvidence(report=GOOD.report, certificates={CertKind.VLEK: _VLEK.leaf_form().sign()}),
        ["snp-leaf-missing"],
    ),
    ("tee-016-asvk-signs-vcek", with_leaf(CHIP, replace(_FORM, signer=ca_keys()["asvk"])), ["snp-chain-signature"]),
    ("tee-016-ark-signs-vcek", with_leaf(CHIP, replace(_FORM, signer=ca_keys()["ark"])), ["snp-chain-signature"]),
    ("tee-016-unknown-issuer", with_leaf(CHIP, replace(_FORM, issuer="SEV-Venice")), ["snp-issuer"]),
    ("tee-016-issuer-of-other-product", with_leaf(CHIP, replace(_FORM, issuer="SEV-Turin")), ["snp-product-mismatch"]),
    *((f"tee-019-{n}", _spl(CHIP, n), ["snp-tcb-mismatch"]) for n in CHIP.reported_tcb.components()),
    *((f"tee-019-turin-{n}", _spl(TURIN, n), ["snp-tcb-mismatch"]) for n in TURIN.reported_tcb.components()),
    ("tee-019-reserved-spl", with_leaf(CHIP, with_extension(_FORM, "3.5", der.integer(1))), ["snp-spl-reserved"]),
    ("tee-019-fmc-on-genoa", with_leaf(CHIP, with_extension(_FORM, "3.9", der.integer(0))), ["snp-leaf-extension"]),
    (
        "tee-019-no-fmc-on-turin",
        with_leaf(TURIN, with_extension(TURIN.leaf_form(), "3.9", None)),
        ["snp-leaf-extension"],
    ),
    ("tee-019-spl-255", SimulatedChip(tcb=replace(CHIP.reported_tcb, microcode=255)).evidence(), []),
    ("tee-019-two-spls", with_leaf(CHIP, with_extension(_FORM, "3.3", der.integer(23) * 2)), ["der"]),
    ("tee-019-spl-256", with_leaf(CHIP, with_extension(_FORM, "3.3", der.integer(256))), ["snp-spl"]),
    *(
        (f"tee-020-{field}", forged(**{field: flipped(_reported(), 3)}), ["snp-tcb-reserved"])
        for field in ("reported_tcb", "current_tcb", "committed_tcb", "launch_tcb")
    ),
    (
        "tee-021-turin-report-as-genoa",
        forged(cpuid=(0x19, 0x11, 1), **dict.fromkeys(("reported_tcb",), render_tcb(TURIN.reported_tcb))),
        ["snp-tcb-reserved"],
    ),
    ("tee-022-cpuid-turin-chain-genoa", forged(cpuid=(0x1A, 2, 1)), ["snp-product-mismatch"]),
    ("tee-022-product-name", with_leaf(CHIP, with_extension(_FORM, "2", der.ia5("Turin"))), ["snp-product-mismatch"]),
    ("tee-022-unknown-cpuid", forged(cpuid=(0x1A, 0x50, 1)), ["snp-product-unknown"]),
    ("tee-025-reported-above", forged(current_tcb=_reported(snp=1)), ["snp-tcb-order"]),
    ("tee-025-committed-above", forged(committed_tcb=_reported(snp=99)), ["snp-tcb-order"]),
    ("tee-029-mitigations-in-v3", forged(patches={0x1F8: b"\x01"}), ["snp-reserved"]),
    ("tee-029-tail", forged(patches={0x29F: b"\x01"}), ["snp-reserved"]),
    ("tee-029-cpuid-gap", forged(patches={0x18B: b"\x01"}), ["snp-reserved"]),
    ("tee-029-key-info", forged(key_info=0x20), ["snp-reserved"]),
    ("tee-029-policy", forged(policy=0x4030000), ["snp-reserved"]),
    *(
        (f"tee-029-version-{version}-{offset:#x}", forged(version=version, patches={offset: b"\x80"}), ["snp-reserved"])
        for version, offsets in (
            (3, (0x4C, 0x4F, 0x18B, 0x19F, 0x1EB, 0x1EF, 0x1F8, 0x207, 0x208)),
            (5, (0x208, 0x29F)),
        )
        for offset in offsets
    ),
    ("tee-029-version-5-mitigations", forged(version=5, patches={0x1F8: b"\x80", 0x207: b"\x80"}), []),
    ("tee-029-key-info-defined", forged(key_info=0x03), []),
    ("tee-029-policy-last", forged(policy=0x2030000), []),
    ("tee-029-platform-info-may-grow", forged(platform_info=0x1E5), []),
]


@pytest.mark.parametrize(("evidence", "codes"), [pytest.param(e, c, id=i) for i, e, c in _AGREEMENT])
def test_leaf_and_report_agree(evidence: SnpEvidence, codes: list[str]) -> None:
    assert refusal(evidence) == codes


@pytest.mark.parametrize("offset", [0x188, 0x18A, 0x19F], ids=hex)
def test_version_2_has_no_processor_id(offset: int) -> None:
    assert refusal(forged(version=2, patches={offset: b"\1"}), SnpPolicy(versions=frozenset({2}))) == ["snp-reserved"]


@pytest.mark.parametrize(
    ("offset", "code"),
    [
        pytest.param(S_OFFSET + 72, "reserved", id="tee-002-first-after-s"),
        pytest.param(REPORT_BYTES - 1, "reserved", id="tee-002-last"),
        pytest.param(S_OFFSET + 71, "snp-signature-encoding", id="tee-002-last-of-s"),
    ],
)
def test_nothing_is_beside_the_scalars(offset: int, code: str) -> None:
    assert refusal(with_report(GOOD, flipped(GOOD.report, offset))) == [code]


def test_version_2_and_4_when_opted_in() -> None:
    """Version 4 has the layout of 3 (no sample is known); version 2 names no product, so the chain does."""
    policy = SnpPolicy(versions=frozenset({2, 4}))
    assert refusal(forged(version=4), policy) == []
    cpu = verify_forged(forged(version=2), policy)
    assert (cpu.product, cpu.claims["version"]) == ("Genoa", 2)
    assert "snp-alias-check-unknown" in {finding.code for finding in cpu.findings}
    cpu = verify_forged(forged(version=2), replace(policy, alias_check=Rule.ANY))
    assert "snp-alias-check-unknown" not in {finding.code for finding in cpu.findings}


def _ca(role: str, **changes: Any) -> bytes:
    return replace(ca_form(Product.GENOA, role), **changes).sign()


def _own_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


_NOT_A_CA = (("2.5.29.15", der.bits(b"\x04", 2), True),)
_DEPTH_1 = (*_NOT_A_CA, ("2.5.29.19", der.sequence(der.boolean_true(), der.integer(1)), True))
_FALSE_CA = (*_NOT_A_CA, ("2.5.29.19", der.sequence(), True))
_NO_CERT_SIGN = (
    ("2.5.29.15", der.bits(b"\x80", 7), True),
    ("2.5.29.19", der.sequence(der.boolean_true(), der.integer(0)), True),
)
_OTHER_USAGE = (("2.5.29.15", der.bits(b"\x01", 0), True), ca_form(Product.GENOA, "ask").extensions[1])
_EMPTY_USAGE = (("2.5.29.15", der.bits(b""), True), ca_form(Product.GENOA, "ask").extensions[1])
_NO_USAGE = ca_form(Product.GENOA, "ask").extensions[1:]
_CRITICAL = (*ca_form(Product.GENOA, "ask").extensions, ("1.2.3.4", b"\x05\x00", True))
_SHA256_PSS = bytes.fromhex(
    "304106092a864886f70d01010a3034a00f300d06096086480165030402010500"
    "a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120"
)
_SALT_32 = bytes.fromhex(
    "304106092a864886f70d01010a3034a00f300d06096086480165030402020500"
    "a11c301a06092a864886f70d010108300d06096086480165030402020500a203020120"
)
_P256 = ec.derive_private_key(7, ec.SECP256R1())
_ED25519 = (
    ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    .public_key()
    .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
)
_UNKNOWN_KEY = der.sequence(der.sequence(der.oid("1.2.3.4")), der.bits(b"\1"))
_CHAINS: list[tuple[str, dict[int, bytes], list[str]]] = [
    (
        "tee-017-self-made-root",
        {0: _ca("ark", spki=spki(_own_key()), signer=_own_key())},
        ["snp-anchor-mismatch"],
    ),
    ("tee-017-root-not-self-signed", {0: _ca("ark", signer=ca_keys()["ask"])}, ["snp-chain-signature"]),
    (
        "tee-017-root-of-another-name",
        {0: _ca("ark", subject="ARK-Turin", issuer="ARK-Turin")},
        ["snp-authority-missing"],
    ),
    ("tee-017-root-not-self-issued", {0: _ca("ark", issuer="ARK-Turin")}, ["snp-authority-missing"]),
    ("tee-017-ask-of-another-root", {1: _ca("ask", issuer="ARK-Turin")}, ["snp-authority-missing"]),
    ("tee-018-root-not-a-ca", {0: _ca("ark", extensions=_NOT_A_CA)}, ["snp-ca-constraints"]),
    ("tee-018-other-usage", {1: _ca("ask", extensions=_OTHER_USAGE)}, ["snp-ca-usage"]),
    ("tee-018-empty-usage", {1: _ca("ask", extensions=_EMPTY_USAGE)}, ["snp-ca-usage"]),
    ("tee-018-no-usage", {1: _ca("ask", extensions=_NO_USAGE)}, ["snp-ca-usage"]),
    ("tee-018-not-a-ca", {1: _ca("ask", extensions=_NOT_A_CA)}, ["snp-ca-constraints"]),
    ("tee-018-ca-false", {1: _ca("ask", extensions=_FALSE_CA)}, ["snp-ca-constraints"]),
    ("tee-018-path-length", {1: _ca("ask", extensions=_DEPTH_1)}, ["snp-ca-constraints"]),
    ("tee-018-no-cert-sign", {1: _ca("ask", extensions=_NO_CERT_SIGN)}, ["snp-ca-usage"]),
    ("tee-018-critical", {1: _ca("ask", extensions=_CRITICAL)}, ["snp-critical"]),
    ("tee-018-small-key", {1: _ca("ask", spki=spki(_own_key()))}, ["snp-ca-key"]),
    ("tee-018-other-key", {1: _ca("ask", spki=_ED25519)}, ["snp-ca-key"]),
    ("tee-018-expired-ark", {0: _ca("ark", not_after=TODAY - timedelta(seconds=1))}, ["snp-cert-expired"]),
    ("tee-018-expired-ask", {1: _ca("ask", not_after=TODAY - timedelta(seconds=1))}, ["snp-cert-expired"]),
    ("tee-018-early-ark", {0: _ca("ark", not_before=TODAY + timedelta(seconds=1))}, ["snp-cert-not-yet-valid"]),
]


@pytest.mark.parametrize(("replaced", "codes"), [pytest.param(r, c, id=i) for i, r, c in _CHAINS])
def test_authorities(replaced: dict[int, bytes], codes: list[str]) -> None:
    assert refusal(GOOD, collateral=pool(Product.GENOA, replaced)) == codes


_ALGORITHMS: list[tuple[str, CertificateForm, list[str]]] = [
    (
        "tee-031-sha256",
        replace(_FORM, algorithm=_SHA256_PSS, inner_algorithm=_SHA256_PSS, salt=32, digest=hashes.SHA256),
        ["snp-chain-algorithm"],
    ),
    ("tee-031-salt-32", replace(_FORM, algorithm=_SALT_32, inner_algorithm=_SALT_32, salt=32), ["snp-chain-algorithm"]),
    ("tee-031-lying-salt", replace(_FORM, salt=32), ["snp-chain-signature"]),
    ("tee-031-inner-differs", replace(_FORM, inner_algorithm=_SALT_32), ["der"]),
    ("tee-031-rsa", replace(_FORM, spki=spki(_own_key())), ["snp-leaf-key"]),
    ("tee-031-unknown-key", replace(_FORM, spki=_UNKNOWN_KEY), ["snp-key"]),
    ("tee-031-p256", replace(_FORM, spki=spki(_P256)), ["snp-leaf-key"]),
    ("tee-031-duplicate-extension", replace(_FORM, extensions=(*_FORM.extensions, _FORM.extensions[0])), ["der"]),
    (
        "tee-031-leaf-is-a-ca",
        replace(_FORM, extensions=(*_FORM.extensions, ("2.5.29.19", der.sequence(der.boolean_true()), False))),
        ["snp-leaf-ca"],
    ),
    (
        "tee-031-critical",
        replace(_FORM, extensions=(*_FORM.extensions, ("1.2.3.4", b"\x05\x00", True))),
        ["snp-critical"],
    ),
]


@pytest.mark.parametrize(("form", "codes"), [pytest.param(f, c, id=i) for i, f, c in _ALGORITHMS])
def test_leaf_certificates(form: CertificateForm, codes: list[str]) -> None:
    assert refusal(with_leaf(CHIP, form)) == codes


_LEAF = _FORM.sign()
_DER: list[tuple[str, bytes]] = [
    ("tee-031-trailing", _LEAF + b"\0"),
    ("tee-031-truncated", _LEAF[:-1]),
    ("tee-031-indefinite", b"\x30\x80" + _LEAF[4:] + b"\0\0"),
    ("tee-031-long-length", b"\x30\x83\x00" + _LEAF[2:]),
    ("tee-031-high-tag", b"\x3f" + _LEAF[1:]),
    ("tee-031-empty", b""),
    ("tee-031-oversized", b"\x30" * (der_reader.MAX_CERTIFICATE_BYTES + 1)),
]


@pytest.mark.parametrize("data", [pytest.param(d, id=i) for i, d in _DER])
def test_strict_der(data: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        der_reader.parse_certificate(data)
    assert caught.value.code == "der"


def _crl(**changes: Any) -> StaticAmdCollateral:
    dates = {"this_update": TODAY - timedelta(days=1), "next_update": TODAY + timedelta(days=30)}
    crl = mint_crl(**({"product": Product.GENOA} | dates | changes))
    return replace(pool(Product.GENOA, {}), crls={(Product.GENOA, LeafKind.VCEK): crl})


def _endless_crl() -> StaticAmdCollateral:
    """A list that does not say when the next one comes."""
    name = ca_form(Product.GENOA, "ark").issuer
    tbs = der.sequence(der.integer(1), PSS_SHA384, der.name(name, ORGANIZATION), der.time(TODAY - timedelta(days=1)))
    signature = ca_keys()["ark"].sign(tbs, padding.PSS(padding.MGF1(hashes.SHA384()), 48), hashes.SHA384())
    crl = der.sequence(tbs, PSS_SHA384, der.bits(signature))
    return replace(pool(Product.GENOA, {}), crls={(Product.GENOA, LeafKind.VCEK): crl})


_REQUIRE_CRL = SnpPolicy(chain=ChainRules(crl=CrlMode.REQUIRE))
_CRLS: list[tuple[str, StaticAmdCollateral, SnpPolicy, list[str]]] = [
    ("good", _crl(), _REQUIRE_CRL, []),
    ("tee-032-ask-revoked", _crl(revoked=(0x20001,)), SnpPolicy(), ["snp-authority-revoked"]),
    ("tee-032-other-revoked", _crl(revoked=(0x20101,)), SnpPolicy(), []),
    ("tee-032-first-second", _crl(this_update=TODAY), SnpPolicy(), []),
    ("tee-032-last-second", _crl(next_update=TODAY), SnpPolicy(), []),
    ("tee-032-no-next-update", _endless_crl(), SnpPolicy(), ["snp-crl-window"]),
    ("tee-032-expired", _crl(next_update=TODAY - timedelta(seconds=1)), SnpPolicy(), ["snp-crl-window"]),
    ("tee-032-future", _crl(this_update=TODAY + timedelta(seconds=1)), SnpPolicy(), ["snp-crl-window"]),
    ("tee-032-signed-by-ask", _crl(signer="ask"), SnpPolicy(), ["snp-crl-signature"]),
    ("tee-032-other-product", _crl(product=Product.TURIN), SnpPolicy(), ["snp-crl-issuer"]),
    ("tee-032-required-and-absent", pool(Product.GENOA, {}), _REQUIRE_CRL, ["snp-crl-missing"]),
    (
        "tee-032-garbage",
        replace(pool(Product.GENOA, {}), crls={(Product.GENOA, LeafKind.VCEK): b"0"}),
        SnpPolicy(),
        ["snp-crl"],
    ),
    ("tee-032-off", _crl(revoked=(0x20001,)), SnpPolicy(chain=ChainRules(crl=CrlMode.OFF)), []),
]


@pytest.mark.parametrize(("collateral", "policy", "codes"), [pytest.param(s, p, c, id=i) for i, s, p, c in _CRLS])
def test_revocation_lists(collateral: StaticAmdCollateral, policy: SnpPolicy, codes: list[str]) -> None:
    assert refusal(GOOD, policy, collateral=collateral) == codes


@pytest.mark.parametrize(
    ("size", "what"),
    [
        pytest.param(64 * 1024, "not a revocation list", id="tee-032-largest"),
        pytest.param(64 * 1024 + 1, "list is too large", id="tee-032-too-large"),
    ],
)
def test_revocation_lists_have_a_size(size: int, what: str) -> None:
    lists = {(Product.GENOA, LeafKind.VCEK): bytes(size)}
    with pytest.raises(Malformed) as caught:
        verify_forged(GOOD, collateral=replace(pool(Product.GENOA, {}), crls=lists))
    assert (caught.value.code, caught.value.what) == ("snp-crl", what)


def _words(evidence: SnpEvidence, **options: Any) -> set[tuple[str, str, str]]:
    return {(f.check, f.result.value, f.code) for f in verify_forged(evidence, **options).findings}


def test_what_was_not_checked_is_said() -> None:
    """A root that is no vendor's, and a list that nobody had."""
    assert _words(GOOD) >= {("snp-chain", "warn", "simulated-roots"), ("snp-crl", "skipped", "snp-crl-unchecked")}
    trust = replace(simulated_amd_trust(), simulated=False)
    assert _words(GOOD, trust=trust, collateral=_crl()) >= {("snp-chain", "pass", ""), ("snp-crl", "pass", "")}
    off = SnpPolicy(chain=ChainRules(crl=CrlMode.OFF))
    assert ("snp-crl", "skipped", "snp-crl-unchecked") in _words(GOOD, policy=off, collateral=_crl())


@pytest.mark.parametrize(
    ("product_dates", "now", "grace", "codes"),
    [
        pytest.param("vcek", TODAY + timedelta(days=3000), timedelta(0), ["snp-cert-expired"], id="tee-013-vcek"),
        pytest.param("vcek", TODAY + timedelta(days=3000), timedelta(days=3650), [], id="tee-013-vcek-grace"),
        pytest.param("vcek", TODAY - timedelta(days=400), timedelta(0), ["snp-cert-not-yet-valid"], id="tee-013-early"),
        pytest.param("vcek", LEAF_START, timedelta(0), [], id="tee-013-first-second"),
        pytest.param(
            "vlek",
            _VLEK.leaf_form().not_after + timedelta(seconds=1),
            timedelta(days=3650),
            ["snp-cert-expired"],
            id="tee-013-vlek-one-later",
        ),
        pytest.param(
            "vlek", TODAY + timedelta(days=400), timedelta(days=3650), ["snp-cert-expired"], id="tee-013-vlek"
        ),
    ],
)
def test_leaf_dates(product_dates: str, now: Any, grace: timedelta, codes: list[str]) -> None:
    chip = SimulatedChip(kind=LeafKind(product_dates))
    policy = replace(open_policy(chip.chip_id.hex()), chain=ChainRules(vcek_grace=grace))
    assert refusal(chip.evidence(), policy, now=now) == codes


@pytest.mark.parametrize(
    ("offset", "codes"),
    [
        pytest.param(timedelta(0), [], id="tee-068-last-second"),
        pytest.param(timedelta(seconds=1), ["snp-cert-expired"], id="tee-068-one-later"),
    ],
)
def test_boundary_second_is_inclusive(offset: timedelta, codes: list[str]) -> None:
    assert refusal(GOOD, now=_FORM.not_after + offset) == codes


INIT = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"a.toml" = "x = 1"\n'
_DOCUMENT = parse_init_data(INIT)
_BOUND: list[tuple[str, dict[str, Any], CpuExpected, list[str]]] = [
    ("good", {"report_data": b"\1" * 64}, CpuExpected(report_data=b"\1" * 64), []),
    (
        "tee-033-host-data",
        {"report_data": b"\1" * 64, "host_data": b"\2" * 32},
        CpuExpected(report_data=b"\1" * 64, init_data=_DOCUMENT),
        ["init-data-mismatch"],
    ),
    (
        "tee-033-host-data-good",
        {"host_data": _DOCUMENT.field_value(32)},
        CpuExpected(report_data=bytes(64), init_data=_DOCUMENT, init_data_required=True),
        [],
    ),
    ("tee-033-absent", {}, CpuExpected(report_data=bytes(64), init_data_required=True), ["init-data-missing"]),
    (
        "tee-033-algorithm-downgrade",
        {"host_data": _DOCUMENT.field_value(32)},
        CpuExpected(report_data=bytes(64), init_data=parse_init_data(INIT.replace("sha256", "sha512"))),
        ["init-data-mismatch"],
    ),
    (
        "tee-033-one-bit",
        {"report_data": b"\1" * 63 + b"\0"},
        CpuExpected(report_data=b"\1" * 64),
        ["report-data-mismatch"],
    ),
    (
        "tee-033-not-zero-padded",
        {"report_data": b"\1" * 48 + b"\2" * 16},
        CpuExpected(report_data=b"\1" * 48 + bytes(16)),
        ["report-data-mismatch"],
    ),
]


@pytest.mark.parametrize(("changes", "expected", "codes"), [pytest.param(f, e, c, id=i) for i, f, e, c in _BOUND])
def test_binding(changes: dict[str, Any], expected: CpuExpected, codes: list[str]) -> None:
    assert refusal(forged(**changes), expected=expected) == codes


def _with_caches(evidence: SnpEvidence, policy: SnpPolicy, cache: AmdCache) -> list[str]:
    try:
        cpu = verify_snp(
            evidence,
            trust=simulated_amd_trust(),
            collateral=simulated_amd_collateral(),
            policy=policy,
            expected=CpuExpected.unchecked(),
            now=TODAY,
            cache=cache,
        )
    except AttestationError as exc:
        return [exc.code]
    return failures(cpu)


_WARM = [
    *((i, e, SnpPolicy(), c) for i, e, c in (*_SIGNATURE, *_AGREEMENT)),
    *_POLICY,
]


@pytest.mark.parametrize(("evidence", "policy", "codes"), [pytest.param(e, p, c, id=i) for i, e, p, c in _WARM])
def test_what_is_remembered_excuses_nothing(evidence: SnpEvidence, policy: SnpPolicy, codes: list[str]) -> None:
    """Every negative again, twice, after good evidence of the same chips was verified and remembered."""
    cache = AmdCache()
    for good in (GOOD, TURIN.evidence()):
        assert _with_caches(good, SnpPolicy(), cache) == []
    assert [_with_caches(evidence, policy, cache) for _ in range(2)] == [codes, codes]
    assert _with_caches(GOOD, SnpPolicy(), cache) == []


def test_a_remembered_launch_answers_each_challenge_anew() -> None:
    cache, seen = AmdCache(), []
    for number in (1, 2):
        cpu = verify_snp(
            forged(report_data=bytes([number]) * 64, report_id=bytes([number]) * 32),
            trust=simulated_amd_trust(),
            collateral=simulated_amd_collateral(),
            policy=SnpPolicy(),
            expected=CpuExpected(report_data=bytes([number]) * 64),
            now=TODAY,
            cache=cache,
        )
        seen.append((cpu.report_data, cpu.claims["report_data"], cpu.claims["report_id"]))
    assert len(cache.launches) == 1
    assert seen == [(bytes([n]) * 64, f"{n:02x}" * 64, f"{n:02x}" * 32) for n in (1, 2)]


def test_unchecked_report_data_is_visible() -> None:
    assert "report-data-unchecked" in {finding.code for finding in verify_forged(GOOD).findings}


def test_stale_table_falls_back_to_the_store() -> None:
    """After a firmware update the host's table may hold the old leaf; the store has the new one (tee.md 1.7)."""
    old = replace(CHIP, tcb=replace(CHIP.reported_tcb, microcode=1))
    stale = SnpEvidence(report=GOOD.report, certificates={CertKind.VCEK: old.leaf_form().sign()})
    assert refusal(stale) == ["snp-signature-invalid"]
    stored = replace(pool(Product.GENOA, {}), leaves=(_LEAF,))
    assert refusal(stale, collateral=stored) == []
    assert refusal(SnpEvidence(report=GOOD.report, certificates={}), collateral=stored) == []


def _old_leaf(**changes: Any) -> bytes:
    """A leaf for another TCB, so with another key."""
    form = replace(CHIP, tcb=replace(CHIP.reported_tcb, microcode=1)).leaf_form()
    return replace(form, **changes).sign()


_OTHER_CHIP = with_extension(_FORM, "4", bytes(range(64))).sign()
_P256_LEAF = replace(_FORM, spki=spki(_P256)).sign()


@pytest.mark.parametrize(
    ("given", "stored", "code"),
    [
        pytest.param(_P256_LEAF, _old_leaf(), "snp-leaf-key", id="the-first"),
        pytest.param(_old_leaf(), _OTHER_CHIP, "snp-chip-id-mismatch", id="the-one-whose-signature-held"),
        pytest.param(_OTHER_CHIP, _old_leaf(), "snp-chip-id-mismatch", id="and-no-later-one"),
    ],
)
def test_of_several_leaves_the_one_that_says_most_is_named(given: bytes, stored: bytes, code: str) -> None:
    evidence = SnpEvidence(report=GOOD.report, certificates={CertKind.VCEK: given})
    assert refusal(evidence, collateral=replace(pool(Product.GENOA, {}), leaves=(stored,))) == [code]


@pytest.mark.parametrize(
    ("evidence", "collateral", "code"),
    [
        (SnpEvidence(report=GOOD.report, certificates={}), pool(Product.GENOA, {}), "snp-leaf-missing"),
        (GOOD, StaticAmdCollateral(), "snp-authority-missing"),
        (GOOD, StaticAmdCollateral(chain=authorities(Product.GENOA)[:1]), "snp-authority-missing"),
        (GOOD, StaticAmdCollateral(chain=authorities(Product.GENOA)[1:]), "snp-authority-missing"),
    ],
    ids=["no-leaf", "no-authority", "ark-only", "ask-only"],
)
def test_missing_certificates_are_unavailable_not_false(
    evidence: SnpEvidence, collateral: StaticAmdCollateral, code: str
) -> None:
    with pytest.raises(Unavailable) as caught:
        verify_forged(evidence, collateral=collateral)
    assert caught.value.code == code


_PEM = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(_LEAF) + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("leaf", "codes"),
    [
        pytest.param(_PEM, [], id="good"),
        pytest.param(_PEM.replace(b"\n", b"\n*", 1), ["pem"], id="tee-031-pem-alphabet"),
        pytest.param(_PEM.partition(b"-----END")[0], ["pem"], id="tee-031-pem-no-end"),
        pytest.param(b"-----BEGIN NOTHING-----\n", ["pem"], id="tee-031-pem-no-certificate"),
    ],
)
def test_leaves_in_pem(leaf: bytes, codes: list[str]) -> None:
    assert refusal(SnpEvidence(report=GOOD.report, certificates={CertKind.VCEK: leaf})) == codes


def _entry(guid: str, offset: int, length: int) -> bytes:
    return bytes.fromhex(guid.replace("-", "")) + offset.to_bytes(4, "little") + length.to_bytes(4, "little")


_G = "63da758d-e664-4564-adc5-f4b93be8accd"
_A = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
_END = bytes(24)
_TABLES: list[tuple[str, bytes]] = [
    ("tee-030-overlap", _entry(_G, 72, 4) + _entry(_A, 74, 4) + _END + b"12345678"),
    ("tee-030-over-header", _entry(_G, 8, 4) + _END + b"1234"),
    ("tee-030-out-of-range", _entry(_G, 48, 5) + _END + b"1234"),
    ("tee-030-huge-offset", _entry(_G, 0xFFFFFFFF, 0xFFFFFFFF) + _END),
    ("tee-030-no-terminator", _entry(_G, 24, 4) + b"1234"),
    ("tee-030-many-entries", _entry(_G, 48, 4) * 400 + _END + b"1234"),
    ("tee-030-10k-entries", _entry(_G, 48, 4) * 10_000 + _END + b"1234"),
    ("tee-030-two-vceks", _entry(_G, 72, 4) + _entry(_G, 76, 4) + _END + b"12345678"),
    ("tee-030-empty-entry", _entry(_G, 48, 0) + _END),
    ("tee-030-empty", b""),
]


@pytest.mark.parametrize("table", [pytest.param(t, id=i) for i, t in _TABLES])
def test_certificate_tables(table: bytes) -> None:
    with pytest.raises(Malformed) as caught:
        parse_cert_table(table)
    assert caught.value.code == "snp-cert-table"


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-030-unknown-guid")])
def test_certificate_table_with_unknown_entries(_case: None) -> None:
    other = "ecae0c0f-9502-43b1-afa2-0ae2e0d565b6"
    table = _entry(other, 72, 2) + _entry(_G, 74, 4) + _END + b"xx1234"
    assert parse_cert_table(table) == {CertKind.VCEK: b"1234"}


def _json(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(CHIP.evidence_json())
    change(document)
    return json.dumps(document)


def _set(**values: Any) -> str:
    return _json(lambda d: d["attestation_report"].update(values))


_JSON: list[tuple[str, str, str]] = [
    ("tee-034-256", _set(chip_id=[256] + [0] * 63), "snp-evidence-bytes"),
    ("tee-034-negative", _set(host_data=[-1] + [0] * 31), "snp-evidence-bytes"),
    ("tee-034-length", _set(measurement=[0] * 47), "snp-evidence-bytes"),
    ("tee-034-float", _set(policy=196608.0), "snp-evidence-number"),
    ("tee-034-float-byte", _set(host_data=[0.0] * 32), "snp-evidence-bytes"),
    ("tee-034-true-byte", _set(host_data=[True] + [0] * 31), "snp-evidence-bytes"),
    ("tee-034-false-byte", _set(signature={"r": [False] * 72, "s": [0] * 72}), "snp-evidence-bytes"),
    (
        "tee-034-true-certificate-byte",
        _json(lambda d: d["cert_chain"].append({"cert_type": "ASK", "data": [48, True]})),
        "snp-evidence-bytes",
    ),
    ("tee-034-null-byte", _set(host_data=[None] * 32), "snp-evidence-bytes"),
    (
        "tee-034-true-tcb",
        _json(lambda d: d["attestation_report"]["launch_tcb"].update(tee=True)),
        "snp-evidence-number",
    ),
    ("tee-034-tcb-256", _json(lambda d: d["attestation_report"]["launch_tcb"].update(tee=256)), "snp-evidence-number"),
    ("tee-034-firmware", _json(lambda d: d["attestation_report"]["current"].pop("minor")), "snp-evidence-number"),
    ("tee-034-bool", _set(vmpl=True), "snp-evidence-number"),
    ("tee-034-overflow", _set(policy=1 << 64), "snp-evidence-number"),
    ("tee-034-text", _set(host_data="00" * 32), "snp-evidence-bytes"),
    ("tee-034-duplicate-key", CHIP.evidence_json().replace('"vmpl":0', '"vmpl":0,"vmpl":0'), "json-duplicate-key"),
    ("tee-034-nan", CHIP.evidence_json().replace('"vmpl":0', '"vmpl":NaN'), "json"),
    ("tee-034-no-fmc", _json(lambda d: d["attestation_report"]["current_tcb"].pop("fmc")), "snp-evidence-tcb"),
    ("tee-034-cert-type", _json(lambda d: d["cert_chain"][0].update(cert_type="VEEK")), "snp-cert-type"),
    ("tee-034-cert-type-null", _json(lambda d: d["cert_chain"][0].update(cert_type=None)), "json-type"),
    (
        "tee-034-two-vceks",
        _json(lambda d: d["cert_chain"].append({"cert_type": "VCEK", "data": [1]})),
        "snp-cert-table",
    ),
    ("tee-034-many-certs", _json(lambda d: d["cert_chain"].extend([{}] * 17)), "snp-evidence-certs"),
    ("tee-034-newer-member", _set(launch_mit_vector=1), "snp-evidence-version"),
    ("tee-034-no-signature", _json(lambda d: d["attestation_report"].pop("signature")), "json-type"),
    ("tee-034-not-an-object", "[]", "json-type"),
    ("tee-034-not-json", "{", "json"),
    ("tee-034-deep", "[" * 100_000, "json"),
    ("tee-034-largest", " " * (256 * 1024), "json"),
    ("tee-034-size", " " * (256 * 1024 + 1), "json-size"),
    ("tee-034-certs-no-list", _json(lambda d: d.update(cert_chain={})), "snp-evidence-certs"),
    ("tee-034-long-cert", _json(lambda d: d["cert_chain"][0].update(data=[1] * (16 * 1024 + 1))), "snp-evidence-bytes"),
    ("tee-034-cert-type-other", _json(lambda d: d["cert_chain"][0].update(cert_type={"OTHERS": ""})), "json-type"),
    ("tee-034-cert-type-list", _json(lambda d: d["cert_chain"][0].update(cert_type=["OTHER"])), "json-type"),
    ("tee-034-raw-not-base64", '{"raw": "*"}', "snp-evidence-base64"),
]


@pytest.mark.parametrize(("text", "code"), [pytest.param(t, c, id=i) for i, t, c in _JSON])
def test_evidence_json(text: str, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_snp_evidence(text)
    assert caught.value.code == code


def _chain_of(*entries: object) -> str:
    return _json(lambda d: d.update(cert_chain=list(entries)))


_OWN = json.loads(CHIP.evidence_json())["cert_chain"][0]
_GOOD_JSON: list[tuple[str, str]] = [
    ("others-are-ignored", _chain_of({"cert_type": {"OTHER": "a guid"}, "data": "whatever"}, _OWN)),
    ("crl-is-ignored", _chain_of({"cert_type": "CRL", "data": "whatever"}, _OWN)),
    ("as-many-as-fit", _chain_of(*[{"cert_type": "CRL"}] * 15, _OWN)),
    ("one-twice", _chain_of(_OWN, _OWN)),
]


@pytest.mark.parametrize("text", [pytest.param(t, id=f"tee-034-{i}") for i, t in _GOOD_JSON])
def test_certificate_lists_that_are_read(text: str) -> None:
    assert parse_snp_evidence(text).certificates == GOOD.certificates


@pytest.mark.parametrize("chain", [None, []], ids=["null", "empty"])
def test_evidence_without_certificates(chain: object) -> None:
    assert parse_snp_evidence(_json(lambda d: d.update(cert_chain=chain))).certificates == {}


def test_a_certificate_as_long_as_the_table() -> None:
    text = _chain_of({"cert_type": "VCEK", "data": [1] * (16 * 1024)})
    assert parse_snp_evidence(text).certificates == {CertKind.VCEK: b"\1" * (16 * 1024)}


_STRANGE = "ecae0c0f-9502-43b1-afa2-0ae2e0d565b6"


@pytest.mark.parametrize(("entries", "fits"), [(16, True), (17, False)], ids=["tee-030-16", "tee-030-17"])
def test_certificate_tables_have_so_many_entries(entries: int, fits: bool) -> None:
    start = 24 * (entries + 1)
    head = b"".join(_entry(_STRANGE, start + number, 1) for number in range(entries))
    table = head + _END + bytes(entries)
    if fits:
        assert parse_cert_table(table) == {}
        return
    with pytest.raises(Malformed) as caught:
        parse_cert_table(table)
    assert (caught.value.code, caught.value.what) == ("snp-cert-table", "no terminating entry")


@pytest.mark.parametrize(
    ("size", "fits"), [(16 * 1024, True), (16 * 1024 + 1, False)], ids=["tee-030-largest", "tee-030-size"]
)
def test_certificate_tables_have_a_size(size: int, fits: bool) -> None:
    table = _entry(_G, 48, size - 48) + _END + b"\1" * (size - 48)
    if fits:
        assert parse_cert_table(table) == {CertKind.VCEK: b"\1" * (size - 48)}
        return
    with pytest.raises(Malformed) as caught:
        parse_cert_table(table)
    assert (caught.value.code, caught.value.what) == ("snp-cert-table", "table too large")


def test_dropped_reserved_bytes_fail_closed() -> None:
    """The stock attester loses reserved bytes, so a report that has some cannot verify through its JSON."""
    odd = forged(patches={0x210: b"\x01"})
    rebuilt = parse_snp_evidence(render_snp_evidence(odd.report, odd.certificates))
    assert refusal(rebuilt) == ["snp-signature-invalid"]


def test_raw_evidence_with_a_certificate_table() -> None:
    table = _entry(_G, 48, len(_LEAF)) + _END + _LEAF
    document = {"raw": base64.b64encode(GOOD.report).decode(), "cert_table": base64.b64encode(table).decode()}
    assert refusal(parse_snp_evidence(json.dumps(document))) == []


def test_tcb_orders_by_component() -> None:
    low, high = Tcb(bootloader=1, tee=1, snp=1, microcode=9), Tcb(bootloader=2, tee=1, snp=1, microcode=1)
    assert low.below(high) == ("bootloader",)
    assert high.below(low) == ("microcode",)
    assert parse_tcb(render_tcb(TURIN.reported_tcb), Product.TURIN, "x") == TURIN.reported_tcb


def test_only_our_errors_leave_the_verifier() -> None:
    """Every prefix of the evidence, and a leaf cut anywhere, gives one of our errors."""
    for size in (0, 1, 47, 0x2A0, REPORT_BYTES - 1):
        with pytest.raises(Malformed):
            parse_snp_report(GOOD.report[:size])
    for size in range(0, len(_LEAF), 97):
        with pytest.raises((Malformed, Untrusted)):
            verify_forged(SnpEvidence(report=GOOD.report, certificates={CertKind.VCEK: _LEAF[:size]}))


def test_signed_bits_are_all_covered() -> None:
    """Flipping any bit of the signed part is noticed (a byte per position, one bit each)."""
    base = mint_report(CHIP.fields(), CHIP.key)
    for offset in range(0, 0x2A0, 13):
        with pytest.raises(AttestationError):
            verify_forged(with_report(GOOD, flipped(base, offset, 1 << offset % 8)))
