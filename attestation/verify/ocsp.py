"""OCSP responses (RFC 6960) as stored bytes: who may sign them, and what they say about one certificate.

Nothing is asked of a network. Peers take the first certificate of the response as signer and never compare the
CertID (gpu-attestation.md 2.4); here a response counts only if the issuer, or a certificate that the issuer made for
OCSP signing, signed it, and if its CertID names exactly this issuer and serial number.
"""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from attestation.errors import Malformed, Untrusted
from attestation.values import Digest
from attestation.verify.cache import BoundedCache
from attestation.verify.statement import Said, Statement
from attestation.verify.unreadable import UNREADABLE

MAX_OCSP_BYTES = 64 * 1024  # genuine answers are 1-3 kB with one delegated certificate
MAX_OCSP_SIGNERS = 4  # certificates inside one response

# What is not in the table is refused; RSA-PSS is absent because no NVIDIA responder is known to use it.
_ECDSA: dict[x509.ObjectIdentifier, hashes.HashAlgorithm] = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: hashes.SHA256(),
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: hashes.SHA384(),
    SignatureAlgorithmOID.ECDSA_WITH_SHA512: hashes.SHA512(),
}
_RSA: dict[x509.ObjectIdentifier, hashes.HashAlgorithm] = {
    SignatureAlgorithmOID.RSA_WITH_SHA256: hashes.SHA256(),
    SignatureAlgorithmOID.RSA_WITH_SHA384: hashes.SHA384(),
    SignatureAlgorithmOID.RSA_WITH_SHA512: hashes.SHA512(),
}
_CERT_ID_HASHES = (hashes.SHA1, hashes.SHA256, hashes.SHA384)  # an identifier, not a signature: SHA-1 is harmless
_SMALLEST_RSA_BITS = 2048  # NIST SP 800-131A


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedOcsp:
    """A response whose signature and signer were checked. Holds no judgement about time."""

    response: ocsp.OCSPResponse
    signer: x509.Certificate
    delegated: bool
    digest: Digest


def _load(der: bytes) -> ocsp.OCSPResponse:
    if len(der) > MAX_OCSP_BYTES:
        raise Malformed("ocsp-size", "OCSP response too large", expected=f"at most {MAX_OCSP_BYTES}", got=len(der))
    try:
        response = ocsp.load_der_ocsp_response(der)
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise Untrusted("ocsp-refused", "the responder did not answer", got=response.response_status.name.lower())
        # Decoding is lazy: touch what is used later, so that nothing raises after this function.
        _ = response.certificates, response.responder_name, response.signature
        critical = [e.oid for e in response.extensions if e.critical and not isinstance(e.value, x509.OCSPNonce)]
    except UNREADABLE as exc:
        raise Malformed("ocsp-der", "not an OCSP response", expected="DER of RFC 6960", got=str(exc)) from exc
    if critical:
        raise Untrusted("ocsp-extension", "response has a critical extension we do not know", got=critical[0])
    return response


def _named_by(response: ocsp.OCSPResponse, certificate: x509.Certificate) -> bool:
    """Whether the ResponderID means this certificate: by subject, or by SHA-1 of its key."""
    if response.responder_name is not None:
        return response.responder_name == certificate.subject
    key_hash = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest
    return response.responder_key_hash == key_hash


def _require_delegation(signer: x509.Certificate, issuer: x509.Certificate) -> None:
    """RFC 6960 4.2.2.2: issued *directly* by the CA in question and marked for OCSP signing."""
    try:
        if signer.signature_algorithm_oid not in {*_ECDSA, *_RSA}:
            raise Untrusted("ocsp-algorithm", "algorithm of the signer's certificate is not allowed")
        signer.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE) as exc:
        raise Untrusted("ocsp-signer", "OCSP signer was not issued by the certificate's issuer") from exc
    try:
        usages = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, *UNREADABLE) as exc:
        raise Untrusted("ocsp-signer", "OCSP signer has no usable extended key usage") from exc
    if ExtendedKeyUsageOID.OCSP_SIGNING not in usages:
        raise Untrusted("ocsp-signer", "certificate is not marked for OCSP signing", expected="id-kp-OCSPSigning")


def _signer(response: ocsp.OCSPResponse, issuer: x509.Certificate) -> x509.Certificate:
    if _named_by(response, issuer):
        return issuer
    if len(response.certificates) > MAX_OCSP_SIGNERS:
        raise Malformed(
            "ocsp-signers", "too many certificates", expected=MAX_OCSP_SIGNERS, got=len(response.certificates)
        )
    for candidate in response.certificates:
        if _named_by(response, candidate):
            _require_delegation(candidate, issuer)
            return candidate
    raise Untrusted("ocsp-signer", "the responder is neither the issuer nor a certificate in the response")


def _require_signature(response: ocsp.OCSPResponse, signer: x509.Certificate) -> None:
    key, oid = signer.public_key(), response.signature_algorithm_oid
    try:
        if isinstance(key, ec.EllipticCurvePublicKey) and oid in _ECDSA:
            key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(_ECDSA[oid]))
        elif isinstance(key, rsa.RSAPublicKey) and oid in _RSA and key.key_size >= _SMALLEST_RSA_BITS:
            key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), _RSA[oid])
        else:
            raise Untrusted("ocsp-algorithm", "OCSP signature algorithm is not allowed", got=oid.dotted_string)
    except InvalidSignature as exc:
        raise Untrusted("ocsp-signature", "OCSP signature does not verify") from exc


OcspCache = BoundedCache[VerifiedOcsp]


def verify_ocsp(der: bytes, issuer: x509.Certificate, cache: OcspCache | None = None) -> VerifiedOcsp:
    """Check the signature of a response and the right of its signer to speak for `issuer`; time is judged later.

    `cache` keeps what verified. Raises Malformed or Untrusted.
    """
    known = cache.get((der, issuer)) if cache is not None else None
    if known is not None:
        return known
    response = _load(der)
    try:
        signer = _signer(response, issuer)
        _require_signature(response, signer)
    except UNREADABLE as exc:
        raise Malformed("ocsp-der", "unreadable certificate in OCSP response", got=str(exc)) from exc
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    verified = VerifiedOcsp(
        response=response, signer=signer, delegated=signer is not issuer, digest=Digest("sha256", digest.finalize())
    )
    if cache is not None:
        cache.put((der, issuer), verified)
    return verified


def _require_nonce(response: ocsp.OCSPResponse, nonce: bytes | None) -> None:
    if nonce is None:
        return
    try:
        got: bytes | None = response.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
    except x509.ExtensionNotFound:
        got = None
    if got != nonce:
        raise Untrusted(
            "ocsp-nonce", "the answer is not to this question", expected=nonce.hex(), got=got.hex() if got else "none"
        )


def _is_about(single: ocsp.OCSPSingleResponse, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """CertID equality: hash algorithm allowed, both issuer hashes and the serial number."""
    if single.serial_number != certificate.serial_number or not isinstance(single.hash_algorithm, _CERT_ID_HASHES):
        return False
    want = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, single.hash_algorithm).build()
    return single.issuer_key_hash == want.issuer_key_hash and single.issuer_name_hash == want.issuer_name_hash


def _said(single: ocsp.OCSPSingleResponse) -> tuple[Said, str]:
    if single.certificate_status is ocsp.OCSPCertStatus.GOOD:
        return Said.GOOD, ""
    if single.certificate_status is ocsp.OCSPCertStatus.UNKNOWN:
        return Said.UNKNOWN, ""
    reason = single.revocation_reason or x509.ReasonFlags.unspecified
    return (Said.HELD if reason is x509.ReasonFlags.certificate_hold else Said.REVOKED), str(reason.value)


def _until(single: ocsp.OCSPSingleResponse, verified: VerifiedOcsp) -> datetime | None:
    """A delegated signer speaks only within its own validity."""
    if not verified.delegated:
        return single.next_update_utc
    end = verified.signer.not_valid_after_utc
    return end if single.next_update_utc is None else min(end, single.next_update_utc)


def read_ocsp(
    der: bytes,
    *,
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    now: datetime,
    nonce: bytes | None,
    cache: OcspCache | None = None,
) -> tuple[Statement, x509.Certificate | None]:
    """What a stored response says about `certificate`, and the delegated signer if there is one.

    `nonce`: of the request this must answer; None for a stored response, whose replay is bounded by freshness alone.
    Raises Malformed or Untrusted; `ocsp-other-certificate` where it speaks of others only.
    """
    verified = verify_ocsp(der, issuer, cache)
    _require_nonce(verified.response, nonce)
    try:
        single = next((s for s in verified.response.responses if _is_about(s, certificate, issuer)), None)
        if single is None:
            raise Untrusted("ocsp-other-certificate", "the response is about another certificate")
        statement = _statement(single, verified, now)
    except UNREADABLE as exc:
        raise Malformed("ocsp-der", "unreadable answer in OCSP response", got=str(exc)) from exc
    return statement, verified.signer if verified.delegated else None


def _statement(single: ocsp.OCSPSingleResponse, verified: VerifiedOcsp, now: datetime) -> Statement:
    said, reason = _said(single)
    since = single.this_update_utc
    if now < since:
        raise Untrusted("ocsp-future", "the response is from the future", expected=f"<= {now}", got=since)
    if verified.delegated and since < verified.signer.not_valid_before_utc:
        raise Untrusted("ocsp-signer", "the response is older than its signer's certificate", got=since)
    return Statement(
        said=said,
        reason=reason,
        since=since,
        until=_until(single, verified),
        source="ocsp",
        document=verified.digest,
    )
