"""Other attestation services for tests: certificate chains of their signers, and tokens as upstream's look."""

import json
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from joserfc import jws
from joserfc.jwk import ECKey

from attestation.crypto.b64 import b64
from attestation.crypto.jwk import ec_coordinates, tee_key_of
from tests.attestation.broker.broker import NOW

CLAIMS = "ear.veraison.annotated-evidence"


@dataclass(kw_only=True)
class Signer:
    """A key with a certificate."""

    name: str
    issuer: "Signer | None" = None
    authority: bool = True
    days: int = 30
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        above = self.issuer or self
        builder = x509.CertificateBuilder(
            issuer_name=_name(above.name),
            subject_name=_name(self.name),
            public_key=self.key.public_key(),
            serial_number=abs(hash(self.name)) % 10**9 + 1,
            not_valid_before=NOW - timedelta(days=60),
            not_valid_after=NOW + timedelta(days=self.days),
        ).add_extension(x509.BasicConstraints(ca=self.authority, path_length=None), critical=True)
        self.certificate = builder.sign(above.key, SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def x5c(self) -> str:
        return b64(self.certificate.public_bytes(Encoding.DER))

    @property
    def jwk(self) -> dict[str, Any]:
        return {"kty": "EC", "crv": "P-256", "alg": "ES256", **ec_coordinates(self.key.public_key())}

    def token(self, claims: dict[str, Any], **header: Any) -> str:
        key = ECKey.import_key(self.key)
        payload = json.dumps(claims).encode()
        return jws.serialize_compact({"typ": "JWT", "alg": "ES256", **header}, payload, key, algorithms=["ES256"])


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def tee_jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    return dict(tee_key_of(key.public_key()).jwk)


def foreign_claims(key: ec.EllipticCurvePrivateKey, tee: str = "snp", **changes: Any) -> dict[str, Any]:
    """An EAR of upstream's attestation service (keybroker.md 3.1): CPU and GPU affirming."""
    evidence = {tee: {"measurement": "00" * 48}, "runtime_data_claims": {"nonce": "n", "tee-pubkey": tee_jwk(key)}}
    at = int(NOW.timestamp())
    submods = {
        "cpu0": {"ear.status": "affirming", CLAIMS: evidence},
        "gpu0": {"ear.status": "affirming", CLAIMS: {"nvidia": {"secboot": True}}},
    }
    return {"iss": "CoCo-Attestation-Service", "iat": at, "exp": at + 300, "submods": submods} | changes
