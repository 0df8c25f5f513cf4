"""The verification policy file: what every field becomes, and that nothing unknown, loose or wrong passes."""

import re
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.appraise.verification import parse_verification_policy
from attestation.errors import Misconfigured
from attestation.formats.snp_report import Firmware
from attestation.formats.snp_tcb import Product, Tcb
from attestation.verify.identity import FwidMatch
from attestation.verify.nv_policy import AtLeast, Exactly, ExpiryMode, NvPolicy, OneOf, Unchecked
from attestation.verify.revocation import RevocationStatus
from attestation.verify.snp_policy import Rule, SnpPolicy, TcbFloors
from attestation.verify.snp_trust import CrlMode, LeafKind
from attestation.verify.tdx_trust import TcbStatus, TdxPolicy

ROOT = Path(__file__).resolve().parents[3]
HEX = "0aFF" * 12
CHIP = "0AFF" * 4
WAIVED = '{ unchecked = "a lab machine" }'
REASON = "a lab machine"


def parse(text: str) -> object:
    return parse_verification_policy(f"version = 1\n{text}".encode())


def test_an_empty_policy_is_the_default() -> None:
    """What is left out keeps its default, and the defaults are the strict ones."""
    policy = parse_verification_policy(b"version = 1")
    assert (policy.nvidia, policy.snp, policy.tdx) == (NvPolicy(), SnpPolicy(), TdxPolicy())
    assert policy.bundle is None
    assert policy.waivers == ()


def _fields(table: str, rows: dict[str, tuple[str, str, object]]) -> list[object]:
    return [pytest.param(table, *row, id=f"{table}-{name}") for name, row in rows.items()]


@pytest.mark.parametrize(
    ("table", "line", "where", "value"),
    [
        *_fields(
            "nvidia",
            {
                "driver-least": ('driver_version = { at_least = "560.1" }', "driver", AtLeast("560.1")),
                "driver-set": ('driver_version = ["1.2", "1.3"]', "driver", OneOf(frozenset({"1.2", "1.3"}))),
                "driver-any": (f"driver_version = {WAIVED}", "driver", Unchecked(REASON)),
                "vbios": ('vbios_version = "96.00.9f"', "vbios", OneOf(frozenset({"96.00.9F"}))),
                "vbios-least": ('vbios_version = { at_least = "96.00.9F" }', "vbios", AtLeast("96.00.9F", 16)),
                "fwid": ('firmware_id = "match"', "fwid", Exactly(FwidMatch.MATCH)),
                "fwid-any": (f"firmware_id = {WAIVED}", "fwid", Unchecked(REASON)),
                "chips": (f'chip_ids = ["{CHIP.lower()}"]', "chip_ids", OneOf(frozenset({CHIP}))),
                "elements": ("unknown_elements = [41, 40]", "unknown_opaque", Exactly((40, 41))),
                "no-elements": ("unknown_elements = []", "unknown_opaque", Exactly(())),
                "expiry": ('signer_expiry = { mode = "grace", grace_days = 30 }', "signer_expiry.grace", timedelta(30)),
                "first-seen": (
                    'signer_expiry = { mode = "valid-at-first-seen" }', "signer_expiry.mode", ExpiryMode.FIRST_SEEN,
                ),
                "pins": (f'rim_pins = {{ NV_X = ["{HEX}"] }}', "rim_pins", {"NV_X": frozenset({HEX.lower()})}),
                "retired": (f'retired_rims = ["{HEX}"]', "retired_rims", frozenset({HEX.lower()})),
                "trailing": ("trailing_zeros = 4", "trailing_zeros", 4),
                "rim-accept": (
                    'revocation.rim.accept = ["good", "unknown"]', "revocation.rim.accept",
                    frozenset({RevocationStatus.GOOD, RevocationStatus.UNKNOWN}),
                ),
                "rim-hold": (f"revocation.rim.hold = {WAIVED}", "revocation.rim.allow_hold", True),
                "ca-age": ("revocation.device_ca.max_age_days = 7", "revocation.device_ca.max_age", timedelta(7)),
                "leaf-grace": ("revocation.device_leaf.grace_days = 2", "revocation.device_leaf.grace", timedelta(2)),
            },
        ),
        *_fields(
            "snp",
            {
                "products": ('products = "turin"', "products", frozenset({Product.TURIN})),
                "versions": ("report_versions = [5]", "versions", frozenset({5})),
                "keys": ('signing_keys = ["vlek"]\ncsp_ids = ["cloud"]', "leaf_kinds", frozenset({LeafKind.VLEK})),
                "csp": ('csp_ids = ["cloud"]', "csp_ids", frozenset({"cloud"})),
                "crl": ('crl = "require"', "chain.crl", CrlMode.REQUIRE),
                "grace": ("vcek_grace_days = 3", "chain.vcek_grace", timedelta(3)),
                "floors": (
                    "floors.genoa.committed = { snp = 23, microcode = 72 }", "floors",
                    {Product.GENOA: TcbFloors(committed=Tcb(bootloader=0, tee=0, snp=23, microcode=72))},
                ),
                "firmware": ('min_firmware = "1.55.40"', "min_firmware", Firmware(1, 55, 40)),
                "provisional": (f"provisional_firmware = {WAIVED}", "provisional_firmware", True),
                "vmpls": ("vmpls = [0, 1]", "vmpls", frozenset({0, 1})),
                "abi": ('min_abi = "1.51"', "min_abi", (1, 51)),
                "svn": ("min_guest_svn = 2", "min_guest_svn", 2),
                "mitigations": ("mitigations = 3", "mitigations", 3),
                "id-keys": (f'id_keys = ["{HEX}"]', "id_keys", frozenset({HEX.lower()})),
                "author-keys": (f'author_keys = ["{HEX}"]', "author_keys", frozenset({HEX.lower()})),
                "families": (f'family_ids = ["{HEX}"]', "family_ids", frozenset({HEX.lower()})),
                "images": (f"image_ids = {WAIVED}", "image_ids", None),
                "allow": (f'chip_allow = ["{HEX}"]', "chip_allow", frozenset({HEX.lower()})),
                "deny": (f'chip_deny = ["{HEX}"]', "chip_deny", frozenset({HEX.lower()})),
                "masked": (f"masked_chip = {WAIVED}", "masked_chip", True),
                "alias": (f"alias_check = {WAIVED}", "alias_check", Rule.ANY),
                **{
                    name: (f'{name} = "forbid"', name, Rule.FORBID)
                    for name in ("smt", "single_socket", "cxl", "aes_xts", "rapl_disabled", "ciphertext_hiding",
                                 "page_swap_disabled", "tsme", "ecc")
                },
            },
        ),
        *_fields(
            "tdx",
            {
                "statuses": (
                    'statuses = ["UpToDate", "SWHardeningNeeded"]', "statuses",
                    frozenset({TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED}),
                ),
                "advisories": ('advisories = ["INTEL-SA-1"]', "advisories", frozenset({"INTEL-SA-1"})),
                "no-advisories": ("advisories = []", "advisories", frozenset()),
                "any-advisories": (f"advisories = {WAIVED}", "advisories", None),
                "date": ("min_tcb_date = 2025-01-01T00:00:00Z", "min_tcb_date", datetime(2025, 1, 1, tzinfo=UTC)),
                "evaluation": ("min_evaluation = 17", "min_evaluation", 17),
                "pks": (f"pks = {WAIVED}", "allow_pks", True),
                "key-locker": (f"key_locker = {WAIVED}", "allow_key_locker", True),
                "perfmon": (f"perfmon = {WAIVED}", "allow_perfmon", True),
                "xfam": ("xfam_allowed = 0x3", "xfam_allowed", 3),
                "seam": (f'mr_seams = ["{HEX}"]', "mr_seams", frozenset({HEX.lower()})),
                "owner": (f'mr_owners = ["{HEX}"]', "mr_owners", frozenset({HEX.lower()})),
                "owner-config": (f'mr_owner_configs = ["{HEX}"]', "mr_owner_configs", frozenset({HEX.lower()})),
                "allow": (f'platform_allow = ["{HEX}"]', "platform_allow", frozenset({HEX.lower()})),
                "deny": (f'platform_deny = ["{HEX}"]', "platform_deny", frozenset({HEX.lower()})),
                "dynamic": ('dynamic_platform = "forbid"', "dynamic_platform", False),
                "cached": ('cached_keys = "forbid"', "cached_keys", False),
                "smt": ('smt = "forbid"', "smt", False),
                "trailing": ("trailing_zeros = 0", "trailing_zeros", 0),
            },
        ),
    ],
)  # fmt: skip
def test_every_field(table: str, line: str, where: str, value: object) -> None:
    """One line sets one field of one policy, and a waiver keeps its reason."""
    policy = parse_verification_policy(f"version = 1\n[{table}]\n{line}".encode())
    assert attrgetter(f"{table}.{where}")(policy) == value
    expected = [f"{table}.{line.partition(' ')[0]}: {REASON}"] if REASON in line else []
    assert list(policy.waivers) == expected


def test_no_field_is_left_out() -> None:
    """Every field of every policy type can be written down."""
    from dataclasses import fields

    source = "".join((ROOT / "attestation/appraise" / f"verification_{name}.py").read_text() for name in ("nv", "cpu"))
    for kind in (NvPolicy, SnpPolicy, TdxPolicy):
        for one in fields(kind):
            assert f'"{one.name}"' in source, f"{kind.__name__}.{one.name}"


@pytest.mark.parametrize(
    ("text", "code", "where"),
    [
        pytest.param("[nvidia]\nnonce = false", "policy-field-unknown", "nvidia.nonce", id="unknown-field"),
        pytest.param("[sgx]", "policy-field-unknown", "sgx", id="unknown-table"),
        pytest.param("[snp]\nvmpls = [4]", "policy-value", "snp.vmpls", id="range"),
        pytest.param("[snp]\nvmpls = []", "policy-value", "snp.vmpls", id="empty-set"),
        pytest.param("[snp]\nvmpls = [true]", "policy-value", "snp.vmpls", id="boolean-number"),
        pytest.param('[snp]\nsmt = "any"', "policy-value", "snp.smt", id="any-without-reason"),
        pytest.param('[snp]\nsmt = { unchecked = "x" }', "policy-value", "snp.smt", id="no-reason"),
        pytest.param('[snp]\nproducts = ["milan"]', "snp-milan-allow-list", "snp.chip_allow", id="milan"),
        pytest.param('[snp]\nsigning_keys = ["vlek"]', "snp-vlek-csp", "snp.csp_ids", id="vlek"),
        pytest.param("[snp]\nfloors.rome.reported = {}", "policy-field-unknown", "snp.floors.rome", id="product"),
        pytest.param(
            "[snp]\nfloors.genoa.reported = { fmc = 1 }", "policy-field-unknown", "snp.floors.genoa.reported.fmc",
            id="component",
        ),
        pytest.param('[snp]\nmin_abi = "1"', "policy-value", "snp.min_abi", id="version"),
        pytest.param('[tdx]\nstatuses = ["Revoked"]', "tdx-policy-revoked", "tdx.statuses", id="revoked-tcb"),
        pytest.param('[tdx]\nstatuses = ["Fine"]', "policy-value", "tdx.statuses", id="status"),
        pytest.param("[tdx]\nsmt = true", "policy-value", "tdx.smt", id="flag"),
        pytest.param("[tdx]\nmin_tcb_date = 2025-01-01", "policy-value", "tdx.min_tcb_date", id="no-offset"),
        pytest.param('[nvidia]\nfirmware_id = "absent"', "policy-value", "nvidia.firmware_id", id="fwid"),
        pytest.param('[nvidia]\nchip_ids = ["xyz"]', "policy-value", "nvidia.chip_ids", id="hex"),
        pytest.param(
            '[nvidia]\ndriver_version = { at_least = "new" }', "policy-version", "nvidia.driver_version", id="dotted"
        ),
        pytest.param(
            '[nvidia]\nrevocation.rim.accept = ["revoked"]', "revocation-accept", "nvidia.revocation.rim", id="accept"
        ),
        pytest.param(
            f"[nvidia]\nrevocation.device_leaf.hold = {WAIVED}", "revocation-hold", "nvidia.revocation.device_leaf",
            id="hold",
        ),
        pytest.param(
            '[nvidia]\nsigner_expiry = { mode = "grace" }', "policy-grace", "nvidia.signer_expiry", id="grace"
        ),
        pytest.param("[bundle]", "policy-value", "bundle.max_age_days", id="bundle-empty"),
        pytest.param("[bundle]\nmax_age_days = 0", "bundle-age", "bundle", id="bundle-zero"),
        pytest.param("nvidia = 1", "policy-value", "nvidia", id="no-table"),
        pytest.param("version = 1", "policy-toml", "verification policy", id="twice"),
    ],
)  # fmt: skip
def test_what_is_refused(text: str, code: str, where: str) -> None:
    """The error names the field."""
    with pytest.raises(Misconfigured) as caught:
        parse(text)
    assert (caught.value.code, caught.value.where) == (code, where)


@pytest.mark.parametrize("text", ["", "version = 2", "version = true", "\xff"])
def test_version_and_encoding(text: str) -> None:
    with pytest.raises(Misconfigured):
        parse_verification_policy(text.encode("latin-1"))


@given(st.text(max_size=200) | st.sampled_from(["[snp]", "[tdx.x]", "[[nvidia]]"]).map(lambda t: f"{t}\na=1"))
def test_any_text_parses_or_is_misconfigured(text: str) -> None:
    try:
        parse(text)
    except Misconfigured:
        return


def test_bundle_rule() -> None:
    rule = parse_verification_policy(b"version = 1\n[bundle]\nmax_age_days = 45\nrequired = true").bundle
    assert rule is not None
    assert (rule.max_age, rule.required) == (timedelta(45), True)
    waived = parse_verification_policy(f"version = 1\nbundle = {WAIVED}".encode())
    assert (waived.bundle, waived.waivers) == (None, (f"bundle: {REASON}",))


def test_the_documented_policy_parses() -> None:
    """docs/policies.md shows one that works, and its waivers are what it says."""
    text = (ROOT / "docs/policies.md").read_text().partition("## Verification policies")[2]
    found = re.search(r"```toml\n(.*?)```", text, re.DOTALL)
    assert found is not None
    policy = parse_verification_policy(found[1].encode())
    assert policy.bundle is not None
    assert policy.waivers
