"""Certificates for loopback listeners and for administrators."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


@dataclass(frozen=True, kw_only=True)
class Pair:
    """PEM certificate and key in two files."""

    certificate: Path
    key: Path

    def write(self, made: "tuple[bytes, bytes]") -> None:
        """Replace both, each by renaming, as a certificate manager does."""
        for path, content in zip((self.certificate, self.key), made, strict=True):
            fresh = path.with_suffix(".new")
            fresh.write_bytes(content)
            fresh.rename(path)


def make(name: str, *, issuer: "tuple[bytes, bytes] | None" = None) -> tuple[bytes, bytes]:
    """A certificate for 127.0.0.1, self-signed or under `issuer`; valid around the machine's own clock."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signer, by = key, subject
    if issuer is not None:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        loaded = load_pem_private_key(issuer[1], None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        signer, by = loaded, x509.load_pem_x509_certificate(issuer[0]).subject
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(signer, hashes.SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), secret


def pair(folder: Path, name: str, made: tuple[bytes, bytes] | None = None) -> Pair:
    """Written to two files."""
    found = Pair(certificate=folder / f"{name}.crt", key=folder / f"{name}.key")
    found.write(made or make(name))
    return found
