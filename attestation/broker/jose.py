"""Compact JWS with the bounds of our tokens: a header may hold a certificate chain, claims those of 8 GPUs."""

from collections.abc import Mapping
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from attestation.errors import Untrusted

MAX_HEADER_CHARS = 24 * 1024  # eight certificates of 2 KiB, base64 twice
MAX_PAYLOAD_CHARS = 192 * 1024  # verbose claims of 8 GPUs: 128 to 170 KiB (keybroker.md 0, fact 6)


class _Registry(jws.JWSRegistry):
    max_header_length = MAX_HEADER_CHARS
    max_payload_length = MAX_PAYLOAD_CHARS


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
