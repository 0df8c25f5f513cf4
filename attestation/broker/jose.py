"""Compact JWS with the bounds of our tokens: a header may hold a certificate chain, claims those of 8 GPUs."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from math import isfinite
from typing import Any, TypeGuard

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from attestation.crypto.b64 import b64url
from attestation.errors import Untrusted

MAX_HEADER_CHARS = 24 * 1024  # eight certificates of 2 KiB, base64 twice
LEEWAY = timedelta(seconds=60)  # upstream's, for tokens of other clocks
MAX_PAYLOAD_CHARS = 192 * 1024  # verbose claims of 8 GPUs: 128 to 170 KiB (keybroker.md 0, fact 6)


class _Registry(jws.JWSRegistry):
    max_header_length = MAX_HEADER_CHARS
    max_payload_length = MAX_PAYLOAD_CHARS


_ES256 = ec.ECDSA(hashes.SHA256())
_SCALAR_BYTES = 32  # of P-256: a signature is both scalars, r first (RFC 7518 3.4)


def sign_es256(protected: str, payload: bytes, key: ec.EllipticCurvePrivateKey) -> str:
    """A compact JWS under a protected header that was encoded before; the key is on P-256."""
    signing_input = f"{protected}.{b64url(payload)}"
    scalars = decode_dss_signature(key.sign(signing_input.encode("ascii"), _ES256))
    signature = b"".join(scalar.to_bytes(_SCALAR_BYTES, "big") for scalar in scalars)
    return f"{signing_input}.{b64url(signature)}"


def token_header(token: str) -> Mapping[str, Any]:
    """The protected header, unverified: it only chooses among trusted keys. Untrusted where there is none."""
    try:
        header: Mapping[str, Any] = jws.extract_compact(token.encode("ascii"), registry=_Registry()).headers()
    except (JoseError, ValueError, TypeError, RecursionError) as exc:
        raise Untrusted("token-signature", "not a token", expected="a compact JWS") from exc
    return header


def verified_payload(token: str, key: ECKey | RSAKey, alg: str) -> bytes:
    """What this key signed with this algorithm, whatever the header names; Untrusted otherwise."""
    registry = _Registry(algorithms=[alg], strict_check_header=False)
    try:
        return jws.deserialize_compact(token, key, registry=registry).payload
    except (JoseError, ValueError, TypeError, RecursionError) as exc:
        raise Untrusted("token-signature", "token does not verify", expected=f"{alg} by a trusted key") from exc


def require_in_time(claims: Mapping[str, object], now: datetime, *, kind: str) -> None:
    """`exp` is there and not past, `nbf` not ahead, by LEEWAY. Raises Untrusted `<kind>-expired` or `<kind>-early`."""
    at, leeway = now.timestamp(), LEEWAY.total_seconds()
    expires, starts = claims.get("exp"), claims.get("nbf", 0)
    what = kind.replace("-", " ")
    if not _is_number(expires) or at - leeway > expires:  # in this order no integer is too large to compare
        raise Untrusted(f"{kind}-expired", f"{what} is expired or never expires", where="exp", expected="in the future")
    if not _is_number(starts) or at + leeway < starts:
        raise Untrusted(f"{kind}-early", f"{what} is not valid yet", where="nbf", expected="in the past")


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) is int or (type(value) is float and isfinite(value))
