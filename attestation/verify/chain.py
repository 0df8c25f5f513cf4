"""Certificate paths from a leaf to a pinned root, gpu-attestation.md 2.1, 2.5 and 10 step 2.

One profile for device and reference-value chains: leaf first, root last, every certificate used, P-384 keys,
ecdsa-with-SHA384, CA certificates that say so, path lengths kept. The root is trusted by its public key alone.
`verify_path` proves signatures and constraints, which no clock changes; `require_valid` judges time.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID, SignatureAlgorithmOID

from attestation.errors import Malformed, Untrusted
from attestation.formats.certs import MAX_CERTIFICATES
from attestation.formats.der import SEQUENCE, Element, parse_element, parse_members, require_tag
from attestation.verify.cache import BoundedCache
from attestation.verify.roots import DEBUG_ROOTS, Anchors
from attestation.verify.unreadable import UNREADABLE

MIN_CERTIFICATES = 2  # a root never signs evidence itself
_TBS_FIELDS = 8  # version to extensions; unique identifiers are obsolete and never present
_ECDSA_WITH_SHA384 = bytes.fromhex("300a06082a8648ce3d040303")
_ALGORITHM = ec.ECDSA(hashes.SHA384())
_UNDERSTOOD_CRITICAL = frozenset({ExtensionOID.KEY_USAGE, ExtensionOID.BASIC_CONSTRAINTS})


@dataclass(frozen=True, slots=True, kw_only=True)
class PathCertificate:
    """One certificate that passed the profile, with what is asked of it again and again."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePublicKey
    tbs: bytes  # what the issuer signed
    spki: bytes  # the very slice of the certificate, as are the two names
    subject: bytes
    issuer: bytes
    extensions: Mapping[x509.ObjectIdentifier, x509.ExtensionType]
    name: str
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedPath:
    """Leaf first, root last: each signed by the next, the last one pinned. Says nothing about time or revocation."""

    certificates: tuple[PathCertificate, ...]
    not_before: datetime = field(init=False)  # of the one that is valid last
    not_after: datetime = field(init=False)  # of the one that ends first

    def __post_init__(self) -> None:
        object.__setattr__(self, "not_before", max(c.not_before for c in self.certificates))
        object.__setattr__(self, "not_after", min(c.not_after for c in self.certificates))

    @property
    def leaf(self) -> PathCertificate:
        """The certificate whose key signs evidence."""
        return self.certificates[0]

    @property
    def issuer(self) -> PathCertificate:
        """The certificate that signed the leaf."""
        return self.certificates[1]


ChainCache = BoundedCache[tuple[PathCertificate, ...]]


def verify_path(
    ders: Sequence[bytes],
    *,
    anchors: Anchors,
    where: str,
    cache: ChainCache | None = None,
    keep_leaf: bool = False,
) -> VerifiedPath:
    """Prove that `ders`, leaf first, lead to a key in `anchors`. Raises Untrusted, and
    Malformed for what is not DER.

    `cache` keeps verified issuers, so that a known path costs one signature. Device leaves are verified every time;
    `keep_leaf` is for the few leaves that sign many reference documents.
    """
    if not MIN_CERTIFICATES <= len(ders) <= MAX_CERTIFICATES:
        raise Untrusted(
            "chain-length",
            "number of certificates",
            where=where,
            expected=f"{MIN_CERTIFICATES} to {MAX_CERTIFICATES}",
            got=len(ders),
        )
    leaf_key = ("leaf", anchors, *ders)
    if keep_leaf and cache is not None and (known := cache.get(leaf_key)):
        return VerifiedPath(certificates=known)
    issuers = _verify_issuers(tuple(ders[1:]), anchors, where, cache)
    leaf = _load(ders[0], where)
    _require_leaf(leaf, where)
    _require_issued(leaf, issuers[0], where)
    path = VerifiedPath(certificates=(leaf, *issuers))
    if keep_leaf and cache is not None:
        cache.put(leaf_key, path.certificates)
    return path


def require_valid(
    path: VerifiedPath, now: datetime, *, where: str, code: str = "certificate", grace: timedelta = timedelta(0)
) -> None:
    """Every certificate is valid at `now`, or expired for no longer than `grace`. Raises Untrusted `<code>-expired`.

    Compares `now - grace` with notAfter: 9999-12-31 plus anything overflows.
    """
    if path.not_before <= now <= path.not_after:
        return
    for certificate in path.certificates:
        if now < certificate.not_before:
            raise Untrusted(
                f"{code}-not-yet-valid",
                "certificate is not valid yet",
                where=f"{where} {certificate.name}",
                expected=f"from {certificate.not_before.isoformat()}",
                got=now.isoformat(),
            )
        if now - grace > certificate.not_after:
            raise Untrusted(
                f"{code}-expired",
                "certificate has expired",
                where=f"{where} {certificate.name}",
                expected=f"until {certificate.not_after.isoformat()}" + (f" and {grace.days} days" if grace else ""),
                got=now.isoformat(),
            )


def _verify_issuers(
    ders: tuple[bytes, ...], anchors: Anchors, where: str, cache: ChainCache | None
) -> tuple[PathCertificate, ...]:
    """`ders` from the leaf's issuer to the root. Starts from the longest part of the path that is already known."""
    start = len(ders)
    issuers: tuple[PathCertificate, ...] = ()
    if cache is not None:
        for position in range(len(ders)):
            if known := cache.get((anchors, ders[position:])):
                start, issuers = position, known
                break
    for position in reversed(range(start)):
        subject = _load(ders[position], where)
        if issuers:
            _require_ca(subject, below=position, where=where)
            _require_issued(subject, issuers[0], where)
        else:
            _require_pinned(subject, anchors, where)
            _require_ca(subject, below=position, where=where)
            if hashlib.sha256(ders[position]).digest() not in anchors.certificates:
                _require_issued(subject, subject, where)
        issuers = (subject, *issuers)
        if cache is not None:
            cache.put((anchors, ders[position:]), issuers)
    return issuers


def _load(der: bytes, where: str) -> PathCertificate:
    """A certificate of our profile: v3, P-384, ecdsa-with-SHA384, nothing critical that is not understood."""
    tbs, fields = _fields(der, where)
    _version, serial, inner, issuer, _validity, subject, spki, _extensions = fields
    if serial.content[:1] >= b"\x80" or not any(serial.content):  # RFC 5280 4.1.2.2; the library warns and goes on
        raise Untrusted("certificate-serial", "serial number is not positive", where=where, expected="at least 1")
    try:
        certificate = x509.load_der_x509_certificate(der)
        key = certificate.public_key()
        algorithm = certificate.signature_algorithm_oid
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        extensions = {extension.oid: extension for extension in certificate.extensions}
        validity = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except UNREADABLE as exc:
        raise Untrusted("certificate-syntax", "not an X.509 v3 certificate", where=where, got=str(exc)[:80]) from exc
    name = str(names[0].value)[:80] if names else "(no common name)"
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise Untrusted("certificate-key", "wrong key type", where=f"{where} {name}", expected="EC P-384")
    if algorithm != SignatureAlgorithmOID.ECDSA_WITH_SHA384 or inner.raw != _ECDSA_WITH_SHA384:
        raise Untrusted(
            "certificate-algorithm",
            "wrong signature algorithm",
            where=f"{where} {name}",
            expected="ecdsa-with-SHA384",
            got=algorithm.dotted_string,
        )
    if unknown := {oid for oid, e in extensions.items() if e.critical} - _UNDERSTOOD_CRITICAL:
        raise Untrusted(
            "certificate-critical",
            "critical extension that is not understood",
            where=f"{where} {name}",
            got=sorted(oid.dotted_string for oid in unknown),
        )
    return PathCertificate(
        certificate=certificate,
        key=key,
        tbs=tbs.raw,
        spki=spki.raw,
        subject=subject.raw,
        issuer=issuer.raw,
        extensions={oid: extension.value for oid, extension in extensions.items()},
        name=name,
        not_before=validity[0],
        not_after=validity[1],
    )


def _fields(der: bytes, where: str) -> tuple[Element, tuple[Element, ...]]:
    """What was signed, and its eight fields. Raises Untrusted."""
    try:
        tbs, _algorithm, _signature = parse_members(parse_element(der, SEQUENCE).content)
        fields = parse_members(require_tag(tbs, SEQUENCE).content)
    except (Malformed, ValueError) as exc:
        raise Untrusted("certificate-syntax", "not an X.509 v3 certificate", where=where, got=str(exc)[:80]) from exc
    if len(fields) != _TBS_FIELDS:
        raise Untrusted(
            "certificate-syntax", "fields of the certificate", where=where, expected=_TBS_FIELDS, got=len(fields)
        )
    return tbs, fields


def _constraints(certificate: PathCertificate) -> tuple[x509.BasicConstraints | None, x509.KeyUsage | None]:
    basic = certificate.extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    usage = certificate.extensions.get(ExtensionOID.KEY_USAGE)
    return cast("x509.BasicConstraints | None", basic), cast("x509.KeyUsage | None", usage)


def _require_leaf(leaf: PathCertificate, where: str) -> None:
    basic, usage = _constraints(leaf)
    if usage is None or not usage.digital_signature or usage.key_cert_sign or (basic is not None and basic.ca):
        raise Untrusted(
            "leaf-usage",
            "not a signing leaf",
            where=f"{where} {leaf.name}",
            expected="keyUsage digitalSignature, not a CA",
            got=f"{usage}, CA {bool(basic and basic.ca)}"[:200],
        )


def _require_ca(certificate: PathCertificate, *, below: int, where: str) -> None:
    """`below`: CA certificates between this one and the leaf (RFC 5280 section 4.2.1.9)."""
    basic, usage = _constraints(certificate)
    if basic is None or not basic.ca or usage is None or not usage.key_cert_sign:
        raise Untrusted(
            "chain-ca",
            "issuer is not a CA",
            where=f"{where} {certificate.name}",
            expected="basicConstraints CA and keyUsage keyCertSign",
        )
    if basic.path_length is not None and below > basic.path_length:
        raise Untrusted(
            "chain-path-length",
            "path is longer than a CA allows",
            where=f"{where} {certificate.name}",
            expected=f"at most {basic.path_length} CA certificates below",
            got=below,
        )


def _require_pinned(root: PathCertificate, anchors: Anchors, where: str) -> None:
    pin = hashlib.sha256(root.spki).digest()
    if pin in DEBUG_ROOTS:
        raise Untrusted("debug-root", "signed under a debug root", where=f"{where} {root.name}", got=pin.hex())
    if pin not in anchors.keys:
        raise Untrusted(
            "chain-root",
            "last certificate is not a pinned root",
            where=f"{where} {root.name}",
            expected="|".join(sorted(key.hex() for key in anchors.keys)),
            got=pin.hex(),
        )


def _require_issued(subject: PathCertificate, issuer: PathCertificate, where: str) -> None:
    """Name and signature, with the issuer's key as it was loaded: its point is checked once, not once per use."""
    if subject.issuer != issuer.subject:
        raise Untrusted(
            "chain-issuer",
            "issued by another certificate than the next one",
            where=f"{where} {subject.name}",
            expected=f"issuer {issuer.name}",
            got=subject.issuer.hex()[:160],  # not parsed: only its bytes were compared
        )
    try:
        issuer.key.verify(subject.certificate.signature, subject.tbs, _ALGORITHM)
    except InvalidSignature as exc:
        raise Untrusted("chain-signature", f"not signed by {issuer.name}", where=f"{where} {subject.name}") from exc
