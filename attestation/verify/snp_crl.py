"""AMD's revocation lists: one per product and kind, signed by the ARK, naming revoked ASKs and ASVKs (tee.md 1.6)."""

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from attestation.errors import Malformed, Unavailable, Untrusted
from attestation.verify.cache import BoundedCache
from attestation.verify.snp_authority import PSS_PADDING, Authority
from attestation.verify.snp_trust import CrlMode
from attestation.verify.unreadable import UNREADABLE

MAX_CRL_BYTES = 64 * 1024  # lists CA certificates only, so a few entries


def verify_crl(
    data: bytes | None,
    authority: Authority,
    mode: CrlMode,
    now: datetime,
    cache: BoundedCache[x509.CertificateRevocationList],
) -> bool:
    """ASK or ASVK is not on AMD's list at `now`. Leaves all have serial 0, so no list can name one.

    Returns whether a list was there to check. Raises Malformed, Untrusted, or Unavailable where `mode` demands one.
    """
    where = f"crl of {authority.root.subject_cn}"
    if mode is CrlMode.OFF or (data is None and mode is CrlMode.IF_PRESENT):
        return False
    if data is None:
        raise Unavailable("snp-crl-missing", "no revocation list", where=where, expected="AMD's CRL")
    crl = cache.remember((data, authority.root.der), lambda: _signed_crl(data, authority, where))
    try:
        this_update, next_update = crl.last_update_utc, crl.next_update_utc
        listed = crl.get_revoked_certificate_by_serial_number(authority.issuer.serial) is not None
    except UNREADABLE as exc:
        raise Malformed("snp-crl", "not a revocation list", where=where) from exc
    if this_update > now or next_update is None or now > next_update:
        raise Untrusted(
            "snp-crl-window",
            "list is not valid at this time",
            where=where,
            expected=f"{this_update.isoformat()} to {next_update.isoformat() if next_update else 'never'}",
            got=now.isoformat(),
        )
    if listed:
        raise Untrusted(
            "snp-authority-revoked",
            "AMD revoked the issuing authority",
            where=authority.issuer.subject_cn,
            got=hex(authority.issuer.serial),
        )
    return True


def _signed_crl(data: bytes, authority: Authority, where: str) -> x509.CertificateRevocationList:
    if len(data) > MAX_CRL_BYTES:
        raise Malformed("snp-crl", "list is too large", where=where, expected=MAX_CRL_BYTES, got=len(data))
    try:
        crl = x509.load_der_x509_crl(data)
        issuer, name = crl.issuer.public_bytes(), crl.issuer.rfc4514_string()
        scheme, digest = crl.signature_algorithm_parameters, crl.signature_hash_algorithm
    except UNREADABLE as exc:
        raise Malformed("snp-crl", "not a revocation list", where=where) from exc
    if issuer != authority.root.subject:
        raise Untrusted("snp-crl-issuer", "list of another authority", where=where, got=name)
    if not (isinstance(scheme, padding.PSS) and isinstance(digest, hashes.SHA384)):
        raise Untrusted("snp-crl-signature", "not AMD's algorithm", where=where, expected="PSS SHA-384")
    try:
        authority.root_key.verify(crl.signature, crl.tbs_certlist_bytes, PSS_PADDING, hashes.SHA384())
    except InvalidSignature as exc:
        raise Untrusted("snp-crl-signature", "signature is invalid", where=where) from exc
    return crl
