"""A three-certificate test PKI and fixed times, shared by the collateral tests."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.attestation.forged_revocation import Signer

NOW = datetime(2026, 11, 21, tzinfo=UTC)
DAY = timedelta(days=1)
CRL_URL = "http://crl.example/ca.crl"


def certify(name: str, issuer: Signer | None, *, ca: bool, serial: int, crl_sign: bool = True) -> Signer:
    """A P-384 certificate under `issuer`, or self-signed."""
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(NOW - 400 * DAY)
        .not_valid_after(NOW + 400 * DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(
            x509.CRLDistributionPoints(
                [x509.DistributionPoint([x509.UniformResourceIdentifier(CRL_URL)], None, None, None)]
            ),
            critical=False,
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=not ca,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=ca,
                crl_sign=ca and crl_sign,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    return Signer(builder.sign(issuer.key if issuer else key, hashes.SHA384()), key)


@dataclass(frozen=True, slots=True)
class Pki:
    """Root, CA and two leaves of one CA; a second CA with the first one's name."""

    root: Signer
    ca: Signer
    leaf: Signer
    other_leaf: Signer
    impostor: Signer


@pytest.fixture(scope="session")
def pki() -> Pki:
    root = certify("SIMULATED root", None, ca=True, serial=1)
    ca = certify("SIMULATED CA", root, ca=True, serial=2)
    return Pki(
        root=root,
        ca=ca,
        leaf=certify("SIMULATED leaf", ca, ca=False, serial=0x1001),
        other_leaf=certify("SIMULATED other", ca, ca=False, serial=0x1002),
        impostor=certify("SIMULATED CA", None, ca=True, serial=2),
    )
