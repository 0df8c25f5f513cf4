"""AMD's endorsement chain ARK -> ASK or ASVK -> VCEK or VLEK, to roots pinned by public key (tee.md 1.5, 1.6)."""

import hashlib
import re
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import product as pairs

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attestation.errors import Malformed, Unavailable, Untrusted
from attestation.formats import der
from attestation.formats.der import Certificate, parse_certificate
from attestation.formats.snp_tcb import Product, Tcb
from attestation.verify.cache import BoundedCache
from attestation.verify.snp_leaf import LeafFacts, leaf_facts
from attestation.verify.snp_policy import JudgedLaunch
from attestation.verify.snp_trust import AmdCollateral, AmdTrust, ChainRules, CrlMode, LeafKind
from attestation.verify.unreadable import UNREADABLE

CA_KEY_BITS = 4096
MAX_CRL_BYTES = 64 * 1024  # lists CA certificates only, so a few entries
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
_PADDING = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
_BASIC_CONSTRAINTS, _KEY_USAGE = "2.5.29.19", "2.5.29.15"
_CA_TRUE = b"\x01\x01\xff"
_CERT_SIGN = 0x04  # bit 5 of keyUsage, in its first octet
_ISSUER = re.compile(r"SEV-(VLEK-)?(Milan|Genoa|Turin)")
_MAX_LEAVES = 256  # chips of a fleet, one TCB each; 10 kB an entry
_MAX_LISTS = 16  # three products, two kinds, a few issues of each


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedVek:
    """A VCEK or VLEK that chains to a pinned root, is within its dates and not revoked at its issuer."""

    product: Product
    kind: LeafKind
    tcb: Tcb
    chip_id: bytes | None  # None for VLEK
    csp_id: str  # empty for VCEK
    public_key: ec.EllipticCurvePublicKey
    not_after: datetime
    crl_checked: bool
    leaf: bytes  # as it came, DER or PEM


@dataclass(frozen=True, slots=True)
class _Authority:
    """ARK and ASK (or ASVK) whose pin, signatures and CA constraints hold; dates and CRL are judged per call."""

    root: Certificate
    issuer: Certificate
    root_key: rsa.RSAPublicKey
    issuer_key: rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class _Endorsement:
    """A leaf that chains to a pinned root: everything about it that does not depend on time."""

    authority: _Authority
    facts: LeafFacts
    public_key: ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class AmdCache:
    """Certificates that were read, and what verified; owned by the caller. Pins are part of the keys of the latter."""

    certificates: BoundedCache[Certificate] = field(default_factory=lambda: BoundedCache(_MAX_LEAVES))
    leaves: BoundedCache[_Endorsement] = field(default_factory=lambda: BoundedCache(_MAX_LEAVES))
    authorities: BoundedCache[_Authority] = field(default_factory=lambda: BoundedCache(_MAX_LISTS))
    lists: BoundedCache[x509.CertificateRevocationList] = field(default_factory=lambda: BoundedCache(_MAX_LISTS))
    launches: BoundedCache[JudgedLaunch] = field(default_factory=lambda: BoundedCache(_MAX_LEAVES))


def split_pem(data: bytes) -> list[bytes]:
    """DER of every CERTIFICATE block of a PEM text, in order; DER input is one certificate."""
    if not data.startswith(b"-----BEGIN"):
        return [data]
    blocks = []
    for part in data.split(b"-----BEGIN CERTIFICATE-----")[1:]:
        body, end, _ = part.partition(b"-----END CERTIFICATE-----")
        try:
            blocks.append(b64decode(b"".join(body.split()), validate=True))
        except ValueError as exc:
            raise Malformed("pem", "not base64", where="certificate") from exc
        if not end:
            raise Malformed("pem", "no end of certificate", where="certificate")
    return blocks


def issuer_of(leaf: Certificate) -> tuple[Product, LeafKind]:
    """Product and kind by the issuer's name; the name only selects, the pinned root proves."""
    match = _ISSUER.fullmatch(leaf.issuer_cn)
    if match is None:
        raise Untrusted(
            "snp-issuer", "leaf has an unknown issuer", where="leaf", expected=_ISSUER.pattern, got=leaf.issuer_cn[:80]
        )
    return Product(match[2]), LeafKind.VLEK if match[1] else LeafKind.VCEK


def verify_vek(
    leaf_bytes: bytes,
    signing_kind: LeafKind,
    *,
    candidates: Sequence[bytes],
    collateral: AmdCollateral,
    trust: AmdTrust,
    rules: ChainRules,
    now: datetime,
    cache: AmdCache,
) -> VerifiedVek:
    """Chain one leaf to a pinned root at `now`. `candidates` are authorities that came with the evidence.

    Raises Malformed, Untrusted, or Unavailable when an authority or a required CRL is missing.
    """
    leaf = _read(leaf_bytes, cache)
    product, kind = issuer_of(leaf)
    if kind is not signing_kind or leaf.subject_cn != f"SEV-{kind.upper()}":
        raise Untrusted(
            "snp-leaf-kind",
            "leaf is not of the kind that signed the report",
            where="leaf",
            expected=signing_kind,
            got=f"{leaf.subject_cn} by {leaf.issuer_cn}",
        )
    pin, known = trust.ark_keys.get(product, ""), (*candidates, *collateral.authorities(product))
    endorsed = cache.leaves.remember((pin, leaf_bytes, known), lambda: _endorse(leaf, known, pin, cache))
    authority = endorsed.authority
    grace = rules.vcek_grace if kind is LeafKind.VCEK else timedelta(0)
    for certificate, extra in ((authority.root, timedelta(0)), (authority.issuer, timedelta(0)), (leaf, grace)):
        _require_valid(certificate, extra, now)
    return VerifiedVek(
        product=product,
        kind=kind,
        tcb=endorsed.facts.tcb,
        chip_id=endorsed.facts.chip_id,
        csp_id=endorsed.facts.csp_id,
        public_key=endorsed.public_key,
        not_after=leaf.not_after,
        crl_checked=_verify_crl(collateral.crl(product, kind), authority, rules.crl, now, cache),
        leaf=leaf_bytes,
    )


def _read(data: bytes, cache: AmdCache) -> Certificate:
    """The first certificate in `data`, DER or PEM."""

    def read() -> Certificate:
        blocks = split_pem(data)
        if not blocks:
            raise Malformed("pem", "no certificate", where="certificate")
        return parse_certificate(blocks[0])

    return cache.certificates.remember(data, read)


def _endorse(leaf: Certificate, candidates: Sequence[bytes], pin: str, cache: AmdCache) -> _Endorsement:
    """Signature, key and AMD extensions of a leaf under an authority among `candidates`."""
    product, kind = issuer_of(leaf)
    authority = _find_authority(leaf, product, candidates, pin, cache)
    _require_signed(leaf, authority.issuer_key)
    _require_known_critical(leaf, set())
    if _BASIC_CONSTRAINTS in leaf.extensions:
        raise Untrusted("snp-leaf-ca", "an endorsement key is not an authority", where=leaf.subject_cn)
    key = _public_key(leaf)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise Untrusted("snp-leaf-key", "not a P-384 key", where=leaf.subject_cn, expected="EC P-384")
    return _Endorsement(authority, leaf_facts(leaf, product, kind), key)


def _find_authority(
    leaf: Certificate, product: Product, candidates: Sequence[bytes], pin: str, cache: AmdCache
) -> _Authority:
    known = [_read(one, cache) for data in candidates for one in split_pem(data)]
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
            return cache.authorities.remember((pin, root.der, issuer.der), partial(_verify_authority, root, issuer))
        except Untrusted as exc:
            failure = failure or exc
    assert failure is not None
    raise failure


def _verify_authority(root: Certificate, issuer: Certificate) -> _Authority:
    _require_authority(root, path_length=None)
    _require_authority(issuer, path_length=0)
    root_key, issuer_key = _ca_key(root), _ca_key(issuer)
    _require_signed(root, root_key)
    _require_signed(issuer, root_key)
    return _Authority(root, issuer, root_key, issuer_key)


def _require_authority(certificate: Certificate, path_length: int | None) -> None:
    where, extensions = certificate.subject_cn, certificate.extensions
    constraints, usage = extensions.get(_BASIC_CONSTRAINTS), extensions.get(_KEY_USAGE)
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
    _require_known_critical(certificate, {_BASIC_CONSTRAINTS, _KEY_USAGE})


def _require_known_critical(certificate: Certificate, known: set[str]) -> None:
    unknown = sorted(oid for oid, ext in certificate.extensions.items() if ext.critical and oid not in known)
    if unknown:
        raise Untrusted("snp-critical", "unknown critical extension", where=certificate.subject_cn, got=unknown)


def _ca_key(certificate: Certificate) -> rsa.RSAPublicKey:
    key = _public_key(certificate)
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != CA_KEY_BITS:
        raise Untrusted("snp-ca-key", "not AMD's key type", where=certificate.subject_cn, expected="RSA-4096")
    return key


def _public_key(certificate: Certificate) -> object:
    try:
        return load_der_public_key(certificate.spki)
    except UNREADABLE as exc:
        raise Malformed("snp-key", "unusable public key", where=certificate.subject_cn) from exc


def _require_signed(certificate: Certificate, issuer_key: rsa.RSAPublicKey) -> None:
    where = certificate.subject_cn
    if certificate.algorithm not in PSS_SHA384:
        got = certificate.algorithm.hex()
        raise Untrusted("snp-chain-algorithm", "not AMD's algorithm", where=where, expected="PSS SHA-384/48", got=got)
    try:
        issuer_key.verify(certificate.signature, certificate.tbs, _PADDING, hashes.SHA384())
    except InvalidSignature as exc:
        raise Untrusted(
            "snp-chain-signature", "certificate signature is invalid", where=where, expected=certificate.issuer_cn
        ) from exc


def _require_valid(certificate: Certificate, grace: timedelta, now: datetime) -> None:
    if now < certificate.not_before:
        raise Untrusted(
            "snp-cert-not-yet-valid",
            "certificate is not valid yet",
            where=certificate.subject_cn,
            expected=f"from {certificate.not_before.isoformat()}",
            got=now.isoformat(),
        )
    if now > certificate.not_after + grace:
        raise Untrusted(
            "snp-cert-expired",
            "certificate has expired",
            where=certificate.subject_cn,
            expected=f"until {certificate.not_after.isoformat()}",
            got=now.isoformat(),
        )


def _verify_crl(data: bytes | None, authority: _Authority, mode: CrlMode, now: datetime, cache: AmdCache) -> bool:
    """ASK or ASVK is not on AMD's list. Leaves all have serial 0, so no list can name one. Returns whether checked."""
    where = f"crl of {authority.root.subject_cn}"
    if mode is CrlMode.OFF or (data is None and mode is CrlMode.IF_PRESENT):
        return False
    if data is None:
        raise Unavailable("snp-crl-missing", "no revocation list", where=where, expected="AMD's CRL")
    crl = cache.lists.remember((data, authority.root.der), lambda: _signed_crl(data, authority, where))
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


def _signed_crl(data: bytes, authority: _Authority, where: str) -> x509.CertificateRevocationList:
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
        authority.root_key.verify(crl.signature, crl.tbs_certlist_bytes, _PADDING, hashes.SHA384())
    except InvalidSignature as exc:
        raise Untrusted("snp-crl-signature", "signature is invalid", where=where) from exc
    return crl
