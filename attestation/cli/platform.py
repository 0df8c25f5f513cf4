"""Options to a verifier: whose roots are trusted, and which stored collateral is used. Shared by several commands."""

from pathlib import Path

from attestation.appraise.verification import VerificationPolicy
from attestation.cli.verification import BUILTIN, with_first_seen
from attestation.errors import Misconfigured
from attestation.formats.certs import MAX_BUNDLE_BYTES
from attestation.ops.local_verifier import NO_STORE, LocalVerifier
from attestation.sources.atomic import read_bounded
from attestation.sources.collateral import Collateral
from attestation.sources.collateral_store import CollateralStore
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.platform import PlatformCollateral, PlatformPolicy, PlatformTrust
from attestation.verify.revocation import ChainKind, NoRevocation, RevocationPolicy, RevocationRule, RevocationStatus
from attestation.verify.roots import NvTrust
from attestation.verify.snp_trust import AmdTrust, StaticAmdCollateral


def platform_verifier(
    *,
    collateral: Path | None,
    simulated_roots: str | None = None,
    sample: bool = False,
    policy: VerificationPolicy | None = None,
) -> LocalVerifier:
    """Production roots and stored collateral; or, with the unsafe options, roots that anybody can sign under."""
    if collateral is not None:
        stored = CollateralStore(collateral).load()
        return stored_verifier(stored, simulated_roots=simulated_roots, sample=sample, policy=policy)
    if simulated_roots is not None:
        return _simulated(simulated_roots, policy, None, sample=sample)
    known = PlatformCollateral(amd=StaticAmdCollateral(), rims=_NoRims(), revocation=NoRevocation())
    return LocalVerifier(trust=_production(sample=sample), collateral=known, policy=_rules(policy, None))


def stored_verifier(
    stored: Collateral,
    *,
    simulated_roots: str | None = None,
    sample: bool = False,
    policy: VerificationPolicy | None = None,
) -> LocalVerifier:
    """Production roots and this collateral; under simulated roots its reference documents and revocation only."""
    if simulated_roots is not None:
        return _simulated(simulated_roots, policy, stored, sample=sample)
    known = PlatformCollateral(amd=stored, intel=stored, rims=stored, revocation=stored, bundle=stored.bundle)
    return LocalVerifier(
        trust=_production(sample=sample),
        collateral=known,
        policy=_rules(policy, stored),
        collateral_digest=stored.digest(),
    )


def _rules(policy: VerificationPolicy | None, stored: Collateral | None) -> PlatformPolicy:
    if policy is None:
        return PlatformPolicy()
    nvidia = with_first_seen(policy.nvidia, stored)
    return PlatformPolicy(snp=policy.snp, tdx=policy.tdx, nvidia=nvidia, bundle=policy.bundle)


def _production(*, sample: bool) -> PlatformTrust:
    return PlatformTrust(amd=AmdTrust.production(), nvidia=NvTrust.production(), unsafe_sample_tee=sample)


def nvidia_trust(simulated_roots: str | None) -> NvTrust:
    """NVIDIA's pinned roots; or, with the unsafe option, those of a folder of `simulate roots` or the built-in ones."""
    if simulated_roots is None:
        return NvTrust.production()
    if simulated_roots == BUILTIN:
        try:
            from attestation.simulate.nvidia import NvidiaForge
        except ImportError as exc:
            raise Misconfigured("simulate-absent", "this image has no simulated authorities") from exc
        return NvidiaForge().trust
    files = [Path(simulated_roots) / name for name in NvTrust.SIMULATED_FILES]
    try:
        return NvTrust.simulated_from(*(read_bounded(file, MAX_BUNDLE_BYTES) for file in files))
    except Misconfigured as exc:
        raise Misconfigured(
            "simulated-roots", exc.what, where=exc.where, expected=" and ".join(NvTrust.SIMULATED_FILES), got=exc.got
        ) from exc


class _NoRims:
    """Without a collateral store no device is more than authentic."""

    def rims(self, rim_id: str) -> tuple[bytes, ...]:  # noqa: ARG002 - the port's signature
        return ()


def _simulated(
    where: str, policy: VerificationPolicy | None, stored: Collateral | None, *, sample: bool
) -> LocalVerifier:
    try:
        from attestation.simulate.amd_pki import simulated_amd_collateral, simulated_amd_trust
        from attestation.simulate.intel import simulated_intel_collateral, simulated_intel_trust
        from attestation.simulate.nvidia import NvidiaForge
    except ImportError as exc:
        raise Misconfigured("simulate-absent", "this image has no simulated authorities") from exc
    forge = NvidiaForge()
    nvidia = nvidia_trust(where)
    # Nobody runs an OCSP responder for simulated signers.
    good_or_unknown = frozenset({RevocationStatus.GOOD, RevocationStatus.UNKNOWN})
    revocation = RevocationPolicy(rim=RevocationRule(kind=ChainKind.RIM, accept=good_or_unknown))
    return LocalVerifier(
        trust=PlatformTrust(
            amd=simulated_amd_trust(), intel=simulated_intel_trust(), nvidia=nvidia, unsafe_sample_tee=sample
        ),
        collateral=PlatformCollateral(
            amd=simulated_amd_collateral(),
            intel=simulated_intel_collateral(),
            rims=stored or forge.shelf(),
            revocation=stored or NoRevocation(),
            bundle=stored.bundle if stored else None,
        ),
        policy=_rules(policy, stored) if policy else PlatformPolicy(nvidia=NvPolicy(revocation=revocation)),
        collateral_digest=stored.digest() if stored else NO_STORE,
    )
