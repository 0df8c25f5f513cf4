"""What follows from a device's report apart from its nonces, its signature and the time.

A device that attests again says the very same until its driver, firmware or mode changes, so this is worth remembering
once the signature held. Nothing that depends on the clock is in it: validity, revocation and the signers of reference
documents are judged on every use.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from attestation.errors import Untrusted
from attestation.findings import Finding, Result, passed
from attestation.formats.nv_report import GpuFacts, SwitchFacts
from attestation.formats.spdm import SpdmReport
from attestation.values import JsonObject
from attestation.verify.chain import VerifiedPath
from attestation.verify.compare import Comparison, judge_conflicts
from attestation.verify.device_claims import content_claims, document_claims
from attestation.verify.identity import DeviceCertificate, FwidMatch, match_fwid
from attestation.verify.nv_policy import NvPolicy, Unchecked, judge, remark, version_key
from attestation.verify.rim import RimNeed, gpu_needs, switch_needs
from attestation.verify.roots import NvTrust

_MAX_FITS = 16  # sets of documents that one device is compared with: stores change rarely
_FWID_SINCE = 550  # major driver version from which every GPU reports its FWID (2.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Facts, the documents that they call for, and what `policy` says to them; `report` is the one that said it first.
    Another policy or trust judges anew.

    `proven` are the findings up to the signature, `judged` those of the policy, `claims` what they add up to.
    """

    report: SpdmReport
    policy: NvPolicy
    trust: NvTrust
    facts: GpuFacts | SwitchFacts
    fwid: FwidMatch
    needs: tuple[RimNeed, ...]
    proven: tuple[Finding, ...]
    judged: tuple[Finding, ...]
    claims: JsonObject
    fits: dict[tuple[str, ...], "Fit"] = field(default_factory=dict, compare=False, repr=False)

    def fit(self, comparisons: Sequence[Comparison], subject: str) -> "Fit":
        """What follows from these comparisons, which are the same whenever the documents are."""
        key = tuple([comparison.rim.sha256 for comparison in comparisons])
        known = self.fits.get(key)
        if known is None:
            claims = document_claims(self.needs, comparisons, is_switch=isinstance(self.facts, SwitchFacts))
            known = Fit(conflicts=tuple(judge_conflicts(comparisons, subject)), claims={**self.claims, **claims})
            if len(self.fits) < _MAX_FITS:
                self.fits[key] = known
        return known


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Claims of content and documents together, and whether two documents claim one index."""

    conflicts: tuple[Finding, ...]
    claims: JsonObject


def judge_content(
    report: SpdmReport,
    facts: GpuFacts | SwitchFacts,
    fwid: FwidMatch,
    *,
    path: VerifiedPath,
    certificate: DeviceCertificate,
    trust: NvTrust,
    policy: NvPolicy,
) -> Content:
    """Of a report whose chain, firmware id and signature held. Raises Untrusted where it names no document."""
    subject = str(certificate.identity)
    return Content(
        report=report,
        policy=policy,
        trust=trust,
        facts=facts,
        fwid=fwid,
        needs=switch_needs(facts) if isinstance(facts, SwitchFacts) else gpu_needs(certificate, facts),
        proven=(
            _structure(report),
            _root(trust, path, subject),
            passed(
                "identity",
                f"{certificate.arch} {certificate.chip} chip id {certificate.identity.chip_id}",
                expected="named by the certificate",
                subject=subject,
            ),
            passed("report-signature", "ECDSA P-384 over the signed bytes", subject=subject),
            _judge_fwid(fwid, facts, policy, subject),
        ),
        judged=tuple(_judge_facts(certificate, facts, policy, subject)),
        claims=content_claims(certificate, facts, fwid),
    )


def require_fwid(certificate: DeviceCertificate, facts: GpuFacts | SwitchFacts, policy: NvPolicy) -> FwidMatch:
    """A wrong firmware id is false evidence; a missing one is a downgrade where the driver always reports it.

    Raises Untrusted.
    """
    fwid = match_fwid(certificate.fwid, facts.fwid if isinstance(facts, GpuFacts) else None)
    if fwid is FwidMatch.MISMATCH and isinstance(facts, GpuFacts) and facts.fwid is not None:
        raise Untrusted(
            "fwid-mismatch",
            "report and certificate are of different firmware",
            where=str(certificate.identity),
            expected=certificate.fwid.hex(),
            got=facts.fwid.hex(),
        )
    if (
        fwid is FwidMatch.ABSENT
        and isinstance(facts, GpuFacts)
        and version_key(facts.driver)[0] >= _FWID_SINCE
        and not isinstance(policy.fwid, Unchecked)
    ):
        raise Untrusted(
            "fwid-absent",
            f"drivers of {_FWID_SINCE} and later report a firmware id",
            where=str(certificate.identity),
            expected=certificate.fwid.hex(),
            got="none",
        )
    return fwid


def _structure(report: SpdmReport) -> Finding:
    blocks = f"{len(report.measurements)} measurements, {len(report.opaque)} opaque elements"
    if not report.trailing_zeros:
        return passed("report-structure", blocks)
    return Finding(
        check="report-structure", result=Result.WARN, code="trailing-zeros", expected="nothing after the signature",
        got=f"{blocks}, {report.trailing_zeros} trailing zero bytes", hint="the collector reports a wrong size",
    )  # fmt: skip


def _root(trust: NvTrust, path: VerifiedPath, subject: str) -> Finding:
    """Every use has checked that `now` is between the two dates."""
    chain = (
        f"{len(path.certificates)} certificates to {path.certificates[-1].name}, "
        f"valid from {path.not_before.isoformat()} to {path.not_after.isoformat()}"
    )
    if trust.simulated:
        return Finding(
            check="device-chain", result=Result.WARN, code="simulated-roots", expected="NVIDIA's roots", got=chain,
            hint="signed by a test PKI: proves nothing about hardware", subject=subject,
        )  # fmt: skip
    return passed("device-chain", chain, subject=subject)


def _judge_fwid(fwid: FwidMatch, facts: GpuFacts | SwitchFacts, policy: NvPolicy, subject: str) -> Finding:
    """Switch reports never carry a firmware id; for GPUs the policy decides about an absent one (2.2)."""
    if isinstance(facts, SwitchFacts):
        return Finding(
            check="fwid", result=Result.SKIPPED, expected="not reported by NVSwitches", got=fwid, subject=subject
        )
    return judge("fwid", policy.fwid, fwid, subject=subject)


def _judge_facts(
    certificate: DeviceCertificate, facts: GpuFacts | SwitchFacts, policy: NvPolicy, subject: str
) -> list[Finding]:
    findings = [judge("chip-id", policy.chip_ids, certificate.identity.chip_id, subject=subject)]
    if isinstance(facts, GpuFacts):
        findings.append(judge("driver-version", policy.driver, facts.driver, subject=subject))
        findings.append(judge("vbios-version", policy.vbios, facts.vbios, subject=subject))
    if facts.unknown:
        types = tuple(sorted(facts.unknown))
        finding = judge("opaque-unknown", policy.unknown_opaque, types, subject=subject)
        findings.append(remark(finding) if finding.result is Result.SKIPPED else finding)
    return findings
