"""SEV-SNP verification in the order of tee.md 1.10: what cannot be believed raises, what can be believed is judged."""

from collections.abc import Hashable, Sequence
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.errors import Malformed, Unavailable, Untrusted, after_signature
from attestation.findings import Finding, Result, passed
from attestation.formats.snp_evidence import CertKind, SnpEvidence
from attestation.formats.snp_report import SnpReport, parse_snp_report
from attestation.formats.snp_tcb import Product, parse_tcb, product_of
from attestation.values import JsonObject, JsonValue, Tee
from attestation.verify import snp_policy as bits
from attestation.verify.expected import CpuExpected, verify_init_data, verify_report_data
from attestation.verify.snp_certs import AmdCache, VerifiedVek, verify_vek
from attestation.verify.snp_policy import JudgedLaunch, SnpFacts, SnpPolicy, check_snp_policy
from attestation.verify.snp_trust import AmdCollateral, AmdTrust, LeafKind
from attestation.verify.verified import VerifiedCpu

ECDSA_P384_SHA384 = 1
MAX_VMPL = 3  # reports that the host asked for itself carry a value out of range
_SIGNING_KEYS = {0: LeafKind.VCEK, 1: LeafKind.VLEK}
_TABLE_KINDS = {LeafKind.VCEK: CertKind.VCEK, LeafKind.VLEK: CertKind.VLEK}
_CURVE_BITS = 384
_SHA384 = ec.ECDSA(hashes.SHA384())


def verify_snp(
    evidence: SnpEvidence,
    *,
    trust: AmdTrust,
    collateral: AmdCollateral,
    policy: SnpPolicy,
    expected: CpuExpected,
    now: datetime,
    cache: AmdCache | None = None,
) -> VerifiedCpu:
    """A genuine AMD chip signed this report, at this TCB, over the expected data.

    Raises Malformed, Untrusted, or Unavailable when certificates are missing. What policy refuses is a failed finding.
    """
    # 1. Structure: exact length, known version, the one algorithm.
    report = parse_snp_report(evidence.report)
    if report.signature_algo != ECDSA_P384_SHA384:
        raise Untrusted(
            "snp-signature-algorithm",
            "unknown algorithm",
            where="snp.signature_algo",
            expected=1,
            got=report.signature_algo,
        )

    # 2. Which key signed: VCEK or VLEK; "none" means that nobody did.
    kind = _SIGNING_KEYS.get(report.signing_key)
    if kind is None:
        raise Untrusted(
            "snp-signing-key",
            "report is not signed by a chip or provider key",
            where="snp.key_info",
            expected=sorted(_SIGNING_KEYS),
            got=report.signing_key,
        )

    # 3. - 5. Chain, signature, and agreement of leaf and report, for the first candidate leaf that fits. A launch that
    # was judged before agreed with this leaf then: chain, dates, revocation and signature are checked in any case.
    cache = AmdCache() if cache is None else cache
    vek, launch = _verify_endorsed(report, kind, evidence, trust, collateral, policy, now, cache)
    with after_signature():
        if isinstance(launch, SnpFacts):
            # 6. Policy.
            launch = _judge(launch, vek, trust, policy)
            cache.launches.put(_launch_key(report, vek, trust, policy), launch)

        # 7. Binding.  8. Claims.
        return VerifiedCpu(
            tee=Tee.SNP,
            product=launch.product,
            chip_id=launch.chip_id,
            report_data=report.report_data,
            init_data=report.host_data,
            measurement=report.measurement.hex(),
            claims={
                **launch.claims,
                "report_data": report.report_data.hex(),
                "report_id": report.report_id.hex(),
            },
            findings=(
                *launch.proven,
                _crl_finding(vek),
                *launch.judged,
                verify_report_data(report.report_data, expected),
                verify_init_data(report.host_data, expected),
            ),
        )


def _launch_key(report: SnpReport, vek: VerifiedVek, trust: AmdTrust, policy: SnpPolicy) -> Hashable:
    return policy, trust.simulated, vek.leaf, report.launch


def _judge(facts: SnpFacts, vek: VerifiedVek, trust: AmdTrust, policy: SnpPolicy) -> JudgedLaunch:
    """Reserved fields of a genuine report, and everything that the policy asks. Raises Untrusted."""
    report = facts.report
    reserved = report.reserved_nonzero()
    if reserved:
        raise Untrusted("snp-reserved", "reserved fields are not zero", where="snp", expected="zeros", got=reserved)
    if report.vmpl > MAX_VMPL:
        raise Untrusted(
            "snp-vmpl-range", "the host asked for this report", where="snp.vmpl", expected="0..3", got=report.vmpl
        )
    return JudgedLaunch(
        product=facts.product,
        chip_id=facts.chip_id[: facts.product.chip_id_bytes].hex() if any(facts.chip_id) else "",
        proven=(passed("snp-signature", f"{vek.kind} of {vek.product}"), _root_finding(vek, trust)),
        judged=check_snp_policy(facts, policy),
        claims=_claims(facts),
    )


def _verify_endorsed(
    report: SnpReport,
    kind: LeafKind,
    evidence: SnpEvidence,
    trust: AmdTrust,
    collateral: AmdCollateral,
    policy: SnpPolicy,
    now: datetime,
    cache: AmdCache,
) -> tuple[VerifiedVek, JudgedLaunch | SnpFacts]:
    """The host's table may hold a stale leaf after a firmware update, so the store is asked as well.

    Facts of a launch that agreed with this leaf and was judged before are not worked out again.
    """
    known = None if report.cpuid is None else product_of(*report.cpuid[:2])
    if report.cpuid is not None and known is None:
        raise Untrusted("snp-product-unknown", "unknown processor generation", where="snp.cpuid", got=report.cpuid)
    given = evidence.certificates.get(_TABLE_KINDS[kind])
    authorities = [evidence.certificates[k] for k in (CertKind.ASK, CertKind.ARK) if k in evidence.certificates]
    failure: Malformed | Untrusted | None = None
    for leaf in _candidates(given, report, known, collateral):
        try:
            vek = verify_vek(
                leaf, kind, candidates=authorities, collateral=collateral, trust=trust, rules=policy.chain, now=now,
                cache=cache,
            )  # fmt: skip
            _verify_signature(report, vek)
            launch = cache.launches.get(_launch_key(report, vek, trust, policy))
            with after_signature():
                return vek, launch or _agree(report, vek, known)
        except (Malformed, Untrusted) as exc:
            failure = exc if failure is None or exc.signed else failure
    if failure is not None:
        raise failure
    raise Unavailable(
        "snp-leaf-missing",
        f"no {kind.upper()} for this chip and TCB",
        where="snp",
        expected=f"a certificate for {report.chip_id.hex()} at {report.reported_tcb.hex()}",
    )


def _candidates(
    given: bytes | None, report: SnpReport, product: Product | None, collateral: AmdCollateral
) -> Sequence[bytes]:
    stored = collateral.veks(chip_id=report.chip_id, reported_tcb=report.reported_tcb, product=product)
    return list(stored) if given is None else [given, *stored]


def _verify_signature(report: SnpReport, vek: VerifiedVek) -> None:
    """ECDSA P-384 over the received bytes. R and S have 72 bytes each, of which the upper 24 are zero."""
    for name, value in (("r", report.signature_r), ("s", report.signature_s)):
        if not 0 < value < 1 << _CURVE_BITS:
            raise Untrusted(
                "snp-signature-encoding",
                "not a P-384 scalar",
                where=f"snp.signature.{name}",
                expected="0 < value < 2^384",
                got=f"{value.bit_length()} bits",
            )
    try:
        vek.public_key.verify(encode_dss_signature(report.signature_r, report.signature_s), report.signed, _SHA384)
    except InvalidSignature as exc:
        raise Untrusted(
            "snp-signature-invalid",
            "report signature is invalid",
            where="snp.signature",
            expected=f"by this {vek.kind} of {vek.product}",
        ) from exc


def _agree(report: SnpReport, vek: VerifiedVek, known: Product | None) -> SnpFacts:
    """Report and leaf speak of one chip at one TCB. Version 2 reports take their generation from the chain."""
    if known is not None and known is not vek.product:
        raise Untrusted(
            "snp-product-mismatch",
            "CPUID and chain name different products",
            where="snp.cpuid",
            expected=vek.product,
            got=known,
        )
    reported, current, committed, launch = (
        parse_tcb(getattr(report, f"{name}_tcb"), vek.product, f"{name}_tcb")
        for name in ("reported", "current", "committed", "launch")
    )
    if reported != vek.tcb:
        raise Untrusted(
            "snp-tcb-mismatch", "leaf is for another TCB", where="snp.reported_tcb", expected=vek.tcb, got=reported
        )
    for name, tcb in (("reported_tcb", reported), ("committed_tcb", committed)):
        above = current.below(tcb)
        if above:
            raise Untrusted(
                "snp-tcb-order", "TCB is above the current one", where=f"snp.{name}", expected=f"<= {current}", got=tcb
            )
    if vek.chip_id is not None and any(report.chip_id) and report.chip_id != vek.chip_id:
        raise Untrusted(
            "snp-chip-id-mismatch",
            "leaf is for another chip",
            where="snp.chip_id",
            expected=vek.chip_id.hex(),
            got=report.chip_id.hex(),
        )
    return SnpFacts(
        report=report,
        product=vek.product,
        kind=vek.kind,
        chip_id=vek.chip_id or report.chip_id,
        csp_id=vek.csp_id,
        reported=reported,
        current=current,
        committed=committed,
        launch=launch,
    )


def _root_finding(vek: VerifiedVek, trust: AmdTrust) -> Finding:
    if not trust.simulated:
        return passed("snp-chain", f"ARK-{vek.product}, leaf until {vek.not_after.isoformat()}")
    return Finding(
        check="snp-chain",
        result=Result.WARN,
        code="simulated-roots",
        expected="AMD's roots",
        got=f"ARK-{vek.product}",
        hint="signed by a test PKI: proves nothing about hardware",
    )


def _crl_finding(vek: VerifiedVek) -> Finding:
    if vek.crl_checked:
        return passed("snp-crl", "not revoked")
    return Finding(check="snp-crl", result=Result.SKIPPED, code="snp-crl-unchecked", got="no list")


def _claims(facts: SnpFacts) -> JsonObject:
    """Names and types of trustee's `snp` map, then ours (tee.md 6.4)."""
    report = facts.report
    claims: dict[str, JsonValue] = {
        "policy_abi_major": report.policy >> 8 & 0xFF,
        "policy_abi_minor": report.policy & 0xFF,
        "policy_smt_allowed": report.policy_bit(bits.SMT),
        "policy_migrate_ma": report.policy_bit(bits.MIGRATE_MA),
        "policy_debug_allowed": report.policy_bit(bits.DEBUG),
        "policy_single_socket": report.policy_bit(bits.SINGLE_SOCKET),
        "platform_tsme_enabled": report.platform_bit(bits.P_TSME),
        "platform_smt_enabled": report.platform_bit(bits.P_SMT),
        "measurement": report.measurement.hex(),
        "init_data": report.host_data.hex(),
        "chip_id": report.chip_id.hex(),
        "version": report.version,
        "vmpl": report.vmpl,
        "guest_svn": report.guest_svn,
        "product": facts.product,
        "signing_key": facts.kind,
        "csp_id": facts.csp_id,
        "current_firmware": str(report.current),
        "committed_firmware": str(report.committed),
        "policy_cxl": report.policy_bit(bits.CXL),
        "policy_page_swap_disabled": report.policy_bit(bits.PAGE_SWAP_DISABLED),
        "platform_alias_check_complete": report.platform_bit(bits.P_ALIAS_CHECK),
        "platform_ciphertext_hiding": report.platform_bit(bits.P_CIPHERTEXT_HIDING),
        "platform_rapl_disabled": report.platform_bit(bits.P_RAPL_DISABLED),
        "platform_ecc": report.platform_bit(bits.P_ECC),
        "platform_tio": report.platform_bit(bits.P_TIO),
        "platform_info_raw": report.platform_info,
        "family_id": report.family_id.hex(),
        "image_id": report.image_id.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "launch_mit_vector": report.launch_mit_vector,
        "current_mit_vector": report.current_mit_vector,
    }
    for name in ("reported", "current", "committed", "launch"):
        for part, number in getattr(facts, name).components().items():
            claims[f"{name}_tcb_{part}"] = number
    return claims
