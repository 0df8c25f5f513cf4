"""AMD's endorsement chain ARK -> ASK or ASVK -> VCEK or VLEK, to roots pinned by public key (tee.md 1.5, 1.6)."""

import re
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attestation.errors import Malformed, Untrusted
from attestation.formats.der import Certificate, parse_certificate
from attestation.formats.snp_tcb import Product, Tcb
from attestation.verify.cache import BoundedCache
from attestation.verify.snp_authority import (
    BASIC_CONSTRAINTS,
    Authority,
    find_authority,
    public_key,
    require_known_critical,
    require_signed,
)
from attestation.verify.snp_crl import verify_crl
from attestation.verify.snp_leaf import LeafFacts, leaf_facts
from attestation.verify.snp_policy import JudgedLaunch
from attestation.verify.snp_trust import AmdCollateral, AmdTrust, ChainRules, LeafKind

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
class _Endorsement:
    """A leaf that chains to a pinned root: everything about it that does not depend on time."""

    authority: Authority
    facts: LeafFacts
    public_key: ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class AmdCache:
    """Certificates that were read, and what verified; owned by the caller. Pins are part of the keys of the latter."""

    certificates: BoundedCache[Certificate] = field(default_factory=lambda: BoundedCache(_MAX_LEAVES))
    leaves: BoundedCache[_Endorsement] = field(default_factory=lambda: BoundedCache(_MAX_LEAVES))
    authorities: BoundedCache[Authority] = field(default_factory=lambda: BoundedCache(_MAX_LISTS))
    lists: BoundedCache[x509.CertificateRevocationList] = field(default_factory=lambda: BoundedCache(_MAX_LISTS))
    launches: BoundedCache[JudgedLaunch] = field(default_factory=lambda: BoundedCache(_MAX_LEAVES))


def split_pem(data: bytes) -> list[bytes]:
    """DER of every CERTIFICATE block of a PEM text, in order; DER input is one certificate. Raises Malformed."""
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
    """Product and kind by the issuer's name; the name only selects, the pinned root proves. Raises Untrusted."""
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
        crl_checked=verify_crl(collateral.crl(product, kind), authority, rules.crl, now, cache.lists),
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
    known = [_read(one, cache) for data in candidates for one in split_pem(data)]
    authority = find_authority(leaf, product, known, pin, cache.authorities)
    require_signed(leaf, authority.issuer_key)
    require_known_critical(leaf, set())
    if BASIC_CONSTRAINTS in leaf.extensions:
        raise Untrusted("snp-leaf-ca", "an endorsement key is not an authority", where=leaf.subject_cn)
    key = public_key(leaf)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise Untrusted("snp-leaf-key", "not a P-384 key", where=leaf.subject_cn, expected="EC P-384")
    return _Endorsement(authority, leaf_facts(leaf, product, kind), key)


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
