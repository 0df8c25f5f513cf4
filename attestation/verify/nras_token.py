"""NVIDIA's NRAS tokens, verified offline: a detached EAT bundle against a stored JWKS (gpu-attestation.md 4.3, 6.1).

What peers leave out is mandatory here: issuer, audience, times, the nonce of *this* challenge, the digest of every
submodule over its compact text, and the exact set of submodules. One algorithm, ES384; `alg` selects nothing.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.crypto.b64 import parse_b64, parse_b64url
from attestation.errors import Malformed, Misconfigured, Untrusted
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.values import JsonObject, Nonce
from attestation.verify.signature import verify_raw_p384
from attestation.verify.unreadable import UNREADABLE

MAX_BUNDLE_BYTES = 1024 * 1024  # genuine: 6 kB a device
MAX_JWKS_BYTES = 256 * 1024
MAX_SUBMODS = 64
MAX_KEYS = 64
COORDINATE_BYTES = 48
_SIGNATURE_BYTES = 96
_HEADER = frozenset({"alg", "kid", "typ"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRule:
    """What a relying party accepts. `audience` None: only tokens that name none."""

    issuers: frozenset[str]
    audience: str | None = None
    leeway: timedelta = timedelta(seconds=60)

    def __post_init__(self) -> None:
        if not self.issuers:
            raise Misconfigured("nras-issuers", "no issuer is accepted", expected="at least one")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedEat:
    """A bundle as parsed: compact tokens, nothing believed."""

    overall: str
    submods: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedEat:
    """A bundle that a key of the JWKS signed for this nonce. `successful` is what the issuer says of all devices."""

    issuer: str
    successful: bool
    claims: JsonObject
    submods: Mapping[str, JsonObject]


Keys = Mapping[str, ec.EllipticCurvePublicKey]


def parse_jwks(raw: bytes) -> Keys:
    """Keys by id: P-384 members, and where there is an `x5c`, its first certificate must hold the same key.

    Raises Malformed.
    """
    keys: dict[str, ec.EllipticCurvePublicKey] = {}
    entries = require_object(parse_json(raw, max_bytes=MAX_JWKS_BYTES, what="JWKS"), "JWKS").get("keys")
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_KEYS:
        raise Malformed("jwks", "no usable list of keys", where="JWKS", expected=f"1 to {MAX_KEYS}")
    for entry in entries:
        jwk = require_object(entry, "JWK")
        kid = require_text(jwk.get("kid"), "JWK kid")
        if kid in keys:
            raise Malformed("jwks", "two keys of one id", where="JWKS", got=kid)
        keys[kid] = _key(jwk, f"JWK {kid}"[:100])
    return MappingProxyType(keys)


def _key(jwk: JsonObject, where: str) -> ec.EllipticCurvePublicKey:
    from_certificate = _certificate_key(jwk["x5c"], where) if "x5c" in jwk else None
    if "x" not in jwk and from_certificate is not None:
        return from_certificate
    if (jwk.get("kty"), jwk.get("crv")) != ("EC", "P-384"):
        raise Malformed("jwks", "not a P-384 key", where=where, got=f"{jwk.get('kty')} {jwk.get('crv')}")
    x, y = (parse_b64url(jwk.get(name), where=f"{where} {name}") for name in ("x", "y"))
    try:
        if len(x) != COORDINATE_BYTES or len(y) != COORDINATE_BYTES:
            raise ValueError("coordinate length")
        numbers = ec.EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), ec.SECP384R1())
        key = numbers.public_key()
    except ValueError as exc:
        raise Malformed("jwks", "not a point of P-384", where=where) from exc
    if from_certificate is not None and from_certificate != key:
        raise Malformed("jwks", "x5c holds another key than x and y", where=where)
    return key


def _certificate_key(x5c: object, where: str) -> ec.EllipticCurvePublicKey:
    if not isinstance(x5c, list) or not x5c:
        raise Malformed("jwks", "x5c is not a list of certificates", where=where)
    try:
        key = x509.load_der_x509_certificate(parse_b64(x5c[0], where=f"{where} x5c")).public_key()
    except UNREADABLE as exc:
        raise Malformed("jwks", "x5c is not a certificate", where=where) from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise Malformed("jwks", "x5c is not a P-384 certificate", where=where)
    return key


def parse_detached_eat(raw: bytes) -> ParsedEat:
    """`[["JWT", overall], {name: jwt}]` and nothing else. Raises Malformed."""
    value = parse_json(raw, max_bytes=MAX_BUNDLE_BYTES, what="EAT bundle")
    if not (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], list)
        and len(value[0]) == 2
        and value[0][0] == "JWT"
        and isinstance(value[0][1], str)
        and isinstance(value[1], dict)
        and 0 < len(value[1]) <= MAX_SUBMODS
    ):
        raise Malformed("eat-shape", "not a detached EAT bundle", expected='[["JWT", token], {name: token}]')
    submods = {name: require_text(token, f"submod {name}"[:80]) for name, token in value[1].items()}
    if not all(text.isascii() for text in (value[0][1], *submods, *submods.values())):
        raise Malformed("eat-shape", "names and tokens are ASCII")
    return ParsedEat(overall=value[0][1], submods=MappingProxyType(submods))


def token_claims(token: str, where: str) -> tuple[JsonObject, JsonObject, bytes, bytes]:
    """Header, claims, signed text and signature of a compact token; nothing is believed. Raises Malformed."""
    parts = token.split(".")
    if len(parts) != 3 or not token.isascii():
        raise Malformed("jwt-shape", "not a compact JWS", where=where, expected="three parts", got=len(parts))
    header, claims = (
        require_object(
            parse_json(parse_b64url(part, where=where), max_bytes=MAX_BUNDLE_BYTES, what=f"{where} {name}"), where
        )
        for part, name in zip(parts[:2], ("header", "claims"), strict=True)
    )
    return header, claims, f"{parts[0]}.{parts[1]}".encode("ascii"), parse_b64url(parts[2], where=where)


def _verified_claims(token: str, keys: Keys, rule: TokenRule, nonce: Nonce, now: datetime, where: str) -> JsonObject:
    header, claims, signed, signature = token_claims(token, where)
    if header.get("alg") != "ES384" or not _HEADER.issuperset(header):
        raise Untrusted("jwt-header", "unacceptable header", where=where, expected="ES384, kid", got=sorted(header))
    key = keys.get(str(header.get("kid")))
    if key is None:
        raise Untrusted("jwt-key", "signed by a key that is not stored", where=where, got=str(header.get("kid"))[:100])
    if len(signature) != _SIGNATURE_BYTES:
        raise Untrusted("jwt-signature", "wrong signature size", where=where, got=len(signature))
    verify_raw_p384(key, signature, hashlib.sha384(signed).digest(), code="jwt-signature", where=where)
    issuer = claims.get("iss")
    if not isinstance(issuer, str) or issuer not in rule.issuers:
        raise Untrusted("jwt-issuer", "another issuer", where=where, expected=sorted(rule.issuers), got=issuer)
    if claims.get("aud") != rule.audience:
        raise Untrusted("jwt-audience", "for somebody else", where=where, expected=rule.audience, got=claims.get("aud"))
    _require_times(claims, rule, now, where)
    got_nonce = claims.get("eat_nonce")
    if not isinstance(got_nonce, str) or got_nonce.lower() != nonce.hex():
        raise Untrusted("jwt-nonce", "answers another challenge", where=where, expected=nonce.hex(), got=got_nonce)
    return claims


def _require_times(claims: JsonObject, rule: TokenRule, now: datetime, where: str) -> None:
    times = [claims.get(name) for name in ("nbf", "exp")]
    if not all(isinstance(t, int) and not isinstance(t, bool) for t in times):
        raise Untrusted("jwt-times", "nbf and exp must be whole numbers", where=where, got=times)
    moment, leeway = now.timestamp(), rule.leeway.total_seconds()
    not_before, expires = (int(str(t)) for t in times)
    if moment < not_before - leeway:
        raise Untrusted("jwt-not-yet-valid", "not valid yet", where=where, expected=f"<= {moment:.0f}", got=not_before)
    if moment >= expires + leeway:
        raise Untrusted("jwt-expired", "expired", where=where, expected=f"> {moment:.0f}", got=expires)


def require_digests(claims: JsonObject, submods: Mapping[str, str]) -> None:
    """Exactly the declared submodules, each with its SHA-256 over the compact text. Raises Untrusted."""
    declared = claims.get("submods")
    if not isinstance(declared, dict) or set(declared) != set(submods):
        raise Untrusted(
            "eat-submods",
            "submodules are not those that the overall token declares",
            expected=sorted(declared) if isinstance(declared, dict) else "a map",
            got=sorted(submods),
        )
    for name, token in submods.items():
        want = ["DIGEST", ["SHA-256", hashlib.sha256(token.encode("ascii")).hexdigest()]]
        if declared[name] != want:
            raise Untrusted("eat-digest", "the submodule is not the declared one", where=name[:80], expected=want)


def verify_nras_token(raw: bytes, keys: Keys, *, rule: TokenRule, nonce: Nonce, now: datetime) -> VerifiedEat:
    """Verify a detached EAT bundle of an accepted issuer for `nonce` at `now`. Raises Malformed or Untrusted.

    An overall result that is not exactly `true` or `false` is Untrusted; submodules are verified like the whole.
    """
    bundle = parse_detached_eat(raw)
    claims = _verified_claims(bundle.overall, keys, rule, nonce, now, "overall token")
    require_digests(claims, bundle.submods)
    successful = claims.get("x-nvidia-overall-att-result")
    if not isinstance(successful, bool):
        raise Untrusted("eat-result", "overall result is not a boolean", expected="true or false", got=repr(successful))
    submods = {
        name: _verified_claims(token, keys, rule, nonce, now, f"submod {name}"[:80])
        for name, token in bundle.submods.items()
    }
    return VerifiedEat(
        issuer=str(claims["iss"]), successful=successful, claims=claims, submods=MappingProxyType(submods)
    )
