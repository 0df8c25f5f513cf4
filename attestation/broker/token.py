"""The attestation result token: an EAR as compact JWS, ES256, under 4 KB with 8 GPUs (keybroker.md 3.1, 3.2).

Device claims stay on the server under `jti`; the token carries their digest. A token is accepted again only with a
key, issuer and audience of ours, inside its lifetime, and while its record exists.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from joserfc.jwk import ECKey

from attestation.appraise.ear import Appraisal
from attestation.appraise.facts import CpuFacts, DeviceFacts, SampleDeviceFacts, Submod
from attestation.appraise.identifiers import validated_identifiers
from attestation.broker.jose import sign_es256, token_header, verified_payload
from attestation.broker.session import Attested
from attestation.crypto.b64 import b64, b64url
from attestation.crypto.jwk import thumbprint
from attestation.errors import Misconfigured, Untrusted
from attestation.formats.json_compact import canonical, compact
from attestation.formats.json_strict import parse_json, require_object
from attestation.verify.unreadable import UNREADABLE

PROFILE = "tag:github.com,2024:confidential-containers/Trustee"  # the shape that relying parties know
MAX_TOKEN_BYTES = 64 * 1024  # own tokens are under 4 KB; external ones carry claims (keybroker.md 7.4)
MAX_X5C = 3  # a leaf and two authorities: each costs 700 bytes of every token
LEEWAY = timedelta(seconds=5)
_VERIFIER = {"build": "kata-gpu-kbs", "developer": "kata-gpu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A P-256 signing key with its id (RFC 7638 thumbprint)."""

    key: ECKey
    kid: str
    private: ec.EllipticCurvePrivateKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        private = self.key.private_key
        if private is None or not isinstance(private.curve, ec.SECP256R1):
            raise Misconfigured("token-key", "the token key cannot sign", expected="a private key on P-256")
        object.__setattr__(self, "private", private)

    @classmethod
    def of(cls, pem: bytes) -> "TokenKey":
        """From a PKCS#8 private key in PEM."""
        key = ECKey.import_key(pem)
        public = {name: str(value) for name, value in key.as_dict(private=False).items()}
        return cls(key=key, kid=thumbprint(public))

    @property
    def public_jwk(self) -> dict[str, str]:
        """For the JWKS."""
        public = {name: str(value) for name, value in self.key.as_dict(private=False).items()}
        return {name: public[name] for name in ("kty", "crv", "x", "y")} | {
            "alg": "ES256",
            "use": "sig",
            "kid": self.kid,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenAuthority:
    """Who signs now, whose tokens are still accepted, and the names that a token must carry.

    `x5c` is the certificate chain of the current key: with one, upstream's key broker can verify our tokens.
    """

    issuer: str
    audience: str
    current: TokenKey
    previous: tuple[TokenKey, ...] = ()
    x5c: tuple[str, ...] = ()
    protected: str = field(init=False, repr=False)  # header of every token, as it travels

    def __post_init__(self) -> None:
        header: dict[str, Any] = {"typ": "JWT", "alg": "ES256", "kid": self.current.kid}
        if self.x5c:  # without a chain the member would make upstream refuse what its JWK set could verify (3.2)
            header["jwk"] = self.current.public_jwk | {"x5c": list(self.x5c)}
        object.__setattr__(self, "protected", b64url(compact(header)))

    def certified(self, pem: bytes) -> "TokenAuthority":
        """With the chain of this PEM file, leaf first; Misconfigured unless the leaf holds the current key."""
        try:
            chain = x509.load_pem_x509_certificates(pem)
            same = chain[0].public_key() == self.current.key.public_key
        except UNREADABLE as exc:
            raise Misconfigured("token-certificate", "not PEM certificates") from exc
        if not same or len(chain) > MAX_X5C:
            raise Misconfigured(
                "token-certificate",
                "the first certificate is not that of the token key",
                expected=f"the key of `token-key csr`, and at most {MAX_X5C} certificates",
                got=f"{len(chain)} certificates",
            )
        return replace(self, x5c=tuple(b64(c.public_bytes(Encoding.DER)) for c in chain))

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Public keys, current first."""
        return {"keys": [key.public_jwk for key in (self.current, *self.previous)]}


def render_token(attested: Attested, authority: TokenAuthority) -> str:
    """Sign the result."""
    return sign_es256(authority.protected, compact(token_claims(attested, authority)), authority.current.private)


def token_claims(attested: Attested, authority: TokenAuthority) -> dict[str, Any]:
    """The claims set. `iat`, `exp` and `nbf` are integers: the Rust client refuses others (keybroker.md 4.2, 32)."""
    issued = int(attested.issued.timestamp())
    appraisals = {appraisal.submod: appraisal for appraisal in attested.appraisals}
    submods: dict[str, Any] = {}
    for name, part in attested.facts.submods():
        body = _appraised(appraisals[name])
        submods[name] = body | _evidence(part, attested)
    claims: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iss": authority.issuer,
        "aud": authority.audience,
        "iat": issued,
        "nbf": issued,
        "exp": int(attested.expires.timestamp()),
        "jti": attested.jti,
        "cnf": {"jkt": attested.jkt},
        "ear.verifier-id": _VERIFIER,
        "colocation": "not-proven",
        "submods": submods,
    }
    if attested.simulated:
        claims["dbgstat"] = "enabled"
        claims["simulated"] = True
    return claims


def _appraised(appraisal: Appraisal) -> dict[str, Any]:
    return {
        "ear.status": str(appraisal.status),
        "ear.trustworthiness-vector": appraisal.vector.to_json(),
    }


def _evidence(part: Submod, attested: Attested) -> dict[str, Any]:
    if isinstance(part, CpuFacts):
        return _cpu(part, attested)
    return _sample_device(part, attested) if isinstance(part, SampleDeviceFacts) else _device(part)


def _cpu(cpu: CpuFacts, attested: Attested) -> dict[str, Any]:
    digest = attested.facts.init_data_digest
    identifiers = validated_identifiers(attested.facts.init_data_claims)
    return {
        "ear.appraisal-policy-id": next(a.policy_id for a in attested.appraisals if a.submod == "cpu0"),
        "ear.veraison.annotated-evidence": {
            str(cpu.tee): {"measurement": cpu.measurement, "product": cpu.product, "chip_id": cpu.chip_id[:32]},
            "init_data": None if digest is None else str(digest),
            "claims_digest": _digest(cpu.claims),
            # Where upstream's key broker looks for the key (keybroker.md 1.12).
            "runtime_data_claims": _runtime_data(attested),
        },
    } | ({"ear.trustee.identifiers": {"validated": identifiers}} if identifiers else {})


def _device(device: DeviceFacts) -> dict[str, Any]:
    return {"ueid": device.chip_id, "claims": _digest(device.claims)}


def _sample_device(device: SampleDeviceFacts, attested: Attested) -> dict[str, Any]:
    evidence = {"sampledevice": {"svn": device.svn}, "runtime_data_claims": _runtime_data(attested)}
    return {"simulated": True, "ear.veraison.annotated-evidence": evidence}


def _runtime_data(attested: Attested) -> dict[str, Any]:
    return {"nonce": attested.nonce, "tee-pubkey": dict(attested.tee_key)}


def _digest(claims: object) -> str:
    return b64url(hashlib.sha256(canonical(claims)).digest())


def verify_token(token: str, authority: TokenAuthority, *, now: datetime) -> str:
    """Our own token to its `jti`, or Untrusted. The record under `jti` is what decisions are made from."""
    if len(token) > MAX_TOKEN_BYTES:
        raise Untrusted("token-size", "token is too long", expected=MAX_TOKEN_BYTES, got=len(token))
    keys = {key.kid: key for key in (authority.current, *authority.previous)}
    # The header is read before the signature only to pick one of our own keys; the algorithm is fixed.
    kid = token_header(token).get("kid")
    if not isinstance(kid, str) or kid not in keys:
        raise Untrusted("token-key", "not signed by a key of this broker", expected="|".join(keys), got="another")
    payload = verified_payload(token, keys[kid].key, "ES256")
    claims = require_object(parse_json(payload, max_bytes=MAX_TOKEN_BYTES, what="claims"), "claims")
    for name, want in (("iss", authority.issuer), ("aud", authority.audience)):
        if claims.get(name) != want:
            raise Untrusted(f"token-{name}", f"wrong {name}", expected=want, got=repr(claims.get(name))[:80])
    _in_time(claims, now)
    jti = claims.get("jti")
    if not isinstance(jti, str):
        raise Untrusted("token-id", "token has no id", where="jti")
    return jti


def _in_time(claims: Mapping[str, object], now: datetime) -> None:
    at, leeway = now.timestamp(), LEEWAY.total_seconds()
    expires, starts = claims.get("exp"), claims.get("nbf")
    if type(expires) is not int or at > expires + leeway:
        raise Untrusted("token-expired", "token is expired", expected="exp in the future", got=expires)
    if type(starts) is not int or at < starts - leeway:
        raise Untrusted("token-early", "token is not valid yet", expected="nbf in the past", got=starts)
