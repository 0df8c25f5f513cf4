"""Complete CRLs (RFC 5280 section 5) as stored bytes: NVIDIA device CAs, AMD ARK, Intel PCK and root.

Delta and indirect CRLs, CRLs for some reasons only, and CRLs of another distribution point are refused: they prove
less than "not listed means good".
"""

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import SignatureAlgorithmOID

from attestation.errors import Malformed, Untrusted
from attestation.values import Digest
from attestation.verify.cache import BoundedCache
from attestation.verify.statement import Said, Statement
from attestation.verify.unreadable import UNREADABLE

MAX_CRL_BYTES = 4 * 1024 * 1024  # Intel's platform CRL is under 100 kB; 4 MiB leaves room for years of entries
_ALGORITHMS = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,  # Intel
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,  # NVIDIA
        SignatureAlgorithmOID.RSASSA_PSS,  # AMD (SHA-384, tee.md 1.5)
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
    }
)
_HASHES = (hashes.SHA256, hashes.SHA384)
_UNDERSTOOD = (x509.AuthorityKeyIdentifier, x509.CRLNumber, x509.IssuingDistributionPoint, x509.FreshestCRL)


CrlCache = BoundedCache[x509.CertificateRevocationList]


def verify_crl(der: bytes, issuer: x509.Certificate, cache: CrlCache | None = None) -> x509.CertificateRevocationList:
    """A CRL that `issuer` signed and was allowed to sign, complete in kind; time and scope are judged later.

    `cache` keeps what verified. Raises Malformed or Untrusted.
    """
    known = cache.get((der, issuer)) if cache is not None else None
    if known is not None:
        return known
    if len(der) > MAX_CRL_BYTES:
        raise Malformed("crl-size", "CRL too large", expected=f"at most {MAX_CRL_BYTES}", got=len(der))
    try:
        crl = x509.load_der_x509_crl(der)
        _require_signed(crl, issuer)
    except UNREADABLE as exc:
        raise Malformed("crl-der", "not a CRL", expected="DER of RFC 5280", got=str(exc)) from exc
    if cache is not None:
        cache.put((der, issuer), crl)
    return crl


def _require_signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> None:
    """Issuer, algorithm, right to sign, extensions and signature, in this order."""
    if crl.issuer != issuer.subject:
        raise Untrusted("crl-issuer", "CRL of another issuer", expected=issuer.subject.rfc4514_string())
    if crl.signature_algorithm_oid not in _ALGORITHMS or not isinstance(crl.signature_hash_algorithm, _HASHES):
        raise Untrusted("crl-algorithm", "CRL signature algorithm is not allowed", got=crl.signature_algorithm_oid)
    _require_crl_sign(issuer)
    for extension in crl.extensions:
        if extension.critical and not isinstance(extension.value, _UNDERSTOOD):
            raise Untrusted("crl-extension", "CRL has a critical extension we do not know", got=extension.oid)
    key = issuer.public_key()
    if not isinstance(key, (ec.EllipticCurvePublicKey, rsa.RSAPublicKey)) or not crl.is_signature_valid(key):
        raise Untrusted("crl-signature", "CRL signature does not verify")


def _require_crl_sign(issuer: x509.Certificate) -> None:
    try:
        usage = issuer.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return  # RFC 5280 6.3.3 (f): only if the extension is there
    except UNREADABLE as exc:
        raise Malformed("crl-issuer", "unreadable extensions of the CRL's issuer", got=str(exc)) from exc
    if not usage.crl_sign:
        raise Untrusted("crl-issuer", "the issuer's key is not for signing CRLs", expected="keyUsage cRLSign")


def _require_scope(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> None:
    """RFC 5280 5.2.5: a CRL that covers this certificate, for every reason."""
    try:
        scope = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    except x509.ExtensionNotFound:
        return
    is_ca = False
    names: list[x509.GeneralName] = []
    try:
        for extension in certificate.extensions:
            if isinstance(extension.value, x509.BasicConstraints):
                is_ca = extension.value.ca
            elif isinstance(extension.value, x509.CRLDistributionPoints):
                names += [name for point in extension.value for name in point.full_name or ()]
    except UNREADABLE as exc:
        raise Malformed("crl-scope", "unreadable extensions of the certificate", got=str(exc)) from exc
    partial = scope.indirect_crl or scope.only_some_reasons or scope.only_contains_attribute_certs
    wrong_kind = scope.only_contains_user_certs if is_ca else scope.only_contains_ca_certs
    elsewhere = scope.relative_name is not None or (
        scope.full_name is not None and not any(name in names for name in scope.full_name)
    )
    if partial or wrong_kind or elsewhere:
        raise Untrusted("crl-scope", "the CRL does not cover this certificate")


def read_crl(
    der: bytes,
    *,
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    now: datetime,
    cache: CrlCache | None = None,
) -> Statement:
    """What a stored CRL says about `certificate`. Raises Malformed or Untrusted."""
    crl = verify_crl(der, issuer, cache)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    try:
        _require_scope(crl, certificate)
        if now < crl.last_update_utc:
            raise Untrusted("crl-future", "the CRL is from the future", expected=f"<= {now}", got=crl.last_update_utc)
        said, reason = _said(crl.get_revoked_certificate_by_serial_number(certificate.serial_number))
        return Statement(
            said=said,
            reason=reason,
            since=crl.last_update_utc,
            until=crl.next_update_utc,
            source="crl",
            document=Digest("sha256", digest.finalize()),
        )
    except UNREADABLE as exc:
        raise Malformed("crl-der", "unreadable entry in CRL", got=str(exc)) from exc


def _said(entry: x509.RevokedCertificate | None) -> tuple[Said, str]:
    if entry is None:
        return Said.GOOD, ""
    try:
        flag = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    except (x509.ExtensionNotFound, *UNREADABLE):
        flag = x509.ReasonFlags.unspecified  # an unreadable reason is still a revocation
    return (Said.HELD if flag is x509.ReasonFlags.certificate_hold else Said.REVOKED), str(flag.value)
