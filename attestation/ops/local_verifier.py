"""The verifier that the broker runs in its own process: offline, on collateral that was stored beforehand."""

from dataclasses import dataclass, replace
from datetime import datetime

from attestation.broker.session import Challenged, Submission
from attestation.verify.platform import (
    Expected,
    PlatformCollateral,
    PlatformEvidence,
    PlatformPolicy,
    PlatformTrust,
    verify_platform,
)
from attestation.verify.verified import BoundPlatform

NO_STORE = "built-in"  # the collateral of a verifier without a store


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalVerifier:
    """`verify_platform` behind the port that the use cases call."""

    trust: PlatformTrust
    collateral: PlatformCollateral
    policy: PlatformPolicy
    collateral_digest: str = NO_STORE  # recorded with every attestation

    def verify(self, submission: Submission, challenged: Challenged, *, now: datetime) -> BoundPlatform:
        """One platform against one challenge."""
        evidence = PlatformEvidence(
            tee=challenged.tee,
            primary=submission.primary,
            additional=submission.additional,
            nonce=submission.nonce,
            tee_jwk=submission.tee_key.jwk,
            init_data=submission.init_data,
            profile=challenged.profile,
        )
        platform = verify_platform(
            evidence,
            session=Expected(tee=challenged.tee, nonce=challenged.nonce, profile=challenged.profile),
            trust=self.trust,
            collateral=self.collateral,
            policy=self.policy,
            now=now,
        )
        return replace(platform, binding={**platform.binding, "collateral": self.collateral_digest})
