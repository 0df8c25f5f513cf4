"""Detached EAT bundles in NRAS' shape, gpu-attestation.md 4.3: an overall token and one a device, tied by digests.

    [["JWT", overall], {"GPU-0": jwt, "SWITCH-0": jwt}]

These tokens have their own key, issuer and audience. They tell NVIDIA's clients what was verified and release nothing:
the broker does not know the key.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from attestation.appraise.nv_claims import ClaimsVersion, is_successful, nvidia_claims
from attestation.crypto.b64 import b64, b64url
from attestation.errors import Malformed, Misconfigured
from attestation.values import DeviceKind, JsonObject, JsonValue, Nonce
from attestation.verify.unreadable import UNREADABLE
from attestation.verify.verified import VerifiedDevice

SUBJECT = "NVIDIA-PLATFORM-ATTESTATION"
LIFETIME = timedelta(hours=1)  # as NRAS
COORDINATE_BYTES = 48
_NAMES = {DeviceKind.GPU: "GPU", DeviceKind.NVSWITCH: "SWITCH"}


@dataclass(frozen=True)
class EatKey:
    """A P-384 key that signs ES384, and its certificate, which NVIDIA's client takes from `x5c`."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate

    @classmethod
    def of(cls, key_pem: bytes, certificate_pem: bytes) -> "EatKey":
        """From PEM. Raises Misconfigured unless both are P-384 and belong together."""
        try:
            key = load_pem_private_key(key_pem, password=None)
            certificate = x509.load_pem_x509_certificate(certificate_pem)
            matches = certificate.public_key() == key.public_key()
        except UNREADABLE as exc:
            raise Misconfigured("eat-key", "unreadable key or certificate", expected="PEM") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1) or not matches:
            raise Misconfigured("eat-key", "not a P-384 key with its certificate", got=type(key).__name__)
        return cls(key, certificate)

    @cached_property
    def kid(self) -> str:
        """Names key and certificate."""
        return f"kata-gpu-eat-{self.certificate.fingerprint(hashes.SHA256()).hex()[:32]}"

    def jwks(self) -> JsonObject:
        """Public key as NRAS publishes its own."""
        numbers = self.key.public_key().public_numbers()
        return {
            "keys": [
                {
                    "kty": "EC",
                    "crv": "P-384",
                    "alg": "ES384",
                    "use": "sig",
                    "kid": self.kid,
                    "x": b64url(numbers.x.to_bytes(COORDINATE_BYTES, "big")),
                    "y": b64url(numbers.y.to_bytes(COORDINATE_BYTES, "big")),
                    "x5c": [b64(self.certificate.public_bytes(Encoding.DER))],
                }
            ]
        }

    def sign(self, claims: JsonObject) -> str:
        """Compact JWS, ES384, header `kid` and `alg` as NRAS has it."""
        parts = [{"kid": self.kid, "alg": "ES384"}, claims]
        text = ".".join(b64url(json.dumps(part, separators=(",", ":")).encode()) for part in parts)
        r, s = decode_dss_signature(self.key.sign(text.encode(), ec.ECDSA(hashes.SHA384())))
        signature = r.to_bytes(COORDINATE_BYTES, "big") + s.to_bytes(COORDINATE_BYTES, "big")
        return f"{text}.{b64url(signature)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EatTerms:
    """What every token of one answer says. `audience` None leaves `aud` out: NVIDIA's Python client refuses tokens
    that name an audience, because it never names itself.
    """

    issuer: str
    audience: str | None
    issued: datetime
    version: ClaimsVersion
    new_id: Callable[[], str]

    def claims(self, nonce: Nonce) -> dict[str, JsonValue]:
        """Issuer, times, nonce and a new id."""
        issued = int(self.issued.timestamp())
        times: dict[str, JsonValue] = {"iat": issued, "nbf": issued, "exp": issued + int(LIFETIME.total_seconds())}
        audience: dict[str, JsonValue] = {} if self.audience is None else {"aud": self.audience}
        return {"iss": self.issuer, "eat_nonce": nonce.hex(), "jti": self.new_id(), **times, **audience}


def submod_names(devices: Sequence[VerifiedDevice]) -> list[str]:
    """GPU-0, GPU-1, SWITCH-0, in the order of the evidence."""
    counts = dict.fromkeys(DeviceKind, 0)
    names = []
    for device in devices:
        names.append(f"{_NAMES[device.kind]}-{counts[device.kind]}")
        counts[device.kind] += 1
    return names


def detached_eat(
    devices: Sequence[VerifiedDevice],
    nonce: Nonce,
    *,
    key: EatKey,
    terms: EatTerms,
    rim_chains: Sequence[Mapping[str, JsonObject]],
) -> list[JsonValue]:
    """The bundle about `devices`, all verified against `nonce`; `rim_chains` are those of each device by slot.

    The overall result is one `all()` over the devices; none is an error (Malformed).
    """
    if not devices:
        raise Malformed("eat-empty", "no devices", expected="at least one")
    submods: dict[str, JsonValue] = {}
    digests: dict[str, JsonValue] = {}
    for name, device, chains in zip(submod_names(devices), devices, rim_chains, strict=True):
        token = key.sign(nvidia_claims(device, terms.version, chains) | terms.claims(nonce))
        submods[name] = token
        digests[name] = ["DIGEST", ["SHA-256", hashlib.sha256(token.encode("ascii")).hexdigest()]]
    overall: dict[str, JsonValue] = {
        "sub": SUBJECT,
        "x-nvidia-ver": str(terms.version),
        "x-nvidia-overall-att-result": all(is_successful(device) for device in devices),
        "submods": digests,
    }
    return [["JWT", key.sign(overall | terms.claims(nonce))], submods]
