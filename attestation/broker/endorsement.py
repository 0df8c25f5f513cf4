"""Which key may sign an external token: one whose certificate chains to a trusted one, or one of a trusted JWK set.

Upstream's rules (keybroker.md 3.2) without its switch that believes any key in a header; `jku` and `x5u` are ignored.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, RSAKey

from attestation.errors import Malformed, Misconfigured, Untrusted
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.verify.unreadable import UNREADABLE

MAX_JWKS_BYTES = 256 * 1024
MAX_KEYS = 64
MAX_CHAIN = 8  # upstream's scenarios have three; OpenSSL's default depth is 100
MAX_CERTIFICATE_BYTES = 16 * 1024
RSA_MIN_BITS, RSA_MAX_BITS = 2048, 4096
# Signature algorithms by key type. `alg` comes from the trusted key, never from the token (RFC 8725 section 3.1).
_RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_EC_ALGORITHMS = {"P-256": "ES256", "P-384": "ES384"}
_MEMBERS = {"EC": ("kty", "crv", "x", "y"), "RSA": ("kty", "n", "e")}
_WHERE = "token header"


@dataclass(frozen=True, slots=True)
class EndorsedKey:
    """A key that may sign tokens, with the one algorithm it signs with."""

    key: ECKey | RSAKey
    alg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTrust:
    """The operator's choice: certificates that end a chain, keys by id, and where claims may name the TEE key."""

    certificates: tuple[x509.Certificate, ...] = ()
    keys: Mapping[str, EndorsedKey] = field(default_factory=lambda: MappingProxyType({}))
    tee_key_paths: tuple[str, ...] = ()  # JSON pointers (RFC 6901), tried before upstream's

    @classmethod
    def of(
        cls, *, certificates: Sequence[bytes] = (), jwks: Sequence[bytes] = (), tee_key_paths: Sequence[str] = ()
    ) -> "TokenTrust":
        """From PEM files and JWK sets; Misconfigured where one holds nothing usable."""
        for path in tee_key_paths:
            if not path.startswith("/") or "~" in path:
                expected = "a JSON pointer of plain member names, e.g. /claims/tee-pubkey"
                raise Misconfigured("token-key-path", "not such a pointer", expected=expected, got=path[:80])
        found: list[x509.Certificate] = []
        for pem in certificates:
            try:
                found += x509.load_pem_x509_certificates(pem)
            except UNREADABLE as exc:
                raise Misconfigured("token-certificates", "not PEM certificates") from exc
        keys: dict[str, EndorsedKey] = {}
        for document in jwks:
            for kid, key in _key_set(document):
                if kid in keys:
                    raise Misconfigured("token-jwks", "two keys of one id", got=kid[:80])
                keys[kid] = key
        return cls(certificates=tuple(found), keys=MappingProxyType(keys), tee_key_paths=tuple(tee_key_paths))


def endorsed_key(header: Mapping[str, Any], trust: TokenTrust, *, now: datetime) -> EndorsedKey:
    """The key that a token's header names, if the operator's choice covers it. Untrusted or Malformed otherwise."""
    if "jwk" not in header:
        key = trust.keys.get(str(header.get("kid")))
        if key is None:
            raise Untrusted("token-key", "not signed by a trusted key", where=_WHERE, expected="a trusted kid")
        return key
    jwk = require_object(header["jwk"], "jwk")
    key = _parse_key(jwk)
    leaf, *rest = _chain(jwk.get("x5c"))
    try:
        same = leaf.public_key() == key.key.public_key
    except UNREADABLE:
        same = False
    if not same:
        raise Untrusted("token-jwk-mismatch", "the certificate holds another key than the header", where="x5c")
    _verify_chain(leaf, rest, trust.certificates, now)
    return key


def _verify_chain(
    leaf: x509.Certificate, rest: Sequence[x509.Certificate], roots: Sequence[x509.Certificate], now: datetime
) -> None:
    if not roots:
        raise Untrusted("token-anchor", "no certificate is trusted for tokens", where="x5c")
    # OpenSSL's defaults ask signers for the CA flag and nobody for names or usages; the library's defaults are a
    # web browser's.
    authority = ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    builder = PolicyBuilder().store(Store(list(roots))).time(now).max_chain_depth(MAX_CHAIN)
    verifier = builder.extension_policies(
        ca_policy=authority, ee_policy=ExtensionPolicy.permit_all()
    ).build_client_verifier()
    try:
        verifier.verify(leaf, list(rest))
    except (VerificationError, *UNREADABLE) as exc:
        raise Untrusted(
            "token-chain", "the signer's certificate does not lead to a trusted one", where="x5c", got=str(exc)[:160]
        ) from exc


def _chain(x5c: object) -> list[x509.Certificate]:
    if not isinstance(x5c, list) or not 0 < len(x5c) <= MAX_CHAIN:
        raise Untrusted("token-x5c", "the header's key has no certificate", where="x5c", expected=f"1 to {MAX_CHAIN}")
    return [_certificate(item) for item in x5c]


def _certificate(text: object) -> x509.Certificate:
    """Standard base64 of DER as RFC 7517 section 4.7 has it; upstream also takes line breaks and base64url."""
    compact = require_text(text, "x5c").replace("\n", "").strip()
    if len(compact) > MAX_CERTIFICATE_BYTES:
        raise Malformed("token-x5c", "certificate is too long", where="x5c", expected=MAX_CERTIFICATE_BYTES)
    standard = compact.replace("-", "+").replace("_", "/")
    try:
        raw = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
        return x509.load_der_x509_certificate(raw)
    except (binascii.Error, *UNREADABLE) as exc:
        raise Malformed("token-x5c", "not a certificate", where="x5c", expected="base64 of DER") from exc


def _key_set(document: bytes) -> list[tuple[str, EndorsedKey]]:
    try:
        entries = require_object(parse_json(document, max_bytes=MAX_JWKS_BYTES, what="JWKS"), "JWKS").get("keys")
        if not isinstance(entries, list) or not 0 < len(entries) <= MAX_KEYS:
            raise Malformed("token-jwks", "no list of keys", where="JWKS", expected=f"1 to {MAX_KEYS}")
        objects = [require_object(entry, "JWK") for entry in entries]
        return [(require_text(jwk.get("kid"), "JWK kid"), _parse_key(jwk)) for jwk in objects]
    except Malformed as exc:
        raise Misconfigured("token-jwks", exc.what, where=exc.where, expected=exc.expected, got=exc.got) from exc


def _parse_key(jwk: Mapping[str, Any]) -> EndorsedKey:
    """Public members only, whatever else is there."""
    kty, alg = jwk.get("kty"), jwk.get("alg")
    names = _MEMBERS.get(kty) if isinstance(kty, str) else None
    if names is None:
        raise Malformed("token-jwk", "unknown key type", where="jwk.kty", expected="EC|RSA", got=repr(kty)[:40])
    members: dict[str, str | list[str]] = {name: require_text(jwk.get(name), f"jwk.{name}") for name in names}
    try:
        key = (ECKey if kty == "EC" else RSAKey).import_key(members)
        public = key.public_key
    except (JoseError, ValueError) as exc:
        raise Malformed("token-jwk", "not a public key", where="jwk") from exc
    allowed: tuple[str, ...]
    if isinstance(public, rsa.RSAPublicKey):
        allowed = _RSA_ALGORITHMS if RSA_MIN_BITS <= public.key_size <= RSA_MAX_BITS else ()
    else:
        allowed = tuple(alg for curve, alg in _EC_ALGORITHMS.items() if members["crv"] == curve)
    if not isinstance(alg, str) or alg not in allowed:
        raise Malformed(
            "token-jwk-alg",
            "no algorithm for this key",
            where="jwk.alg",
            expected="|".join(allowed),
            got=repr(alg)[:40],
        )
    return EndorsedKey(key, alg)
