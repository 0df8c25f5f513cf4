"""Admin tokens: ours for users of this broker, and those of configured identity providers (keybroker.md 2.3)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key

from attestation.broker.jose import require_in_time
from attestation.broker.roles import Role
from attestation.errors import Untrusted

AUDIENCE = "kata-gpu-kbs-admin"
ALGORITHMS = ("EdDSA", "Ed25519", "ES256", "RS256")  # what upstream's identity providers sign with
MAX_ADMIN_TOKEN = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminIssuer:
    """An identity provider: its key, what its tokens must say, and which of its roles mean what here."""

    key: Key
    issuer: str | None
    audience: str | None
    roles: Mapping[str, Role]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminClaims:
    """A verified admin token. `epoch` is set in our own tokens and must be the user's."""

    subject: str
    role: str
    epoch: int | None
    issuer: AdminIssuer | None


def render_admin_token(
    key: ECKey, *, issuer: str, name: str, role: Role, epoch: int, lifetime: timedelta, now: datetime
) -> str:
    """A token for one of our users."""
    at = int(now.timestamp())
    claims = {"iss": issuer, "aud": AUDIENCE, "sub": name, "role": str(role), "epoch": epoch, "iat": at}
    claims["exp"] = at + int(lifetime.total_seconds())
    payload = json.dumps(claims, separators=(",", ":")).encode()
    return jws.serialize_compact({"alg": "ES256", "typ": "JWT"}, payload, key, algorithms=["ES256"])


def verify_admin_token(
    token: str, *, own: ECKey, own_issuer: str, issuers: tuple[AdminIssuer, ...], now: datetime
) -> AdminClaims:
    """Claims of a token that we or one of the issuers signed; Untrusted otherwise."""
    if len(token) <= MAX_ADMIN_TOKEN:
        claims = _signed_by(own, token, ("ES256",))
        if claims is not None:
            _check(claims, issuer=own_issuer, audience=AUDIENCE, now=now)
            epoch = claims.get("epoch")
            return AdminClaims(
                subject=_text(claims, "sub"),
                role=_text(claims, "role"),
                epoch=epoch if type(epoch) is int else 0,
                issuer=None,
            )
        for issuer in issuers:
            claims = _signed_by(issuer.key, token, ALGORITHMS)
            if claims is not None:
                _check(claims, issuer=issuer.issuer, audience=issuer.audience, now=now)
                subject = claims.get("sub")
                # The audit log has this name: whom a provider calls `root` is not taken for a user of ours.
                return AdminClaims(
                    subject=f"{issuer.issuer}/{subject}" if isinstance(subject, str) else f"{issuer.issuer}",
                    role=_text(claims, "role"),
                    epoch=None,
                    issuer=issuer,
                )
    raise Untrusted("admin-token", "Cannot verify token with any of the issuers")


def _signed_by(key: Key, token: str, algorithms: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        payload = jws.deserialize_compact(token, key, algorithms=list(algorithms)).payload
        claims = json.loads(payload)
    except (JoseError, ValueError, TypeError, RecursionError):
        return None
    return claims if isinstance(claims, dict) else None


def _check(claims: Mapping[str, Any], *, issuer: str | None, audience: str | None, now: datetime) -> None:
    require_in_time(claims, now, kind="admin-token")
    if issuer is not None and claims.get("iss") != issuer:
        raise Untrusted("admin-token-issuer", "wrong issuer", expected=issuer, got=repr(claims.get("iss"))[:80])
    heard = claims.get("aud")
    if audience is not None and audience not in (heard if isinstance(heard, list) else [heard]):
        raise Untrusted("admin-token-audience", "wrong audience", expected=audience, got=repr(heard)[:80])


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if not isinstance(value, str):
        raise Untrusted("admin-token-claims", f"admin token has no {name}", where=name, expected="a string")
    return value
