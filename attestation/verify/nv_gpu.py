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
from attestation.findings import Finding, Result
from attestation.formats.certs import parse_bundle
from attestation.formats.nv_report import GpuFacts, SwitchFacts, parse_gpu_facts, parse_switch_facts
from attestation.formats.spdm import SpdmReport, parse_report, reread_report
from attestation.values import Architecture, DeviceKind, Digest, GpuMode, Level, Nonce
from attestation.verify.chain import VerifiedPath, require_valid, verify_path
from attestation.verify.device_claims import report_claims
from attestation.verify.identity import DeviceCertificate, read_device_certificate
from attestation.verify.nv_collateral import Collateral, KnownDevice, NvCache
from attestation.verify.nv_content import Content, judge_content, require_fwid
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.reference import compare_content
from attestation.verify.revocation import Revocation, RevocationSource, RevocationStatus
from attestation.verify.rim import RimSource
from attestation.verify.roots import NvTrust
from attestation.verify.signature import verify_raw_p384
from attestation.verify.verified import VerifiedDevice

__all__ = ["Collateral", "DeviceProof", "NvCache", "prove_device", "verify_device"]


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

    key = (trust.device_roots, chain)
    known = cache.devices.get(key) if cache is not None else None

    # 1. Size, structure, exact consumption.
    parsed, content = _read(report, known, collateral)

    # 2. and 3. Chain to the pinned root at `now`; architecture and identity from its leaf, never from the envelope.
    path, certificate = (known.path, known.certificate) if known is not None else _prove_chain(chain, trust, cache)
    require_valid(path, now, where="device chain")
    subject = str(certificate.identity)
    if arch is not None and arch is not certificate.arch:
        raise Untrusted(
            "arch-mismatch",
            "the envelope claims another architecture than the certificate",
            where=subject,
            expected=certificate.arch,
            got=arch,
        )

    # 4. Firmware id: certificate against report.
    is_switch = certificate.arch is Architecture.LS10
    if content is None:
        facts = parse_switch_facts(parsed) if is_switch else parse_gpu_facts(parsed)
        fwid = require_fwid(certificate, facts, policy)
    else:
        facts, fwid = content.facts, content.fwid

    # 5. Signature of the report with the leaf's key.
    digest = hashlib.sha384(parsed.signed).digest()
    verify_raw_p384(path.leaf.key, parsed.signature, digest, code="report-signature", where=subject)

    # 6. Freshness.
    fresh = _require_nonce(nonce, parsed, subject)

    # Revocation of the device chain: stored statements only. A revoked key proves nothing at any level.
    revocations = _require_unrevoked(path, collateral)

    # 7. Only now document ids are built from what the report says.
    if content is None:
        content = judge_content(parsed, facts, fwid, path=path, certificate=certificate, trust=trust, policy=policy)
        if cache is not None:
            cache.devices.put(key, KnownDevice(path=path, certificate=certificate, content=content))
    findings = [*content.proven, fresh, *[finding for _, finding in revocations]]

    # 8 to 10. Documents, fit, conflicts, comparison.
    compared = compare_content(parsed, content, collateral, subject)
    comparisons = compared.comparisons
    fit = content.fit(comparisons, subject)
    findings += [*compared.findings, *fit.conflicts]

    # 12. Policy over signed facts; 11 (mode here, the set of devices in `topology`).
    findings += content.judged
    complete = len(comparisons) == len(content.needs) and all(c.matches for c in comparisons)
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
        claims={
            **fit.claims,
            **report_claims(
                parsed, is_switch=is_switch, path=path, revocations=[status for status, _ in revocations],
                signers=compared.signers,
                nonce_given=nonce is not None, level=level,
            ),
        },
        findings=tuple(findings),
    )  # fmt: skip
    return DeviceProof(device=device, certificate=certificate, facts=facts)


def _read(report: bytes, known: KnownDevice | None, collateral: Collateral) -> tuple[SpdmReport, Content | None]:
    """The report, and what follows from it where this device said the very same before, under these very rules."""
    policy, trust = collateral.policy, collateral.trust
    if known is not None and known.content.policy is policy and known.content.trust == trust:
        again = reread_report(report, known.content.report)
        if again is not None:
            return again, known.content
    return parse_report(report, max_trailing_zeros=policy.trailing_zeros), None


def _prove_chain(chain: bytes, trust: NvTrust, cache: NvCache | None) -> tuple[VerifiedPath, DeviceCertificate]:
    path = verify_path(
        parse_bundle(chain),
        anchors=trust.device_roots,
        where="device chain",
        cache=cache.chains if cache is not None else None,
    )
    return path, read_device_certificate(path)


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
    return Finding(check="nonce", result=Result.PASS, got=nonce.hex(), subject=subject)


def _require_unrevoked(path: VerifiedPath, collateral: Collateral) -> list[tuple[Revocation, Finding]]:
    """Every certificate below the root, under the rule of its role. Raises Untrusted for a revoked one."""
    judged = [
        collateral.judge_certificate(subject, issuer, "device_ca" if position else "device_leaf")
        for position, (subject, issuer) in enumerate(pairwise(path.certificates))
    ]
    for status, finding in judged:
        if status.status is RevocationStatus.REVOKED:
            raise Untrusted(
                finding.code,
                "a certificate of the device chain is revoked",
                where=finding.subject,
                expected=finding.expected,
                got=finding.got,
            )
    return judged


def _mode(facts: GpuFacts | SwitchFacts, level: Level) -> GpuMode:
    """Signed facts only: TLV 21 for Protected PCIe (36 agrees with it); the reference documents (index 9) for the rest.

    A switch has no confidential mode of its own: `unknown`.
    """
    if isinstance(facts, SwitchFacts):
        return GpuMode.UNKNOWN
    if facts.protected_pcie:
        return GpuMode.PPCIE
    return GpuMode.ON if level is Level.TRUSTED else GpuMode.UNKNOWN
