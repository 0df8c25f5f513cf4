"""The signature chain of a TDX quote in plain `cryptography`: an independent second opinion on dcap-qvl.

It proves signatures, names, dates and revocation of everything that Intel signed (tee.md 2.4 steps 1 to 3, 6 and 7).
TCB levels are not judged here. Verification consults it for a precise code when dcap-qvl refuses, and tests compare
the two on whole corpora.
"""

import hashlib
from base64 import b64decode
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from attestation.errors import Malformed, Untrusted
from attestation.formats.tdx_collateral import SignedStatement, TdxCollateral
from attestation.formats.tdx_quote import TdxQuote
from attestation.verify.cache import BoundedCache
from attestation.verify.tdx_trust import IntelTrust
from attestation.verify.unreadable import UNREADABLE, negative_or_zero_serial

_SHA256 = ec.ECDSA(hashes.SHA256())
TCB_SIGNING, PCK_LEAF = "Intel SGX TCB Signing", "Intel SGX PCK Certificate"
PCK_CAS = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
_MAX_CERTIFICATES = 256  # one a platform, and Intel's five
_MAX_LISTS = 16  # a few issues of Intel's lists and chains


@dataclass(frozen=True, slots=True)
class IssuerCertificates:
    """Everything X.509 that a verification looks at, parsed."""

    leaf: x509.Certificate
    pck_ca: x509.Certificate
    root: x509.Certificate


@dataclass(frozen=True, slots=True)
class X509Cache:
    """What was read before, owned by the caller. Nothing here was verified: that happens on every use."""

    certificates: BoundedCache[x509.Certificate] = field(default_factory=lambda: BoundedCache(_MAX_CERTIFICATES))
    lists: BoundedCache[x509.CertificateRevocationList] = field(default_factory=lambda: BoundedCache(_MAX_LISTS))
    chains: BoundedCache[tuple[x509.Certificate, ...]] = field(default_factory=lambda: BoundedCache(_MAX_LISTS))


def _load_certificate(der: bytes) -> x509.Certificate:
    if negative_or_zero_serial(der):
        raise Untrusted("tdx-certificate-serial", "serial number is not positive", where="tdx", expected="at least 1")
    try:
        certificate = x509.load_der_x509_certificate(der)
        # Decoding is lazy: touch what is used later, so that nothing raises after this function.
        certificate.public_key()
        _ = certificate.subject.rfc4514_string(), certificate.issuer, certificate.serial_number
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except UNREADABLE as exc:
        raise Malformed("tdx-certificate", "not a certificate", where="tdx") from exc
    return certificate


def _load_crl(der: bytes) -> x509.CertificateRevocationList:
    try:
        crl = x509.load_der_x509_crl(der)
        _ = crl.issuer.rfc4514_string(), crl.last_update_utc, crl.next_update_utc, crl.signature_hash_algorithm
    except UNREADABLE as exc:
        raise Malformed("tdx-crl", "not a revocation list", where="tdx") from exc
    return crl


def _certificate(der: bytes, cache: X509Cache) -> x509.Certificate:
    return cache.certificates.remember(der, lambda: _load_certificate(der))


def _crl(der: bytes, cache: X509Cache) -> x509.CertificateRevocationList:
    return cache.lists.remember(der, lambda: _load_crl(der))


def _pem_chain(pem: bytes, cache: X509Cache) -> tuple[x509.Certificate, ...]:
    def read() -> tuple[x509.Certificate, ...]:
        found = []
        for part in pem.split(b"-----BEGIN CERTIFICATE-----")[1:]:
            try:
                found.append(_certificate(b64decode(part.partition(b"-----END")[0]), cache))
            except ValueError as exc:
                raise Malformed("tdx-certificate", "not base64", where="tdx-collateral") from exc
        return tuple(found)

    return cache.chains.remember(pem, read)


def pck_chain(quote: TdxQuote, trust: IntelTrust, cache: X509Cache) -> IssuerCertificates:
    """The quote's own chain; its root certificate counts only if it is the pinned one. Raises Untrusted.

    Names as well, which dcap-qvl does not compare: Intel's root signs more than the two CAs of PCK certificates.
    """
    leaf, pck_ca, root = (_certificate(der, cache) for der in quote.pck_chain)
    got = hashlib.sha256(quote.pck_chain[2]).hexdigest()
    if got != trust.root_sha256:
        raise Untrusted(
            "tdx-anchor-mismatch", "root is not Intel's", where="pck_chain", expected=trust.root_sha256, got=got
        )
    names = (_common_name(leaf), _common_name(pck_ca))
    if names[0] != PCK_LEAF or names[1] not in PCK_CAS:
        raise Untrusted("tdx-chain-names", "not a PCK chain", where="pck_chain", expected=PCK_LEAF, got=names)
    return IssuerCertificates(leaf, pck_ca, root)


def verify_windows(
    quote: TdxQuote, collateral: TdxCollateral, trust: IntelTrust, now: datetime, cache: X509Cache
) -> None:
    """Every date: TCB info, QE identity, CRLs and certificates. Raises Untrusted.

    Certificates are valid through their last second (RFC 5280); collateral ends when its next update is due, which
    is how dcap-qvl judges lists.
    """
    chain = pck_chain(quote, trust, cache)
    for name, statement in (("tcb_info", collateral.tcb_info), ("qe_identity", collateral.qe_identity)):
        _require_window(name, statement.issue_date, statement.next_update, now)
        for certificate in _pem_chain(statement.chain, cache):
            _require_certificate(certificate, now)
    for name, data in (("root_crl", collateral.root_crl), ("pck_crl", collateral.pck_crl)):
        crl = _crl(data, cache)
        if crl.next_update_utc is None:
            raise Untrusted("tdx-crl-window", "list has no end", where=name)
        _require_window(name, crl.last_update_utc, crl.next_update_utc, now)
    for certificate in (chain.leaf, chain.pck_ca, chain.root):
        _require_certificate(certificate, now)


def _require_window(name: str, start: datetime, end: datetime, now: datetime) -> None:
    code = "tdx-collateral-future" if now < start else "tdx-collateral-expired" if now >= end else ""
    if code:
        raise Untrusted(
            code,
            "collateral is not valid at this time",
            where=name,
            expected=f"{start.isoformat()} to {end.isoformat()}",
            got=now.isoformat(),
        )


def _require_certificate(certificate: x509.Certificate, now: datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise Untrusted(
            "tdx-certificate-expired",
            "certificate is not valid at this time",
            where=certificate.subject.rfc4514_string(),
            expected=f"{certificate.not_valid_before_utc.isoformat()} to {certificate.not_valid_after_utc.isoformat()}",
            got=now.isoformat(),
        )


def verify_signatures(quote: TdxQuote, collateral: TdxCollateral, trust: IntelTrust, cache: X509Cache) -> None:
    """Every signature from the pinned root to the quote, and revocation. Raises the first that does not hold."""
    verify_quote_signatures(quote, trust, cache)
    chain = pck_chain(quote, trust, cache)
    root_crl, pck_crl = _crl(collateral.root_crl, cache), _crl(collateral.pck_crl, cache)
    _verify_crl(root_crl, chain.root, "root_crl")
    _verify_crl(pck_crl, chain.pck_ca, "pck_crl")
    _require_unrevoked(chain.pck_ca, root_crl)
    _require_unrevoked(chain.leaf, pck_crl)
    for name, statement in (("tcb_info", collateral.tcb_info), ("qe_identity", collateral.qe_identity)):
        _verify_statement(name, statement, _pem_chain(statement.chain, cache), chain.root, root_crl)


def verify_quote_signatures(quote: TdxQuote, trust: IntelTrust, cache: X509Cache) -> None:
    """Root, PCK CA, PCK, QE report, attestation key, quote: everything that the quote carries with it.

    Raises Untrusted.
    """
    chain = pck_chain(quote, trust, cache)
    for certificate, issuer in ((chain.root, chain.root), (chain.pck_ca, chain.root), (chain.leaf, chain.pck_ca)):
        _verify_issued(certificate, issuer)
    _verify_raw(_public_key(chain.leaf), quote.qe_signature, quote.qe_report.raw, "tdx-qe-signature")
    bound = hashlib.sha256(quote.attestation_key + quote.qe_auth).digest() + bytes(32)
    if quote.qe_report.report_data != bound:
        raise Untrusted(
            "tdx-attestation-key",
            "the QE report does not vouch for the attestation key",
            where="qe_report",
            expected=bound.hex(),
            got=quote.qe_report.report_data.hex(),
        )
    x, y = (int.from_bytes(quote.attestation_key[i : i + 32], "big") for i in (0, 32))
    try:
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except ValueError as exc:
        raise Untrusted("tdx-attestation-key", "not a point of P-256", where="attestation_key") from exc
    _verify_raw(key, quote.signature, quote.signed, "tdx-quote-signature")


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _public_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Untrusted("tdx-key", "not a P-256 key", where=_common_name(certificate), expected="P-256")
    return key


def _verify_raw(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes, code: str) -> None:
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), data, _SHA256)
    except InvalidSignature as exc:
        raise Untrusted(code, "signature is invalid", where="tdx") from exc


def _verify_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNREADABLE) as exc:
        raise Untrusted(
            "tdx-chain-signature",
            "certificate is not issued by its issuer",
            where=_common_name(certificate),
            expected=_common_name(issuer),
        ) from exc


def _verify_crl(crl: x509.CertificateRevocationList, issuer: x509.Certificate, where: str) -> None:
    if crl.issuer != issuer.subject:
        raise Untrusted(
            "tdx-crl-issuer",
            "list of another authority",
            where=where,
            expected=_common_name(issuer),
            got=crl.issuer.rfc4514_string(),
        )
    try:
        valid = crl.is_signature_valid(_public_key(issuer))
    except UNREADABLE as exc:
        raise Malformed("tdx-crl", "signature of an unknown kind", where=where) from exc
    if not valid:
        raise Untrusted("tdx-crl-signature", "signature is invalid", where=where)


def _require_unrevoked(certificate: x509.Certificate, crl: x509.CertificateRevocationList) -> None:
    try:
        listed = crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
    except UNREADABLE as exc:
        raise Malformed("tdx-crl", "unreadable entry", where=_common_name(certificate)) from exc
    if listed:
        raise Untrusted("tdx-revoked", "certificate is revoked", where=_common_name(certificate))


def _verify_statement(
    name: str,
    statement: SignedStatement,
    chain: tuple[x509.Certificate, ...],
    root: x509.Certificate,
    root_crl: x509.CertificateRevocationList,
) -> None:
    if not chain or _common_name(chain[0]) != TCB_SIGNING:
        raise Untrusted("tdx-collateral-signer", "not Intel's TCB signing certificate", where=name)
    _verify_issued(chain[0], root)
    _require_unrevoked(chain[0], root_crl)
    _verify_raw(_public_key(chain[0]), statement.signature, statement.signed, "tdx-collateral-signature")
