"""A handshake in its two stages, as two types: `Challenged` (a nonce is out) and `Attested` (a platform was proven).

Only `attest` makes an `Attested`, and only an `Attested` reaches a release decision.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from attestation.appraise.ear import Appraisal, Status, TrustVector, status_of
from attestation.appraise.facts import PlatformFacts
from attestation.crypto.b64 import b64
from attestation.crypto.jwe import RandomBytes
from attestation.crypto.jwk import TeePublicKey, thumbprint
from attestation.errors import Denied, Malformed
from attestation.values import NONCE_BYTES, BindingProfile, JsonObject, Tee

PROTOCOL_VERSION = "0.4.0"
PROFILES_MEMBER, PROFILE_MEMBER = "binding-profiles", "binding-profile"  # our members of `extra-params`
TOKEN_ID_BYTES = 16
CHALLENGE_LIFETIME = timedelta(minutes=5)  # upstream's default; a GPU report takes seconds, a cold VM longer
TOKEN_LIFETIME = timedelta(minutes=5)  # upstream's default


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenged:
    """A challenge that was issued: one nonce for one TEE kind, until `expires`."""

    tee: Tee
    nonce: str  # base64 text; the protocol hashes the text
    expires: datetime
    profile: BindingProfile = BindingProfile.TRUSTEE_RCAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What a guest sent to `/attest`, bounded and typed, nothing verified. `additional` is verbatim: it is hashed."""

    nonce: str
    tee_key: TeePublicKey
    init_data: str | None
    primary: JsonObject
    additional: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """A platform that was verified and appraised, under the id of its token. `simulated`: evidence can be forged."""

    jti: str
    issued: datetime
    expires: datetime
    nonce: str
    tee_key: Mapping[str, str]
    facts: PlatformFacts
    appraisals: tuple[Appraisal, ...]
    simulated: bool
    jkt: str = field(init=False)  # thumbprint of the TEE key: whom keys are released to

    def __post_init__(self) -> None:
        # A result of `verify evidence` that a policy is tried on has no key: nothing is ever released to it.
        object.__setattr__(self, "jkt", thumbprint(self.tee_key) if self.tee_key else "")

    @property
    def status(self) -> Status:
        """Worst status over submodules."""
        return status_of(self.appraisals)

    def to_json(self) -> dict[str, Any]:
        """The stored record."""
        return {
            "jti": self.jti,
            "issued": int(self.issued.timestamp()),
            "expires": int(self.expires.timestamp()),
            "nonce": self.nonce,
            "tee_key": dict(self.tee_key),
            "facts": self.facts.to_json(),
            "appraisals": [[a.submod, a.vector.to_json(), a.policy_id] for a in self.appraisals],
            "simulated": self.simulated,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "Attested":
        """Inverse of `to_json`; findings of the appraisal are in the audit log, not here."""
        return cls(
            jti=record["jti"],
            issued=datetime.fromtimestamp(record["issued"], UTC),
            expires=datetime.fromtimestamp(record["expires"], UTC),
            nonce=record["nonce"],
            tee_key=record["tee_key"],
            facts=PlatformFacts.from_json(record["facts"]),
            appraisals=tuple(
                Appraisal(submod=name, vector=TrustVector(values or {"hardware": 0}), policy_id=policy)
                for name, values, policy in record["appraisals"]
            ),
            simulated=record["simulated"],
        )


def challenge(
    *, version: str, tee: str, offered: object, enabled: frozenset[Tee], random: RandomBytes, now: datetime
) -> Challenged:
    """Answer `/auth`: only 0.4.0, only an enabled CPU-class TEE (devices cannot be primary, keybroker.md 6 #3).

    `offered` is the guest's `extra-params`: one that names binding profiles gets the native one where it is among
    them; upstream's guests name none. The session fixes the choice, so that evidence cannot change it.
    """
    if version != PROTOCOL_VERSION:
        raise Malformed(
            "protocol-version",
            f"KBS Client Protocol Version Mismatch: expect ={PROTOCOL_VERSION} while the request is {version[:40]}",
        )
    try:
        kind = Tee(tee)
    except ValueError as exc:
        raise Malformed("tee-unknown", "unknown TEE", expected="|".join(sorted(enabled)), got=repr(tee[:40])) from exc
    if kind not in enabled:
        raise Denied("tee-disabled", "this TEE is not accepted here", expected="|".join(sorted(enabled)), got=kind)
    return Challenged(
        tee=kind, nonce=b64(random(NONCE_BYTES)), expires=now + CHALLENGE_LIFETIME, profile=_profile(offered)
    )


def _profile(offered: object) -> BindingProfile:
    names = offered.get(PROFILES_MEMBER) if isinstance(offered, Mapping) else None
    if isinstance(names, list) and BindingProfile.CGPU_V1 in names:
        return BindingProfile.CGPU_V1
    return BindingProfile.TRUSTEE_RCAR


def attested(
    facts: PlatformFacts,
    appraisals: tuple[Appraisal, ...],
    *,
    nonce: str,
    tee_key: Mapping[str, str],
    simulated: bool,
    random: RandomBytes,
    now: datetime,
) -> Attested:
    """Give a proven platform its token id and lifetime; times are whole seconds, as tokens carry them."""
    issued = now.replace(microsecond=0)
    return Attested(
        jti=random(TOKEN_ID_BYTES).hex(),  # base64url may begin with "-", which no command line takes
        issued=issued,
        expires=issued + TOKEN_LIFETIME,
        nonce=nonce,
        tee_key=tee_key,
        facts=facts,
        appraisals=appraisals,
        simulated=simulated,
    )
