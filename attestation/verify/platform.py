"""The one call that a broker makes: everything a guest sent, against everything that is trusted, at one time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from attestation.findings import Finding
from attestation.formats.nv_evidence import NvEvidence
from attestation.formats.snp_evidence import read_snp_evidence
from attestation.formats.tdx_evidence import read_tdx_evidence
from attestation.values import JsonObject, Nonce, Tee
from attestation.verify.bind import Expected, PlatformEvidence, bind_platform
from attestation.verify.bundle import BundleInfo, BundleRule, require_recent
from attestation.verify.expected import CpuExpected
from attestation.verify.nv_gpu import NvCache, prove_device
from attestation.verify.nv_policy import NvPolicy, Unchecked
from attestation.verify.revocation import RevocationSource
from attestation.verify.rim import RimSource
from attestation.verify.roots import NvTrust
from attestation.verify.sample import verify_sample, verify_sample_device
from attestation.verify.snp import verify_snp
from attestation.verify.snp_certs import AmdCache
from attestation.verify.snp_policy import SnpPolicy
from attestation.verify.snp_trust import AmdCollateral, AmdTrust
from attestation.verify.tdx import IntelCache, verify_tdx
from attestation.verify.tdx_trust import IntelCollateral, IntelTrust, StaticIntelCollateral, TdxPolicy
from attestation.verify.topology import check_set
from attestation.verify.verified import BoundPlatform, VerifiedCpu, VerifiedDevice

__all__ = ["Expected", "PlatformCollateral", "PlatformEvidence", "PlatformPolicy", "PlatformTrust", "verify_platform"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformTrust:
    """Roots of every vendor. `unsafe_sample_tee` accepts evidence that anybody can make: sample TEE, sample device."""

    amd: AmdTrust
    nvidia: NvTrust
    intel: IntelTrust = field(default_factory=IntelTrust.production)
    unsafe_sample_tee: bool = False

    @property
    def simulated(self) -> bool:
        """Whether anything here can be forged: only keys labelled `test` may be released on it."""
        return self.amd.simulated or self.intel.simulated or self.nvidia.simulated or self.unsafe_sample_tee


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformCollateral:
    """Stored collateral of every vendor, and what was read or verified before. Sources look up and judge nothing."""

    amd: AmdCollateral
    rims: RimSource
    revocation: RevocationSource
    intel: IntelCollateral = field(default_factory=StaticIntelCollateral)
    bundle: BundleInfo | None = None  # the one that the store was filled from
    nv_cache: NvCache = field(default_factory=NvCache)
    amd_cache: AmdCache = field(default_factory=AmdCache)
    intel_cache: IntelCache = field(default_factory=IntelCache)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformPolicy:
    """What the operator demands of each part."""

    snp: SnpPolicy = field(default_factory=SnpPolicy)
    tdx: TdxPolicy = field(default_factory=TdxPolicy)
    nvidia: NvPolicy = field(default_factory=NvPolicy)
    bundle: BundleRule | None = None  # how old stored collateral may be


def verify_platform(
    evidence: PlatformEvidence,
    *,
    session: Expected,
    trust: PlatformTrust,
    collateral: PlatformCollateral,
    policy: PlatformPolicy,
    now: datetime,
) -> BoundPlatform:
    """Proof that one CPU TEE and its devices answer this session, or the first error.

    Raises Malformed, Untrusted, Unavailable, and Denied where policy refuses a genuine CPU.
    """
    recent = require_recent(collateral.bundle, policy.bundle, now=now)

    def cpu(tee: Tee, primary: JsonObject, expected: CpuExpected) -> VerifiedCpu:
        return _verify_cpu(tee, primary, expected, trust, collateral, policy, now)

    def devices(listed: Sequence[NvEvidence], nonce: Nonce) -> tuple[list[VerifiedDevice], list[Finding]]:
        known = collateral.nv_cache.collateral(
            trust=trust.nvidia,
            rims=collateral.rims,
            revocation=collateral.revocation,
            policy=policy.nvidia,
            now=now,
        )
        proofs = [prove_device(d.report, d.chain, known, nonce=nonce, arch=d.arch) for d in listed]
        return [proof.device for proof in proofs], list(check_set(proofs)) if proofs else []

    return bind_platform(
        evidence,
        session,
        cpu=cpu,
        devices=devices,
        sample_device=verify_sample_device if trust.unsafe_sample_tee else None,
        decode_chain=collateral.nv_cache.decode_chain,
        about_collateral=(recent,),
        identity_list=None if isinstance(policy.nvidia.chip_ids, Unchecked) else policy.nvidia.chip_ids.accepts,
    )


def _verify_cpu(
    tee: Tee,
    primary: JsonObject,
    expected: CpuExpected,
    trust: PlatformTrust,
    collateral: PlatformCollateral,
    policy: PlatformPolicy,
    now: datetime,
) -> VerifiedCpu:
    if tee is Tee.SNP:
        return verify_snp(
            read_snp_evidence(primary),
            trust=trust.amd,
            collateral=collateral.amd,
            policy=policy.snp,
            expected=expected,
            now=now,
            cache=collateral.amd_cache,
        )
    if tee is Tee.TDX:
        return verify_tdx(
            read_tdx_evidence(primary),
            trust=trust.intel,
            collateral=collateral.intel,
            policy=policy.tdx,
            expected=expected,
            now=now,
            cache=collateral.intel_cache,
        )
    return verify_sample(primary, unsafe_allow_sample=trust.unsafe_sample_tee, expected=expected)
