"""A test PKI: certificates from specifications, keys from a seed. Every certificate says what it is: simulated.

Keys, serial numbers and signatures are functions of the seed, so forged evidence is reproducible byte for byte.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

_ORDER = int(  # SEC 2 section 2.5.1: n of secp384r1
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)
EPOCH = datetime(2020, 10, 17, tzinfo=UTC)
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # what genuine device certificates have

SIGNING = frozenset({"digital_signature"})
CERTIFYING = frozenset({"key_cert_sign", "crl_sign"})
_USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip

SigningKey = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class CertSpec:
    """One certificate to be. `ca` None leaves basicConstraints out; `usage` None leaves keyUsage out."""

    name: str
    key: SigningKey
    serial: int
    name_serial: str = ""
    ca: bool | None = None
    path_length: int | None = None
    usage: frozenset[str] | None = SIGNING
    not_before: datetime = EPOCH
    not_after: datetime = FOREVER
    extensions: tuple[x509.ExtensionType, ...] = ()
    critical: tuple[x509.ExtensionType, ...] = ()
    digest: hashes.SHA256 | hashes.SHA384 = field(default_factory=hashes.SHA384)


def derive_key(seed: str, label: str) -> SigningKey:
    """The P-384 key that belongs to a label under a seed. For test evidence only: who knows the seed has the key."""
    raw = hashlib.sha512(f"{seed}\0{label}".encode()).digest()
    return ec.derive_private_key(int.from_bytes(raw, "big") % (_ORDER - 1) + 1, ec.SECP384R1())


def spki(key: SigningKey | rsa.RSAPrivateKey) -> bytes:
    """DER SubjectPublicKeyInfo."""
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def sign_raw(key: SigningKey, data: bytes) -> bytes:
    """ECDSA P-384 with SHA-384 as raw r||s, reproducible (RFC 6979)."""
    der = key.sign(data, ec.ECDSA(hashes.SHA384(), deterministic_signing=True))
    r, s = decode_dss_signature(der)
    return r.to_bytes(48, "big") + s.to_bytes(48, "big")


def mint(specs: Sequence[CertSpec]) -> tuple[x509.Certificate, ...]:
    """Certificates leaf first; each is signed by the next one's key, the last by its own."""
    issuers = (*specs[1:], specs[-1])
    return tuple(_issue(spec, issuer) for spec, issuer in zip(specs, issuers, strict=True))


def to_pem(certificates: Sequence[x509.Certificate]) -> bytes:
    """PEM blocks one after the other."""
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def _issue(spec: CertSpec, issuer: CertSpec) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(spec))
        .issuer_name(_name(issuer))
        .public_key(spec.key.public_key())
        .serial_number(spec.serial)
        .not_valid_before(spec.not_before)
        .not_valid_after(spec.not_after)
    )
    if spec.ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=spec.ca, path_length=spec.path_length), critical=True)
    if spec.usage is not None:
        usage = x509.KeyUsage(**{name: name in spec.usage for name in _USAGES})
        builder = builder.add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(spec.key.public_key()), critical=False)
    for extension in (*spec.extensions, *spec.critical):
        builder = builder.add_extension(extension, critical=extension in spec.critical)
    return builder.sign(issuer.key, spec.digest, ecdsa_deterministic=True)


def _name(spec: CertSpec) -> x509.Name:
    attributes = [
        x509.NameAttribute(NameOID.COMMON_NAME, spec.name),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "SIMULATED - proves nothing"),
    ]
    if spec.name_serial:
        attributes.append(x509.NameAttribute(NameOID.SERIAL_NUMBER, spec.name_serial))
    return x509.Name(attributes)
