"""Verification of one NVIDIA GPU or NVSwitch, offline, in the normative order of gpu-attestation.md section 10.

Two levels, so that nobody mistakes one for the other. *Authentic*: structure, chain to the pinned root, identity,
firmware id, signature, and the nonce where one was given. *Trusted*: authentic, and fresh, and every reference
document that the device requires is there and verified, and every active measurement matches, and policy holds.
What makes evidence false raises; what can be believed but falls short is a finding.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from attestation.errors import Malformed, Untrusted
from attestation.findings import Finding, Result, failed, passed
from attestation.formats.certs import parse_bundle
from attestation.formats.nv_report import FEATURE_PPCIE, GpuFacts, SwitchFacts, parse_gpu_facts, parse_switch_facts
from attestation.formats.spdm import SpdmReport, parse_report
from attestation.values import Architecture, DeviceKind, Digest, GpuMode, Level, Nonce
from attestation.verify.cache import MAX_CHAINS, MAX_RIMS, BoundedCache
from attestation.verify.chain import ChainCache, PathCertificate, VerifiedPath, require_valid, verify_path
from attestation.verify.compare import Comparison, compare_measurements, explain_mismatches, find_nearest
from attestation.verify.device_claims import device_claims
from attestation.verify.identity import DeviceCertificate, FwidMatch, match_fwid, read_device_certificate
from attestation.verify.nv_policy import NvPolicy, Unchecked, judge, version_key
from attestation.verify.revocation import (
    Revocation,
    RevocationCache,
    RevocationRule,
    RevocationSource,
    check_revocation,
    judge_revocation,
)
from attestation.verify.rim import (
    MAX_DOCUMENTS,
    RimCache,
    RimNeed,
    RimSource,
    VerifiedRim,
    gpu_needs,
    require_fit,
    require_signer_time,
    switch_needs,
    verify_rim,
)
from attestation.verify.roots import NvTrust
from attestation.verify.signature import verify_raw_p384
from attestation.verify.verified import VerifiedDevice

_MAX_JUDGED = 1024  # certificates of 64 devices and their documents fit
MAX_NEIGHBOURS = 64  # documents looked at to explain a mismatch; 24 VBIOS documents are public
_FWID_SINCE = 550  # major driver version from which every GPU reports its FWID (2.2)


@dataclass(frozen=True, slots=True)
class NvCache:
    """Verified issuers, documents and revocation answers, owned by the caller; one per process is enough."""

    chains: ChainCache = field(default_factory=lambda: BoundedCache(MAX_CHAINS))
    rims: RimCache = field(default_factory=lambda: BoundedCache(MAX_RIMS))
    revocation: RevocationCache = field(default_factory=RevocationCache)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProof:
    """A verified device with the signed facts that checks over a set of devices need (`topology`)."""

    device: VerifiedDevice
    certificate: DeviceCertificate
    facts: GpuFacts | SwitchFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Everything a verification may look at besides the evidence; all of it stored, none of it fetched."""

    trust: NvTrust
    rims: RimSource
    revocation: RevocationSource
    policy: NvPolicy
    now: datetime
    cache: NvCache | None = None
    neighbours: Sequence[bytes] = ()  # other known documents, only to explain mismatches
    # What was said about issuers at this `now`: the devices of one set share them.
    _issuers: dict[tuple[bytes, RevocationRule], tuple[Revocation, Finding]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def judge_certificate(
        self, subject: PathCertificate, issuer: PathCertificate, rule: RevocationRule
    ) -> tuple[Revocation, Finding]:
        """Revocation of one certificate from stored answers, and what `rule` says to it."""
        key = (subject.tbs, rule)
        if known := self._issuers.get(key):
            return known
        status = check_revocation(
            subject.certificate,
            issuer.certificate,
            self.revocation,
            rule=rule,
            now=self.now,
            cache=self.cache.revocation if self.cache is not None else None,
        )
        judged = status, judge_revocation(status, rule, subject=subject.name)
        if len(self._issuers) < _MAX_JUDGED:
            self._issuers[key] = judged
        return judged


def verify_device(
    report: bytes,
    chain: bytes,
    *,
    trust: NvTrust,
    nonce: Nonce | None,
    rims: RimSource,
    revocation: RevocationSource,
    policy: NvPolicy,
    now: datetime,
    arch: Architecture | None = None,
    cache: NvCache | None = None,
) -> VerifiedDevice:
    """Verify one device at `now`. `nonce` is the challenge, never taken from the evidence; None allows no freshness.

    `arch` is what an envelope claimed. Raises Malformed and Untrusted; anything else is in the result's findings.
    """
    collateral = Collateral(trust=trust, rims=rims, revocation=revocation, policy=policy, now=now, cache=cache)
    return prove_device(report, chain, collateral, nonce=nonce, arch=arch).device


def prove_device(
    report: bytes, chain: bytes, collateral: Collateral, *, nonce: Nonce | None, arch: Architecture | None = None
) -> DeviceProof:
    """As `verify_device`, keeping the facts that `topology` needs."""
    trust, policy, now, cache = collateral.trust, collateral.policy, collateral.now, collateral.cache

    # 1. Size, structure, exact consumption.
    parsed = parse_report(report, max_trailing_zeros=policy.trailing_zeros)
    findings = [_trailing(parsed)]

    # 2. Chain to the pinned root at `now`.
    path = verify_path(
        parse_bundle(chain),
        anchors=trust.device_roots,
        where="device chain",
        cache=cache.chains if cache is not None else None,
    )
    require_valid(path, now, where="device chain")

    # 3. Architecture and identity from the leaf, never from the envelope.
    certificate = read_device_certificate(path)
    subject = str(certificate.identity)
    if arch is not None and arch is not certificate.arch:
        raise Untrusted(
            "arch-mismatch",
            "the envelope claims another architecture than the certificate",
            where=subject,
            expected=certificate.arch,
            got=arch,
        )
    is_switch = certificate.arch is Architecture.LS10
    facts = parse_switch_facts(parsed) if is_switch else parse_gpu_facts(parsed)
    findings += _identity(trust, path, certificate, now)

    # 4. Firmware id: certificate against report.
    fwid = _require_fwid(certificate, facts, policy)

    # 5. Signature of the report with the leaf's key.
    digest = hashlib.sha384(parsed.signed).digest()
    verify_raw_p384(path.leaf.key, parsed.signature, digest, code="report-signature", where=subject)
    findings.append(passed("report-signature", "ECDSA P-384 over the signed bytes", subject=subject))
    findings.append(judge_fwid(fwid, facts, policy, subject))

    # 6. Freshness.
    findings.append(_require_nonce(nonce, parsed, subject))

    # Revocation of the device chain: stored statements only.
    revocations = _device_revocations(path, collateral)
    findings += [finding for _, finding in revocations]

    # 7. Only now document ids are built from what the report says.
    needs = switch_needs(facts) if isinstance(facts, SwitchFacts) else gpu_needs(certificate, facts)

    # 8 to 10. Documents, fit, conflicts, comparison.
    comparisons: list[Comparison] = []
    signers = _Signers(collateral)
    for need in needs:
        comparison, reported = _compare_slot(need, needs, parsed, facts, collateral, signers, subject)
        findings += reported
        if comparison is not None:
            comparisons.append(comparison)
    findings += _conflicts(comparisons, subject)

    # 12. Policy over signed facts; 11 (mode here, the set of devices in `topology`).
    findings += _policy(certificate, facts, policy, subject)
    complete = len(comparisons) == len(needs) and all(c.matches for c in comparisons)
    failing = any(f.result is Result.FAIL for f in findings)
    level = Level.TRUSTED if complete and nonce is not None and not failing else Level.AUTHENTIC
    device = VerifiedDevice(
        kind=DeviceKind.NVSWITCH if is_switch else DeviceKind.GPU,
        arch=certificate.arch,
        identity=certificate.identity,
        level=level,
        mode=_mode(facts, level),
        nonce=nonce if nonce is not None else Nonce(parsed.nonce),
        driver_version="" if isinstance(facts, SwitchFacts) else facts.driver,
        vbios_version=facts.bios if isinstance(facts, SwitchFacts) else facts.vbios,
        signed_digest=Digest("sha384", digest),
        claims=device_claims(
            certificate, facts, parsed, path=path, revocations=[status for status, _ in revocations], fwid=fwid,
            comparisons=comparisons, needs=needs, nonce_given=nonce is not None, level=level,
        ),
        findings=tuple(findings),
    )  # fmt: skip
    return DeviceProof(device=device, certificate=certificate, facts=facts)


def _trailing(parsed: SpdmReport) -> Finding:
    blocks = f"{len(parsed.measurements)} measurements, {len(parsed.opaque)} opaque elements"
    if not parsed.trailing_zeros:
        return passed("report-structure", blocks)
    return Finding(
        check="report-structure", result=Result.WARN, code="trailing-zeros", expected="nothing after the signature",
        got=f"{blocks}, {parsed.trailing_zeros} trailing zero bytes", hint="the collector reports a wrong size",
    )  # fmt: skip


def _identity(
    trust: NvTrust, path: VerifiedPath, certificate: DeviceCertificate, now: datetime
) -> tuple[Finding, Finding]:
    subject = str(certificate.identity)
    chain = f"{len(path.certificates)} certificates to {path.certificates[-1].name}, valid at {now.isoformat()}"
    if trust.simulated:
        root = Finding(
            check="device-chain", result=Result.WARN, code="simulated-roots", expected="NVIDIA's roots", got=chain,
            hint="signed by a test PKI: proves nothing about hardware", subject=subject,
        )  # fmt: skip
    else:
        root = passed("device-chain", chain, subject=subject)
    named = f"{certificate.arch} {certificate.chip} chip id {certificate.identity.chip_id}"
    return root, passed("identity", named, expected="named by the certificate", subject=subject)


def _require_fwid(certificate: DeviceCertificate, facts: GpuFacts | SwitchFacts, policy: NvPolicy) -> FwidMatch:
    """A wrong firmware id is false evidence; a missing one is a downgrade where the driver always reports it."""
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


def judge_fwid(fwid: FwidMatch, facts: GpuFacts | SwitchFacts, policy: NvPolicy, subject: str) -> Finding:
    """Switch reports never carry a firmware id; for GPUs the policy decides about an absent one (2.2)."""
    if isinstance(facts, SwitchFacts):
        return Finding(
            check="fwid", result=Result.SKIPPED, expected="not reported by NVSwitches", got=fwid, subject=subject
        )
    return judge("fwid", policy.fwid, fwid, subject=subject)


def _require_nonce(nonce: Nonce | None, parsed: SpdmReport, subject: str) -> Finding:
    if nonce is None:
        return Finding(
            check="nonce", result=Result.SKIPPED, code="nonce-not-given", expected="a nonce that you chose",
            got=parsed.nonce.hex(), hint="without your own nonce this may be an old report: authentic at most",
            subject=subject,
        )  # fmt: skip
    if not nonce.matches(parsed.nonce):
        raise Untrusted(
            "nonce-mismatch",
            "the report answers another challenge",
            where=subject,
            expected=nonce.hex(),
            got=parsed.nonce.hex(),
        )
    return passed("nonce", nonce.hex(), subject=subject)


def _device_revocations(path: VerifiedPath, collateral: Collateral) -> list[tuple[Revocation, Finding]]:
    """Every certificate below the root, under the rule of its role."""
    rules = collateral.policy.revocation
    return [
        collateral.judge_certificate(subject, issuer, rules.device_ca if position else rules.device_leaf)
        for position, (subject, issuer) in enumerate(pairwise(path.certificates))
    ]


def _compare_slot(
    need: RimNeed,
    needs: Sequence[RimNeed],
    parsed: SpdmReport,
    facts: GpuFacts | SwitchFacts,
    collateral: Collateral,
    signers: "_Signers",
    subject: str,
) -> tuple[Comparison | None, list[Finding]]:
    """The best accepted document of one slot, and what is to be said about it and about those that were refused."""
    nvdec0 = isinstance(facts, GpuFacts) and facts.nvdec0_enabled
    check = f"{need.slot}-rim"
    documents = collateral.rims.rims(need.rim_id)
    if not documents:
        return None, [
            Finding(
                check=check,
                result=Result.SKIPPED,
                code="rim-missing",
                expected=need.rim_id,
                got="no document",
                hint="without this reference document the device is authentic at most",
                subject=subject,
            )
        ]
    accepted: list[Comparison] = []
    refused: list[Finding] = []
    reported: list[Finding] = []
    other_versions = frozenset(n.version.upper() for n in needs if n is not need)
    for document in documents[:MAX_DOCUMENTS]:
        try:
            rim = _accept_rim(document, need, other_versions, collateral)
        except (Malformed, Untrusted) as exc:
            refused.append(
                failed(check, exc.code, expected=exc.expected or need.rim_id, got=exc.got or exc.what, hint=str(exc),
                       subject=f"{subject} {need.rim_id} sha256:{hashlib.sha256(document).hexdigest()[:16]}")
            )  # fmt: skip
            continue
        acceptable, judged = signers.judge(rim)
        if not acceptable:
            refused += judged or [failed(check, "rim-signer-revocation", expected="accepted signers", got=rim.sha256)]
            continue
        reported += judged
        accepted.append(compare_measurements(parsed.measurements, rim, need, nvdec0_enabled=nvdec0))
    if not accepted:
        return None, refused
    best = min(accepted, key=lambda comparison: (len(comparison.mismatches), -comparison.compared))
    # Where one document is good, the others under its id are only worth a remark.
    findings = [_remark(f) for f in refused] + reported
    label = f"{best.compared - len(best.mismatches)} of {best.compared} measurements"
    named = f"{subject} {need.rim_id} sha256:{best.rim.sha256[:16]}"
    if best.matches:
        return best, [*findings, passed(check, label, expected="all match", subject=named)]
    near = find_nearest(
        parsed.measurements, _neighbours(collateral, best.rim), need, nvdec0_enabled=nvdec0
    )  # fmt: skip
    summary = failed(
        check, "measurements-differ", expected="all match", got=label, subject=named,
        hint=f"indices {', '.join(str(m.index) for m in best.mismatches)} differ",
    )  # fmt: skip
    return best, [*findings, summary, *explain_mismatches(best, near, subject=subject)]


def _accept_rim(document: bytes, need: RimNeed, other_versions: frozenset[str], collateral: Collateral) -> VerifiedRim:
    """10 steps 8 and 9 for one document, all but revocation. Raises Malformed and Untrusted."""
    policy, cache = collateral.policy, collateral.cache
    rim = verify_rim(
        document,
        anchors=collateral.trust.rim_roots,
        chains=cache.chains if cache is not None else None,
        cache=cache.rims if cache is not None else None,
    )
    pins = policy.rim_pins.get(need.rim_id)
    if rim.sha256 in policy.retired_rims or (pins is not None and rim.sha256 not in pins):
        raise Untrusted(
            "rim-retired" if rim.sha256 in policy.retired_rims else "rim-not-pinned",
            "policy names other documents for this id",
            where=need.rim_id,
            expected="|".join(sorted(pins or ())),
            got=rim.sha256,
        )
    require_signer_time(rim, policy.signer_expiry, collateral.now)
    require_fit(rim, need, other_versions=other_versions)
    return rim


class _Signers:
    """Revocation of reference-value signers within one verification: shared certificates are reported once."""

    __slots__ = ("_collateral", "_reported")

    def __init__(self, collateral: Collateral) -> None:
        self._collateral = collateral
        self._reported: set[bytes] = set()

    def judge(self, rim: VerifiedRim) -> tuple[bool, list[Finding]]:
        """Whether policy accepts every signer of `rim`, and the findings that were not given before."""
        rule, new, acceptable = self._collateral.policy.revocation.rim, [], True
        for subject, issuer in pairwise(rim.path.certificates):
            _, finding = self._collateral.judge_certificate(subject, issuer, rule)
            acceptable = acceptable and finding.result is not Result.FAIL
            if subject.tbs not in self._reported:
                self._reported.add(subject.tbs)
                new.append(finding)
        return acceptable, new


def _neighbours(collateral: Collateral, but: VerifiedRim) -> list[VerifiedRim]:
    """Other documents that verify, whoever signed them and whenever: they explain, they never decide."""
    known: list[VerifiedRim] = []
    for document in collateral.neighbours[:MAX_NEIGHBOURS]:
        try:
            rim = verify_rim(document, anchors=collateral.trust.rim_roots)
        except (Malformed, Untrusted):
            continue
        if rim.sha256 != but.sha256:
            known.append(rim)
    return known


def _remark(finding: Finding) -> Finding:
    return Finding(
        check=finding.check, result=Result.WARN, code=finding.code, expected=finding.expected, got=finding.got,
        hint=finding.hint, subject=finding.subject,
    )  # fmt: skip


def _conflicts(comparisons: Sequence[Comparison], subject: str) -> list[Finding]:
    """3.4 rule 2: an index belongs to one document."""
    if len(comparisons) < 2:
        return []
    shared = set.intersection(*(set(c.rim.content.golden) for c in comparisons))
    if shared:
        return [
            failed(
                "index-conflict",
                "rim-index-conflict",
                expected="no index in two documents",
                got=sorted(shared),
                subject=subject,
            )
        ]
    return [passed("index-conflict", "none", subject=subject)]


def _policy(
    certificate: DeviceCertificate, facts: GpuFacts | SwitchFacts, policy: NvPolicy, subject: str
) -> list[Finding]:
    findings = [judge("chip-id", policy.chip_ids, certificate.identity.chip_id, subject=subject)]
    if isinstance(facts, GpuFacts):
        findings.append(judge("driver-version", policy.driver, facts.driver, subject=subject))
        findings.append(judge("vbios-version", policy.vbios, facts.vbios, subject=subject))
    if facts.unknown:
        types = tuple(sorted(t.type for t in facts.unknown))
        finding = judge("opaque-unknown", policy.unknown_opaque, types, subject=subject)
        findings.append(_remark(finding) if finding.result is Result.SKIPPED else finding)
    return findings


def _mode(facts: GpuFacts | SwitchFacts, level: Level) -> GpuMode:
    """Signed facts only: TLV 21 and 36 for Protected PCIe; the reference documents (index 9) for everything else.

    A switch has no confidential mode of its own: `unknown`.
    """
    if isinstance(facts, SwitchFacts):
        return GpuMode.UNKNOWN
    if facts.protected_pcie and facts.feature in (None, FEATURE_PPCIE):
        return GpuMode.PPCIE
    return GpuMode.ON if level is Level.TRUSTED else GpuMode.UNKNOWN
