"""The authority of an AMD product, ARK with ASK or ASVK: its pin, key type, constraints and signatures (tee.md 1.5)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product as pairs

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestation.errors import Malformed, Unavailable, Untrusted
from attestation.formats import der
from attestation.formats.der import Certificate
from attestation.formats.snp_tcb import Product
from attestation.verify.cache import BoundedCache
from attestation.verify.unreadable import UNREADABLE

CA_KEY_BITS = 4096
# RSASSA-PSS, SHA-384, MGF1-SHA-384, salt 48; older certificates spell out the default trailer field as well.
_PSS_OID = bytes.fromhex("06092a864886f70d01010a")
_PSS_PARAMETERS = bytes.fromhex(
    "a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"
)
PSS_SHA384 = frozenset(
    {
        b"\x30\x41" + _PSS_OID + b"\x30\x34" + _PSS_PARAMETERS,
        b"\x30\x46" + _PSS_OID + b"\x30\x39" + _PSS_PARAMETERS + bytes.fromhex("a303020101"),
    }
)
PSS_PADDING = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
BASIC_CONSTRAINTS, _KEY_USAGE = "2.5.29.19", "2.5.29.15"
_CA_TRUE = b"\x01\x01\xff"
_CERT_SIGN = 0x04  # bit 5 of keyUsage, in its first octet


@dataclass(frozen=True, slots=True)
class Authority:
    """ARK and ASK (or ASVK) whose pin, signatures and CA constraints hold; dates and CRL are judged per call."""

    root: Certificate
    issuer: Certificate
    root_key: rsa.RSAPublicKey
    issuer_key: rsa.RSAPublicKey


def find_authority(
    leaf: Certificate, product: Product, known: Sequence[Certificate], pin: str, cache: BoundedCache[Authority]
) -> Authority:
    """The authority among `known` certificates that `leaf` names and whose root key has the pinned SHA-256.

    Raises Unavailable where a certificate of it is missing, Malformed or Untrusted where none of them holds.
    """
    roots = {c.der: c for c in known if c.subject == c.issuer and c.subject_cn == f"ARK-{product}"}
    issuers = {c.der: c for c in known if c.subject == leaf.issuer and c.issuer_cn == f"ARK-{product}"}
    if not roots or not issuers:
        raise Unavailable(
            "snp-authority-missing",
            "no certificate of the issuing authority",
            where=f"snp.{product}",
            expected=f"ARK-{product} and {leaf.issuer_cn}",
            got=[c.subject_cn for c in known],
        )
    anchors = [c for c in roots.values() if hashlib.sha256(c.spki).hexdigest() == pin]
    if not anchors:
        got = [hashlib.sha256(c.spki).hexdigest() for c in roots.values()]
        raise Untrusted(
            "snp-anchor-mismatch", "root key is not AMD's", where=f"ARK-{product}", expected=pin or "no pin", got=got
        )
    failure: Untrusted | None = None
    for root, issuer in pairs(anchors, issuers.values()):
        try:
            return cache.remember((pin, root.der, issuer.der), partial(_verify_authority, root, issuer))
        except Untrusted as exc:
            failure = failure or exc
    assert failure is not None
    raise failure


def _verify_authority(root: Certificate, issuer: Certificate) -> Authority:
    _require_authority(root, path_length=None)
    _require_authority(issuer, path_length=0)
    root_key, issuer_key = _ca_key(root), _ca_key(issuer)
    require_signed(root, root_key)
    require_signed(issuer, root_key)
    return Authority(root, issuer, root_key, issuer_key)


def _require_authority(certificate: Certificate, path_length: int | None) -> None:
    where, extensions = certificate.subject_cn, certificate.extensions
    constraints, usage = extensions.get(BASIC_CONSTRAINTS), extensions.get(_KEY_USAGE)
    allowed = {_CA_TRUE} if path_length is None else {_CA_TRUE + (b"\x02\x01" + bytes([path_length]))}
    content = der.parse_element(constraints.value, der.SEQUENCE).content if constraints else b""
    if content not in allowed:
        raise Untrusted(
            "snp-ca-constraints",
            "not a certificate authority of this depth",
            where=where,
            expected=sorted(a.hex() for a in allowed),
            got=content.hex() or "none",
        )
    bits = der.require_tag(der.parse_element(usage.value, der.BIT_STRING), der.BIT_STRING).content if usage else b""
    if len(bits) < 2 or not bits[1] & _CERT_SIGN:
        raise Untrusted("snp-ca-usage", "key may not sign certificates", where=where, expected="keyCertSign")
    require_known_critical(certificate, {BASIC_CONSTRAINTS, _KEY_USAGE})


def require_known_critical(certificate: Certificate, known: set[str]) -> None:
    """No critical extension but `known` OIDs. Raises Untrusted."""
    unknown = sorted(oid for oid, ext in certificate.extensions.items() if ext.critical and oid not in known)
    if unknown:
        raise Untrusted("snp-critical", "unknown critical extension", where=certificate.subject_cn, got=unknown)


def _ca_key(certificate: Certificate) -> rsa.RSAPublicKey:
    key = public_key(certificate)
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != CA_KEY_BITS:
        raise Untrusted("snp-ca-key", "not AMD's key type", where=certificate.subject_cn, expected="RSA-4096")
    return key


def public_key(certificate: Certificate) -> object:
    """The key of a certificate, of whatever type it is. Raises Malformed."""
    try:
        return load_der_public_key(certificate.spki)
    except UNREADABLE as exc:
        raise Malformed("snp-key", "unusable public key", where=certificate.subject_cn) from exc


def require_signed(certificate: Certificate, issuer_key: rsa.RSAPublicKey) -> None:
    """Signed by `issuer_key` in the one algorithm that AMD uses. Raises Untrusted."""
    where = certificate.subject_cn
    if certificate.algorithm not in PSS_SHA384:
        got = certificate.algorithm.hex()
        raise Untrusted("snp-chain-algorithm", "not AMD's algorithm", where=where, expected="PSS SHA-384/48", got=got)
    try:
        issuer_key.verify(certificate.signature, certificate.tbs, PSS_PADDING, hashes.SHA384())
    except InvalidSignature as exc:
        raise Untrusted(
            "snp-chain-signature", "certificate signature is invalid", where=where, expected=certificate.issuer_cn
        ) from exc
