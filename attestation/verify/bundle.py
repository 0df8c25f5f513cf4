"""Who signed a collateral bundle, and whether it is recent enough to be used.

The key is pinned by the operator and never taken from the bundle; it alone decides the algorithm.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from attestation.errors import Misconfigured, Unavailable, Untrusted
from attestation.findings import Finding, Result, failed, passed
from attestation.formats.bundle import UnverifiedBundle, parse_bundle
from attestation.formats.collateral import Document
from attestation.values import Digest, JsonObject

BundleKey = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
CLOCK_SKEW = timedelta(minutes=5)  # what NTP-less racks drift between two visits
P384_SCALAR_BYTES = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleInfo:
    """Which bundle a store was filled from; appears in every result."""

    digest: Digest
    issued_at: datetime

    def to_json(self, now: datetime) -> JsonObject:
        """Id, issue time and age in whole seconds."""
        age = int((now - self.issued_at).total_seconds())
        return {"id": str(self.digest), "issued-at": self.issued_at.isoformat(), "age-seconds": age}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBundle:
    """A bundle that the pinned key signed."""

    info: BundleInfo
    documents: tuple[Document, ...]


def load_bundle_key(pem: bytes) -> BundleKey:
    """The operator's pinned public key: Ed25519 or P-384, PEM. Raises Misconfigured."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise Misconfigured("bundle-key", "not a public key", expected="PEM, Ed25519 or P-384") from exc
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        return key
    raise Misconfigured("bundle-key", "key of the wrong type", expected="Ed25519 or P-384")


def _require_signature(bundle: UnverifiedBundle, key: BundleKey) -> None:
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(bundle.signature, bundle.signed)
            return
        if len(bundle.signature) != 2 * P384_SCALAR_BYTES:
            raise InvalidSignature
        r, s = bundle.signature[:P384_SCALAR_BYTES], bundle.signature[P384_SCALAR_BYTES:]
        der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
        key.verify(der, bundle.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as exc:
        raise Untrusted(
            "bundle-signature", "the pinned key did not sign this bundle", where="bundle", got=bundle.digest
        ) from exc


def verify_bundle(
    raw: bytes, key: BundleKey, *, in_use: BundleInfo | None, now: datetime, allow_rollback: bool = False
) -> VerifiedBundle:
    """Bounds, structure, signature, then time: not from the future and not older than the bundle in use.

    Raises Malformed or Untrusted (`bundle-signature`, `bundle-future`, `bundle-rollback`).
    """
    bundle = parse_bundle(raw)
    _require_signature(bundle, key)
    if bundle.issued_at - now > CLOCK_SKEW:
        raise Untrusted("bundle-future", "bundle from the future", expected=f"<= {now}", got=bundle.issued_at)
    info = BundleInfo(digest=bundle.digest, issued_at=bundle.issued_at)
    if in_use is not None and not allow_rollback and info != in_use and info.issued_at <= in_use.issued_at:
        raise Untrusted(
            "bundle-rollback",
            "older than the bundle in use",
            where="bundle",
            expected=f"issued after {in_use.issued_at}",
            got=info.issued_at,
        )
    return VerifiedBundle(info=info, documents=bundle.documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleRule:
    """How old the bundle may be. `required` refuses a store that no bundle filled."""

    max_age: timedelta
    required: bool = False

    def __post_init__(self) -> None:
        if self.max_age <= timedelta(0):
            raise Misconfigured("bundle-age", "ages are positive", got=self.max_age)


def judge_bundle(info: BundleInfo | None, rule: BundleRule | None, *, now: datetime) -> Finding:
    """Codes `bundle-absent`, `bundle-expired`; what is not judged is `skipped` with id and issue time, never silent."""
    if rule is None:
        got = "none" if info is None else f"{info.digest} of {info.issued_at.isoformat()}"
        return Finding(check="bundle-age", result=Result.SKIPPED, expected="unchecked: no rule on its age", got=got)
    expected = f"issued within {rule.max_age.days} days"
    if info is None:
        if rule.required:
            return failed("bundle-age", "bundle-absent", expected=expected, got="no bundle imported")
        return Finding(check="bundle-age", result=Result.SKIPPED, code="bundle-absent", expected=expected, got="none")
    got = f"{info.digest} of {info.issued_at.isoformat()}"
    if now - info.issued_at > rule.max_age:
        return failed("bundle-age", "bundle-expired", expected=expected, got=got, hint="import a newer bundle")
    return passed("bundle-age", got, expected=expected)


def require_recent(info: BundleInfo | None, rule: BundleRule | None, *, now: datetime) -> Finding:
    """The finding; Unavailable where the rule does not hold: nothing is judged by collateral that is too old."""
    finding = judge_bundle(info, rule, now=now)
    if finding.result is Result.FAIL:
        raise Unavailable(
            finding.code,
            "the collateral bundle is not as recent as policy demands: import a newer one",
            where="collateral",
            expected=finding.expected,
            got=finding.got,
        )
    return finding
