"""The key pair of NRAS-shaped tokens: a P-384 key and a self-signed certificate, as files."""

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from attestation.errors import Misconfigured
from attestation.sources.atomic import write_atomic

VALIDITY = timedelta(days=5 * 365)  # replaced by making another pair; clients follow the key set
_SKEW = timedelta(hours=1)


def write_eat_key(key: Path, certificate: Path, *, name: str, now: datetime) -> None:
    """A new pair; the key readable by its owner alone. Existing files are refused."""
    for path in (key, certificate):
        if path.exists():
            raise Misconfigured("file-exists", "will not overwrite a key", where=str(path))
    made = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issued = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(made, hashes.SHA384())
    )
    write_atomic(key, made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    write_atomic(certificate, issued.public_bytes(Encoding.PEM))
