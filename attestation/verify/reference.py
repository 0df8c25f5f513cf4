"""The reference documents of one device: which are acceptable, which fits best, and what is to be said about the rest.

gpu-attestation.md 10, steps 8 to 10. A document that is refused never stops the verification: it is a finding, and
only a remark where another document of the same id is good.
"""

import hashlib
from collections.abc import Sequence
from itertools import pairwise

from attestation.errors import Malformed, Untrusted
from attestation.findings import Finding, Result, failed, passed
from attestation.formats.nv_report import GpuFacts, SwitchFacts
from attestation.formats.spdm import SpdmReport
from attestation.values import JsonObject
from attestation.verify.compare import (
    Comparison,
    compare_measurements,
    explain_mismatches,
    find_nearest,
)
from attestation.verify.device_claims import chain_claims
from attestation.verify.nv_collateral import MAX_COMPARED, Collateral, Compared
from attestation.verify.nv_content import Content
from attestation.verify.nv_policy import remark
from attestation.verify.rim import MAX_DOCUMENTS, RimNeed, VerifiedRim, require_fit, require_signer_time, verify_rim

MAX_NEIGHBOURS = 64  # documents looked at to explain a mismatch; 24 VBIOS documents are public


def compare_content(parsed: SpdmReport, content: Content, collateral: Collateral, subject: str) -> Compared:
    """Every document that a device calls for, compared with what it measured: once for each content and collateral.

    `parsed` says what `content` says, which holds no nonce and no signature.
    """
    known = collateral.compared.get(id(content))
    if known is not None and known.content is content:
        return known
    signers, findings, comparisons = Signers(collateral), list[Finding](), list[Comparison]()
    for need in content.needs:
        comparison, reported = compare_slot(need, content.needs, parsed, content.facts, collateral, signers, subject)
        findings += reported
        if comparison is not None:
            comparisons.append(comparison)
    compared = Compared(
        content=content,
        comparisons=tuple(comparisons),
        findings=tuple(findings),
        signers={c.need.slot: signers.claims(c.rim) for c in comparisons},
    )
    if len(collateral.compared) < MAX_COMPARED:
        collateral.compared[id(content)] = compared
    return compared


def compare_slot(
    need: RimNeed,
    needs: Sequence[RimNeed],
    parsed: SpdmReport,
    facts: GpuFacts | SwitchFacts,
    collateral: Collateral,
    signers: "Signers",
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
    known_versions = frozenset(n.version.upper() for n in needs)
    for document in documents[:MAX_DOCUMENTS]:
        try:
            rim = _accept_rim(document, need, known_versions, collateral)
        except (Malformed, Untrusted) as exc:
            refused.append(
                failed(check, exc.code, expected=exc.expected or need.rim_id, got=exc.got or exc.what, hint=str(exc),
                       subject=f"{subject} {need.rim_id} sha256:{hashlib.sha256(document).hexdigest()[:16]}")
            )  # fmt: skip
            continue
        acceptable, judged = signers.judge(rim)
        if not acceptable:
            said = [f for f in judged if f.result is Result.FAIL]  # empty when another document's signer said it
            refused += said or [failed(check, "rim-signer-revocation", expected="accepted signers", got=rim.sha256)]
            continue
        reported += judged
        accepted.append(compare_measurements(parsed.measurements, rim, need, nvdec0_enabled=nvdec0))
    if not accepted:
        return None, refused
    best = min(accepted, key=lambda comparison: (len(comparison.mismatches), -comparison.compared))
    # Where one document is good, the others under its id are only worth a remark.
    findings = [remark(f) for f in refused] + reported
    label = f"{best.compared - len(best.mismatches)} of {best.compared} measurements"
    named = f"{subject} {need.rim_id} sha256:{best.rim.sha256[:16]}"
    if best.matches:
        return best, [*findings, passed(check, label, expected="all match", subject=named)]
    near = find_nearest(parsed.measurements, _neighbours(collateral, best.rim), need, nvdec0_enabled=nvdec0)
    summary = failed(
        check, "measurements-differ", expected="all match", got=label, subject=named,
        hint=f"differs at index {', '.join(str(m.index) for m in best.mismatches)}",
    )  # fmt: skip
    return best, [*findings, summary, *explain_mismatches(best, near, subject=subject)]


def _accept_rim(document: bytes, need: RimNeed, known_versions: frozenset[str], collateral: Collateral) -> VerifiedRim:
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
    require_fit(rim, need, known_versions=known_versions)
    return rim


class Signers:
    """Revocation of reference-value signers within one verification: shared certificates are reported once."""

    __slots__ = ("_collateral", "_reported")

    def __init__(self, collateral: Collateral) -> None:
        self._collateral = collateral
        self._reported: set[bytes] = set()

    def judge(self, rim: VerifiedRim) -> tuple[bool, list[Finding]]:
        """Whether policy accepts every signer of `rim`, and the findings that were not given before."""
        new, acceptable = [], True
        for subject, issuer in pairwise(rim.path.certificates):
            _, finding = self._collateral.judge_certificate(subject, issuer, "rim")
            acceptable = acceptable and finding.result is not Result.FAIL
            if subject.tbs not in self._reported:
                self._reported.add(subject.tbs)
                new.append(finding)
        return acceptable, new

    def claims(self, rim: VerifiedRim) -> JsonObject:
        """What the claims say about them; the devices of one set share documents."""
        known = self._collateral.signer_claims.get(rim.sha256)
        if known is None:
            judge, path = self._collateral.judge_certificate, rim.path
            statuses = [judge(subject, issuer, "rim")[0] for subject, issuer in pairwise(path.certificates)]
            known = chain_claims(path, statuses)
            self._collateral.signer_claims[rim.sha256] = known
        return known


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
