"""Forged revocation documents: OCSP responses and CRLs signed by whatever key a case needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from attestation.simulate.pki import CertSpec, mint

_SHA384 = hashes.SHA384()


@dataclass(frozen=True, slots=True)
class Signer:
    """A certificate and its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def delegate(
    issuer: Signer,
    *,
    now: datetime,
    days: int = 30,
    ocsp_signing: bool = True,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    digest: hashes.SHA224 | hashes.SHA384 = _SHA384,
) -> Signer:
    """A responder certificate made by `issuer`, valid from a day before `now`; marked for OCSP signing or not."""
    key = key or ec.generate_private_key(ec.SECP384R1())
    usage = ExtendedKeyUsageOID.OCSP_SIGNING if ocsp_signing else ExtendedKeyUsageOID.CODE_SIGNING
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "SIMULATED OCSP responder")]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.OCSPNoCheck(), critical=False)
        .sign(issuer.key, digest)
    )
    return Signer(certificate, key)


def forge_ocsp(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    signer: Signer,
    *,
    this_update: datetime,
    next_update: datetime | None,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    reason: x509.ReasonFlags | None = None,
    nonce: bytes | None = None,
    cert_id_hash: hashes.HashAlgorithm | None = None,
    by_name: bool = False,
    before: Sequence[x509.Certificate] = (),
    digest: hashes.HashAlgorithm = _SHA384,
) -> bytes:
    """DER of an OCSP response about `certificate` by `signer`, which is included unless it is the issuer itself.

    It is named by its key, or by its name; `before` are certificates ahead of its own.
    """
    builder = (
        ocsp.OCSPResponseBuilder()
        .add_response(
            cert=certificate,
            issuer=issuer,
            algorithm=cert_id_hash or hashes.SHA384(),
            cert_status=status,
            this_update=this_update,
            next_update=next_update,
            revocation_time=this_update if status is ocsp.OCSPCertStatus.REVOKED else None,
            revocation_reason=reason,
        )
        .responder_id(
            ocsp.OCSPResponderEncoding.NAME if by_name else ocsp.OCSPResponderEncoding.HASH, signer.certificate
        )
    )
    if signer.certificate != issuer:
        builder = builder.certificates([*before, signer.certificate])
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.sign(signer.key, digest).public_bytes(Encoding.DER)


def forge_crl(
    issuer: Signer,
    revoked: dict[int, x509.ReasonFlags | None],
    *,
    last_update: datetime,
    next_update: datetime,
    extensions: tuple[tuple[x509.ExtensionType, bool], ...] = (),
    digest: hashes.SHA256 | hashes.SHA384 | hashes.SHA512 = _SHA384,
) -> bytes:
    """DER of a CRL that lists serial numbers with their reasons; `extensions` are (value, critical) pairs."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(last_update)
        .next_update(next_update)
    )
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    for serial, reason in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(last_update)
        if reason is not None:
            entry = entry.add_extension(x509.CRLReason(reason), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, digest).public_bytes(Encoding.DER)


def forge_chain_answers(
    specs: Sequence[CertSpec], *, this_update: datetime, next_update: datetime
) -> list[tuple[int, bytes]]:
    """GOOD for every certificate of a forged chain but its root, each signed by its issuer: (serial number, DER)."""
    certificates = mint(specs)
    return [
        (
            certificate.serial_number,
            forge_ocsp(certificate, issuer, Signer(issuer, spec.key), this_update=this_update, next_update=next_update),
        )
        for certificate, issuer, spec in zip(certificates[:-1], certificates[1:], specs[1:], strict=True)
    ]
