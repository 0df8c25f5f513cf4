"""What an operator may demand of a genuine SNP report, and what nobody may switch off (tee.md 1.3, 1.4, 1.9b).

Every rule gives one finding; nothing here raises. DEBUG, migration and the architectural bit have no switch. Fields and
rules stay in one long module, to be read side by side.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from attestation.errors import Misconfigured
from attestation.findings import Finding, Result, failed, passed
from attestation.formats.snp_report import Firmware, SnpReport
from attestation.formats.snp_tcb import Product, Tcb
from attestation.values import JsonObject
from attestation.verify.snp_trust import ChainRules, LeafKind

SMT, MUST_BE_ONE, MIGRATE_MA, DEBUG, SINGLE_SOCKET, CXL = 16, 17, 18, 19, 20, 21
MEM_AES_256_XTS, RAPL_DISABLED, CIPHERTEXT_HIDING, PAGE_SWAP_DISABLED = 22, 23, 24, 25
P_SMT, P_TSME, P_ECC, P_RAPL_DISABLED, P_CIPHERTEXT_HIDING, P_ALIAS_CHECK, P_TIO = 0, 1, 2, 3, 4, 5, 7
ALIAS_CHECK_SINCE = 3  # version 2 reports predate the bit
_NO_MIGRATION_AGENT = b"\xff" * 32


class Rule(StrEnum):
    """What a bit must be."""

    ANY = "any"
    REQUIRE = "require"
    FORBID = "forbid"

    def allows(self, value: bool) -> bool:
        """Whether a bit of this value is acceptable."""
        return self is Rule.ANY or value is (self is Rule.REQUIRE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TcbFloors:
    """Least acceptable components, of one product. `committed` is the anti-rollback floor."""

    reported: Tcb | None = None
    committed: Tcb | None = None
    launch: Tcb | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpPolicy:
    """Defaults suit Kata on current bare metal. Milan needs a chip allow-list: its root seed can be extracted."""

    products: frozenset[Product] = frozenset({Product.GENOA, Product.TURIN})
    versions: frozenset[int] = frozenset({3, 5})
    leaf_kinds: frozenset[LeafKind] = frozenset({LeafKind.VCEK})
    csp_ids: frozenset[str] = frozenset()
    chain: ChainRules = field(default_factory=ChainRules)
    floors: Mapping[Product, TcbFloors] = field(default_factory=dict, hash=False)  # equality still compares them
    min_firmware: Firmware | None = None
    provisional_firmware: bool = False
    vmpls: frozenset[int] = frozenset({0})
    min_abi: tuple[int, int] = (0, 0)
    min_guest_svn: int = 0
    smt: Rule = Rule.ANY
    single_socket: Rule = Rule.ANY
    cxl: Rule = Rule.ANY
    aes_xts: Rule = Rule.ANY
    rapl_disabled: Rule = Rule.ANY
    ciphertext_hiding: Rule = Rule.ANY
    page_swap_disabled: Rule = Rule.ANY
    tsme: Rule = Rule.ANY
    ecc: Rule = Rule.ANY
    alias_check: Rule = Rule.REQUIRE
    mitigations: int = 0  # bits that both launch and current vector must have; any bit demands a version 5 report
    id_keys: frozenset[str] | None = None  # hex digests; None asks nothing
    author_keys: frozenset[str] | None = None
    family_ids: frozenset[str] | None = None
    image_ids: frozenset[str] | None = None
    chip_allow: frozenset[str] | None = None  # hex chip ids
    chip_deny: frozenset[str] = frozenset()
    masked_chip: bool = False

    def __post_init__(self) -> None:
        for name in ("products", "versions", "leaf_kinds", "vmpls"):
            if not getattr(self, name):
                raise Misconfigured("snp-policy-empty", "an empty set allows nothing", where=f"snp.{name}")
        if Product.MILAN in self.products and not self.chip_allow:
            raise Misconfigured(
                "snp-milan-allow-list",
                "Milan needs a list of chips: its root seed can be extracted by software (arXiv 2605.12990)",
                where="snp.chip_allow",
                expected="chip ids",
                got="none",
            )
        if LeafKind.VLEK in self.leaf_kinds and not self.csp_ids:
            raise Misconfigured("snp-vlek-csp", "VLEK needs provider ids", where="snp.csp_ids", expected="CSP ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpFacts:
    """A report whose signature and chain hold, with its TCBs in the byte order of its product."""

    report: SnpReport
    product: Product
    kind: LeafKind
    chip_id: bytes  # the report's; where it masks that one the VCEK's, which names the chip; zeros for a masked VLEK
    csp_id: str
    reported: Tcb
    current: Tcb
    committed: Tcb
    launch: Tcb

    @property
    def masked(self) -> bool:
        """Whether the report hides CHIP_ID."""
        return not any(self.report.chip_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedLaunch:
    """What follows from one leaf and everything in a report but its report data, report id and signature, under one
    policy: the same whenever this guest attests on this platform. `chip_id` is empty where report and leaf name none.
    """

    product: Product
    chip_id: str
    proven: tuple[Finding, ...]
    judged: tuple[Finding, ...]
    claims: JsonObject


def check_snp_policy(facts: SnpFacts, policy: SnpPolicy) -> tuple[Finding, ...]:
    """One finding per rule, in a fixed order."""
    return (
        *_mandatory(facts),
        *_platform(facts, policy),
        *_tcb(facts, policy),
        *_guest(facts, policy),
        *_bits(facts.report, policy),
    )


def _judge(check: str, code: str, holds: bool, *, expected: object, got: object, hint: str = "") -> Finding:
    if holds:
        return passed(check, got, expected=expected)
    return failed(check, code, expected=expected, got=got, hint=hint)


def _mandatory(facts: SnpFacts) -> Iterator[Finding]:
    report = facts.report
    debug, migration, one = (report.policy_bit(b) for b in (DEBUG, MIGRATE_MA, MUST_BE_ONE))
    yield _judge("snp-debug", "snp-debug", not debug, expected="off", got="on" if debug else "off")
    migration |= report.report_id_ma != _NO_MIGRATION_AGENT
    yield _judge("snp-migration", "snp-migration", not migration, expected="none", got="agent" if migration else "none")
    yield _judge("snp-policy-bit-17", "snp-policy-bit-17", one, expected=1, got=int(one))


def _platform(facts: SnpFacts, policy: SnpPolicy) -> Iterator[Finding]:
    report, chip = facts.report, facts.chip_id.hex()
    yield _judge(
        "snp-version",
        "snp-version",
        report.version in policy.versions,
        expected=sorted(policy.versions),
        got=report.version,
    )
    yield _judge(
        "snp-product",
        "snp-product",
        facts.product in policy.products,
        expected=sorted(policy.products),
        got=facts.product,
    )
    if facts.product is Product.MILAN:
        yield Finding(
            check="snp-milan",
            result=Result.WARN,
            code="snp-milan-root-extractable",
            expected="Genoa or Turin",
            got="Milan",
            hint="reports of any allowed Milan chip can be forged by whoever ever controlled that chip",
        )
    yield _judge(
        "snp-signing-key",
        "snp-leaf-kind-denied",
        facts.kind in policy.leaf_kinds,
        expected=sorted(policy.leaf_kinds),
        got=facts.kind,
    )
    if facts.kind is LeafKind.VLEK:
        yield _judge(
            "snp-csp-id",
            "snp-csp-id",
            facts.csp_id in policy.csp_ids,
            expected=sorted(policy.csp_ids),
            got=facts.csp_id,
        )
    else:
        yield _judge(
            "snp-chip-id",
            "snp-chip-id-masked",
            policy.masked_chip or not facts.masked,
            expected="a chip id",
            got="masked" if facts.masked else chip,
        )
    if policy.chip_allow is not None and not (facts.masked and facts.kind is LeafKind.VLEK):
        yield _judge(
            "snp-chip-allow", "snp-chip-not-allowed", chip in policy.chip_allow, expected="a listed chip", got=chip
        )
    yield _judge(
        "snp-chip-deny", "snp-chip-denied", chip not in policy.chip_deny, expected="not a denied chip", got=chip
    )
    yield _alias_check(report, policy.alias_check)


# Finding, code, policy field, bit: what the platform does, and what the guest's own policy allows.
_PLATFORM_BITS = (
    ("snp-platform-smt", "snp-smt", "smt", P_SMT),
    ("snp-platform-tsme", "snp-tsme", "tsme", P_TSME),
    ("snp-platform-ecc", "snp-ecc", "ecc", P_ECC),
    ("snp-platform-rapl-disabled", "snp-rapl", "rapl_disabled", P_RAPL_DISABLED),
    ("snp-platform-ciphertext-hiding", "snp-ciphertext-hiding", "ciphertext_hiding", P_CIPHERTEXT_HIDING),
)
_POLICY_BITS = (
    ("snp-policy-smt", "snp-smt", "smt", SMT),
    ("snp-policy-single-socket", "snp-single-socket", "single_socket", SINGLE_SOCKET),
    ("snp-policy-cxl", "snp-cxl", "cxl", CXL),
    ("snp-policy-aes-xts", "snp-aes-xts", "aes_xts", MEM_AES_256_XTS),
    ("snp-policy-rapl-disabled", "snp-rapl", "rapl_disabled", RAPL_DISABLED),
    ("snp-policy-ciphertext-hiding", "snp-ciphertext-hiding", "ciphertext_hiding", CIPHERTEXT_HIDING),
    ("snp-policy-page-swap-disabled", "snp-page-swap", "page_swap_disabled", PAGE_SWAP_DISABLED),
)


def _bits(report: SnpReport, policy: SnpPolicy) -> Iterator[Finding]:
    """Both words bit by bit; one finding names all the bits that the policy does not ask about."""
    unasked = []
    for table, word in ((_PLATFORM_BITS, report.platform_info), (_POLICY_BITS, report.policy)):
        for check, code, name, bit in table:
            rule: Rule = getattr(policy, name)
            if rule is Rule.ANY:
                unasked.append(check)
                continue
            value = bool(word >> bit & 1)
            yield _judge(check, code, rule.allows(value), expected=rule, got="on" if value else "off")
    if unasked:
        got = ", ".join(check.removeprefix("snp-") for check in unasked)
        yield Finding(check="snp-bits", result=Result.SKIPPED, code="snp-bits-unasked", expected="any", got=got)


def _alias_check(report: SnpReport, rule: Rule) -> Finding:
    """BadRAM, CVE-2024-21944. Version 2 firmware cannot say whether it checked."""
    done = report.platform_bit(P_ALIAS_CHECK)
    if report.version < ALIAS_CHECK_SINCE and rule is Rule.REQUIRE:
        return Finding(
            check="snp-alias-check", result=Result.WARN, code="snp-alias-check-unknown", expected=rule, got="version 2"
        )
    return _judge(
        "snp-alias-check", "snp-alias-check", rule.allows(done), expected=rule, got="done" if done else "not done"
    )


def _tcb(facts: SnpFacts, policy: SnpPolicy) -> Iterator[Finding]:
    report, floors = facts.report, policy.floors.get(facts.product, TcbFloors())
    for name in ("reported", "committed", "launch"):
        got, floor = getattr(facts, name), getattr(floors, name)
        if floor is None:
            yield Finding(check=f"snp-{name}-tcb", result=Result.SKIPPED, code="snp-no-floor", got=str(got))
            continue
        low = got.below(floor)
        hint = f"too low: {', '.join(low)}"
        yield _judge(f"snp-{name}-tcb", f"snp-{name}-tcb-low", not low, expected=floor, got=got, hint=hint)
    settled = facts.current == facts.committed and report.current == report.committed
    yield _judge(
        "snp-committed",
        "snp-provisional-firmware",
        settled or policy.provisional_firmware,
        expected=f"{facts.committed} {report.committed}",
        got=f"{facts.current} {report.current}",
        hint="" if settled else "the host can roll this firmware back",
    )
    if policy.min_firmware is not None:
        lowest = min(report.current, report.committed)
        yield _judge(
            "snp-firmware", "snp-firmware-low", lowest >= policy.min_firmware, expected=policy.min_firmware, got=lowest
        )
    if policy.mitigations:
        for name, vector in (("launch", report.launch_mit_vector), ("current", report.current_mit_vector)):
            has = (vector or 0) & policy.mitigations == policy.mitigations
            yield _judge(
                f"snp-{name}-mitigations",
                "snp-mitigation",
                has,
                expected=hex(policy.mitigations),
                got="none" if vector is None else hex(vector),
            )


def _guest(facts: SnpFacts, policy: SnpPolicy) -> Iterator[Finding]:
    report = facts.report
    yield _judge("snp-vmpl", "snp-vmpl", report.vmpl in policy.vmpls, expected=sorted(policy.vmpls), got=report.vmpl)
    abi = (report.policy >> 8 & 0xFF, report.policy & 0xFF)
    yield _judge("snp-abi", "snp-abi-low", abi >= policy.min_abi, expected=policy.min_abi, got=abi)
    yield _judge(
        "snp-guest-svn",
        "snp-guest-svn-low",
        report.guest_svn >= policy.min_guest_svn,
        expected=policy.min_guest_svn,
        got=report.guest_svn,
    )
    for name, allowed, raw in (
        ("id-key", policy.id_keys, report.id_key_digest),
        ("author-key", policy.author_keys, report.author_key_digest if report.author_key_enabled else b""),
        ("family-id", policy.family_ids, report.family_id),
        ("image-id", policy.image_ids, report.image_id),
    ):
        if allowed is not None:
            got = raw.hex()
            yield _judge(f"snp-{name}", f"snp-{name}", got in allowed, expected=sorted(allowed), got=got or "none")
