"""Everything a use case may touch, built once by a shell and passed along."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Protocol

from joserfc.jwk import ECKey

from attestation.appraise.policy import KeyConditions
from attestation.appraise.policy_toml import parse_conditions
from attestation.broker.admin import AdminIssuer
from attestation.broker.cookie import ChallengeCookies
from attestation.broker.endorsement import TokenTrust
from attestation.broker.session import Challenged, Submission
from attestation.broker.token import TokenAuthority
from attestation.crypto.jwe import RandomBytes
from attestation.ops.refusals import Refusals
from attestation.sources.attestations import AttestationStore
from attestation.sources.audit import AuditLog
from attestation.sources.configuration import Configuration
from attestation.sources.db import Database
from attestation.sources.envelope import Vault
from attestation.sources.key_store import KeyStore
from attestation.sources.leases import LeaseStore
from attestation.sources.policy_store import PolicyStore
from attestation.sources.reference_store import ReferenceStore
from attestation.sources.revocation_store import RevocationStore
from attestation.sources.sessions import SessionStore
from attestation.sources.signing import SigningKeys
from attestation.sources.tenants import TenantStore
from attestation.sources.users import UserStore
from attestation.values import JsonValue, Tee
from attestation.verify.verified import BoundPlatform


class PlatformVerifier(Protocol):
    """The hard gate: signatures, freshness, binding, debug. Offline."""

    def verify(self, submission: Submission, challenged: Challenged, *, now: datetime) -> BoundPlatform:
        """Proof, or Malformed, Untrusted or Unavailable."""


class RegoEngine(Protocol):
    """Evaluates Rego in a worker with a deadline; Unavailable where it did not answer."""

    def check(self, policy: str) -> None:
        """Malformed unless the policy compiles."""

    def appraise(
        self, policy: str, document: Mapping[str, JsonValue], references: Mapping[str, JsonValue]
    ) -> Mapping[str, JsonValue]:
        """`data.policy.trust_claims` for one submodule."""

    def allow(self, policy: str, document: Mapping[str, JsonValue], data: Mapping[str, JsonValue]) -> bool:
        """`data.policy.allow`; anything but `true` is false."""

    def close(self) -> None:
        """End the worker."""


class Notifier(Protocol):
    """Tells somebody outside about denials and revocations; never waits, never raises."""

    def notify(self, event: str, subject: str, body: Mapping[str, JsonValue], now: datetime) -> None:
        """Send it when possible."""

    def close(self) -> None:
        """Send what is left, within seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Stores, verifier, engine, keys and the few settings that decisions depend on."""

    database: Database
    vault: Vault
    cookies: ChallengeCookies
    sessions: SessionStore
    attestations: AttestationStore
    configuration: Configuration
    keys: KeyStore
    policies: PolicyStore
    references: ReferenceStore
    revocations: RevocationStore
    users: UserStore
    audit: AuditLog
    signing: SigningKeys
    verifier: PlatformVerifier
    rego: RegoEngine
    leases: LeaseStore
    tenants: TenantStore
    webhook: Notifier
    authority: TokenAuthority
    admin_key: ECKey
    random: RandomBytes
    tees: frozenset[Tee]
    simulated: bool = False  # forgeable evidence is accepted; only keys labelled `test` can leave
    admin_issuers: tuple[AdminIssuer, ...] = ()
    deny_all_admins: bool = False
    external: TokenTrust | None = None  # whose tokens are taken beside our own
    refusals: Refusals = field(default_factory=Refusals)


@lru_cache(maxsize=512)
def conditions_of(text: str) -> KeyConditions:
    """Parsed release policy; the text is the cache key, so a changed policy is a different entry."""
    return parse_conditions(text)
