"""Tokens of other attestation services, as upstream's key broker takes them (keybroker.md 3.2, 1.12).

We saw no evidence and gave no nonce: such a token proves that somebody else was convinced once. It reaches a resource
policy and nothing more; a key with release conditions of ours, above all one that requires GPUs, is not for it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from attestation.appraise.policy import KeyConditions
from attestation.broker.endorsement import TokenTrust, endorsed_key
from attestation.broker.jose import MAX_PAYLOAD_CHARS, require_in_time, token_header, verified_payload
from attestation.crypto.b64 import b64url
from attestation.crypto.jwk import parse_tee_key
from attestation.errors import Untrusted
from attestation.findings import Finding, Verdict, failed, passed
from attestation.formats.json_strict import parse_json, require_object

# First hit wins (keybroker.md 1.12).
TEE_KEY_POINTERS = (
    "/tdx/attester_runtime_data/tee-pubkey",
    "/tdx/attester_user_data/tee-pubkey",
    "/customized_claims/runtime_data/tee-pubkey",
    "/submods/cpu0/ear.veraison.annotated-evidence/runtime_data_claims/tee-pubkey",
    "/tee-pubkey",
)
_FORGEABLE = frozenset({"sample", "sampledevice", "simulated"})
_NVIDIA_CLAIM = "x-nvidia-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalToken:
    """Verified claims and the TEE key in them. `id` is for the audit log; `forgeable` marks a sample TEE."""

    id: str
    issuer: str
    claims: Mapping[str, Any]
    tee_key: Mapping[str, str]
    forgeable: bool


def verify_external(token: str, trust: TokenTrust, *, now: datetime) -> ExternalToken:
    """A foreign token to its claims and TEE key; Untrusted, or Malformed for a header or key that is none."""
    endorsed = endorsed_key(token_header(token), trust, now=now)
    payload = verified_payload(token, endorsed.key, endorsed.alg)
    claims = require_object(parse_json(payload, max_bytes=MAX_PAYLOAD_CHARS, what="claims"), "claims")
    require_in_time(claims, now, kind="token")
    if any(name.startswith(_NVIDIA_CLAIM) for name in claims):
        raise Untrusted("token-nras", "a result of NVIDIA's service speaks of GPUs and of no guest", got="x-nvidia-*")
    issuer = claims.get("iss")
    return ExternalToken(
        id=f"external-{b64url(hashlib.sha256(token.encode()).digest())[:22]}",
        issuer=issuer[:160] if isinstance(issuer, str) else "",
        claims=claims,
        tee_key=parse_tee_key(_tee_key((*trust.tee_key_paths, *TEE_KEY_POINTERS), claims)).jwk,
        forgeable=_forgeable(claims),
    )


def decide_external(
    token: ExternalToken,
    conditions: KeyConditions | None,
    *,
    test_key: bool,
    bundle: bool,
    resource_policy: bool | None,
) -> Verdict:
    """All findings for one release to the holder of a foreign token. A bundle's members have conditions of theirs."""
    return Verdict.of(
        (_origin(token, test_key=test_key), _conditions(conditions, bundle=bundle), _allowed(allowed=resource_policy))
    )


def _origin(token: ExternalToken, *, test_key: bool) -> Finding:
    if token.forgeable and not test_key:
        return failed("origin", "forgeable-evidence", expected="hardware, or a key labelled test", got="a sample TEE")
    return passed("origin", "external token")


def _conditions(conditions: KeyConditions | None, *, bundle: bool) -> Finding:
    if conditions is None and not bundle:
        return passed("token-origin", "external", expected="no release conditions")
    devices = conditions is not None and (conditions.gpus is not None or conditions.switches is not None)
    return failed(
        "token-origin",
        "external-token-for-gpu-key" if devices else "external-token-for-conditions",
        expected="evidence that this broker verified, for a nonce that it gave",
        got="a token of another attestation service",
    )


def _allowed(*, allowed: bool | None) -> Finding:
    if allowed is None:
        return failed("resource-policy", "no-release-policy", expected="a resource policy", got="none")
    if not allowed:
        return failed("resource-policy", "resource-policy-denies", expected="allow", got="deny")
    return passed("resource-policy", "allow")


def _forgeable(claims: Mapping[str, Any]) -> bool:
    """A sample TEE, or another broker of this kind that said so."""
    submods = claims.get("submods")
    parts = submods.values() if isinstance(submods, Mapping) else ()
    evidence = [part.get("ear.veraison.annotated-evidence") for part in parts if isinstance(part, Mapping)]
    named = {name for names in (*evidence, claims) if isinstance(names, Mapping) for name in names}
    return not named.isdisjoint(_FORGEABLE)


def _tee_key(pointers: tuple[str, ...], claims: Mapping[str, Any]) -> object:
    for pointer in pointers:
        value: object = claims
        for name in pointer.removeprefix("/").split("/"):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    raise Untrusted(
        "token-tee-key", "the token names no TEE key", where="tee-pubkey", expected="|".join(pointers)[:200]
    )
