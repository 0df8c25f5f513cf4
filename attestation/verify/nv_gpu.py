"""Verification of one NVIDIA GPU or NVSwitch, offline, in the normative order of gpu-attestation.md section 10.

Two levels, so that nobody mistakes one for the other. *Authentic*: structure, chain to the pinned root, identity,
firmware id, signature, and the nonce where one was given. *Trusted*: authentic, and fresh, and every reference
document that the device requires is there and verified, and every active measurement matches, and policy holds.
What makes evidence false raises; what can be believed but falls short is a finding.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from attestation.errors import Untrusted
from attestation.findings import Finding, Result, passed
from attestation.formats.certs import parse_bundle
from attestation.formats.nv_report import FEATURE_PPCIE, GpuFacts, SwitchFacts, parse_gpu_facts, parse_switch_facts
from attestation.formats.spdm import SpdmReport, parse_report
from attestation.values import Architecture, DeviceKind, Digest, GpuMode, Level, Nonce
from attestation.verify.chain import VerifiedPath, require_valid, verify_path
from attestation.verify.compare import Comparison
from attestation.verify.device_claims import device_claims
from attestation.verify.identity import DeviceCertificate, FwidMatch, match_fwid, read_device_certificate
from attestation.verify.nv_collateral import Collateral, NvCache
from attestation.verify.nv_policy import NvPolicy, Unchecked, judge, version_key
from attestation.verify.reference import Signers, compare_slot, judge_conflicts, remark
from attestation.verify.revocation import Revocation, RevocationSource, RevocationStatus
from attestation.verify.rim import RimSource, gpu_needs, switch_needs
from attestation.verify.roots import NvTrust
from attestation.verify.signature import verify_raw_p384
from attestation.verify.verified import VerifiedDevice

__all__ = ["Collateral", "DeviceProof", "NvCache", "prove_device", "verify_device"]

_FWID_SINCE = 550  # major driver version from which every GPU reports its FWID (2.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProof:
    """A verified device with the signed facts that checks over a set of devices need (`topology`)."""

    device: VerifiedDevice
    certificate: DeviceCertificate
    facts: GpuFacts | SwitchFacts


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

    # 2. and 3. Chain to the pinned root at `now`; architecture and identity from its leaf, never from the envelope.
    path, certificate = _prove_chain(chain, trust, now, cache)
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
    findings.append(_judge_fwid(fwid, facts, policy, subject))

    # 6. Freshness.
    findings.append(_require_nonce(nonce, parsed, subject))

    # Revocation of the device chain: stored statements only. A revoked key proves nothing at any level.
    revocations = _require_unrevoked(path, collateral)
    findings += [finding for _, finding in revocations]

    # 7. Only now document ids are built from what the report says.
    needs = switch_needs(facts) if isinstance(facts, SwitchFacts) else gpu_needs(certificate, facts)

    # 8 to 10. Documents, fit, conflicts, comparison.
    comparisons: list[Comparison] = []
    signers = Signers(collateral)
    for need in needs:
        comparison, reported = compare_slot(need, needs, parsed, facts, collateral, signers, subject)
        findings += reported
        if comparison is not None:
            comparisons.append(comparison)
    findings += judge_conflicts(comparisons, subject)

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
            comparisons=comparisons, signers={c.need.slot: _signer_statuses(c, collateral) for c in comparisons},
            needs=needs, nonce_given=nonce is not None, level=level,
        ),
        findings=tuple(findings),
    )  # fmt: skip
    return DeviceProof(device=device, certificate=certificate, facts=facts)


def _prove_chain(
    chain: bytes, trust: NvTrust, now: datetime, cache: NvCache | None
) -> tuple[VerifiedPath, DeviceCertificate]:
    """A chain that verified before, byte for byte, costs no signature; its dates are judged on every use."""
    key = (trust.device_roots, chain)
    if cache is not None and (known := cache.devices.get(key)):
        require_valid(known[0], now, where="device chain")
        return known
    path = verify_path(
        parse_bundle(chain),
        anchors=trust.device_roots,
        where="device chain",
        cache=cache.chains if cache is not None else None,
    )
    require_valid(path, now, where="device chain")
    proven = path, read_device_certificate(path)
    if cache is not None:
        cache.devices.put(key, proven)
    return proven


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


def _judge_fwid(fwid: FwidMatch, facts: GpuFacts | SwitchFacts, policy: NvPolicy, subject: str) -> Finding:
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


def _require_unrevoked(path: VerifiedPath, collateral: Collateral) -> list[tuple[Revocation, Finding]]:
    """Every certificate below the root, under the rule of its role. Raises Untrusted for a revoked one."""
    judged = [
        collateral.judge_certificate(subject, issuer, "device_ca" if position else "device_leaf")
        for position, (subject, issuer) in enumerate(pairwise(path.certificates))
    ]
    for status, finding in judged:
        if status.status is RevocationStatus.REVOKED and finding.result is Result.FAIL:
            raise Untrusted(
                finding.code,
                "a certificate of the device chain is revoked",
                where=finding.subject,
                expected=finding.expected,
                got=finding.got,
            )
    return judged


def _signer_statuses(comparison: Comparison, collateral: Collateral) -> list[Revocation]:
    """Revocation of who signed a document; judged before, so that this asks nobody again."""
    path = pairwise(comparison.rim.path.certificates)
    return [collateral.judge_certificate(subject, issuer, "rim")[0] for subject, issuer in path]


def _policy(
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


def _mode(facts: GpuFacts | SwitchFacts, level: Level) -> GpuMode:
    """Signed facts only: TLV 21 and 36 for Protected PCIe; the reference documents (index 9) for everything else.

    A switch has no confidential mode of its own: `unknown`.
    """
    if isinstance(facts, SwitchFacts):
        return GpuMode.UNKNOWN
    if facts.protected_pcie and facts.feature in (None, FEATURE_PPCIE):
        return GpuMode.PPCIE
    return GpuMode.ON if level is Level.TRUSTED else GpuMode.UNKNOWN
