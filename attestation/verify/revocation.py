"""Revocation without a network: candidates from a store in, one of good, revoked, unknown, stale out.

`good` comes only from an evaluated stored document; absent is `unknown`. Whether a status is acceptable is a rule of
the operator, one per role of a certificate: a reference-value signer must be good and recent; a
device leaf may be unknown, because NVIDIA's responder says GOOD for device serials it never saw
(gpu-attestation.md 2.4), and is reported.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from cryptography import x509

from attestation.errors import AttestationError, Malformed, Misconfigured, Untrusted
from attestation.findings import Finding, Result, failed, passed, warned
from attestation.values import Digest, JsonObject
from attestation.verify.cache import BoundedCache
from attestation.verify.crl import CrlCache, read_crl
from attestation.verify.ocsp import OcspCache, read_ocsp
from attestation.verify.statement import Said, Statement

MAX_CANDIDATES = 64  # documents looked at for one certificate; a store keeps a few per CA
DEFAULT_MAX_AGE = timedelta(days=30)  # one air-gapped import a month


MAX_CACHED_ANSWERS = 256  # a fleet uses a handful of CA certificates, each with a few answers


@dataclass(frozen=True, slots=True)
class RevocationCache:
    """Documents whose signatures verified before. Time, scope and subject are judged again on every use."""

    ocsp: OcspCache = field(default_factory=lambda: BoundedCache(MAX_CACHED_ANSWERS))
    crl: CrlCache = field(default_factory=lambda: BoundedCache(MAX_CACHED_ANSWERS))


class RevocationStatus(StrEnum):
    """Outcome for one certificate."""

    GOOD = "good"
    REVOKED = "revoked"
    UNKNOWN = "unknown"
    STALE = "stale"


class ChainKind(StrEnum):
    """Which chain a certificate belongs to; holds may be excused in reference-value chains only."""

    DEVICE = "device"
    RIM = "rim"
    TEE = "tee"


class RevocationSource(Protocol):
    """Where stored documents come from. Returns candidates, in any order; every one is verified here."""

    def ocsp_responses(self, certificate: x509.Certificate, issuer: x509.Certificate) -> Sequence[bytes]:
        """DER OCSP responses that may speak of `certificate`."""

    def crls(self, issuer: x509.Certificate) -> Sequence[bytes]:
        """DER CRLs that may come from `issuer`."""


class NoRevocation:
    """A source that has nothing: every certificate is `unknown`."""

    __slots__ = ()

    def ocsp_responses(self, certificate: x509.Certificate, issuer: x509.Certificate) -> Sequence[bytes]:  # noqa: ARG002
        """Nothing."""
        return ()

    def crls(self, issuer: x509.Certificate) -> Sequence[bytes]:  # noqa: ARG002
        """Nothing."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """Status of one certificate, why, and the digest of the document that says so."""

    status: RevocationStatus
    reason: str  # `responder-good`, a revocation reason (`keyCompromise`), or why it is unknown (`absent`, a code)
    held: bool = False  # revoked by certificateHold only
    source: str = ""  # ocsp | crl
    document: Digest | None = None
    since: datetime | None = None
    until: datetime | None = None

    def to_json(self) -> JsonObject:
        """Plain mapping for results."""
        return {
            "status": str(self.status),
            "reason": self.reason,
            "source": self.source or None,
            "document": str(self.document) if self.document else None,
            "this-update": self.since.isoformat() if self.since else None,
            "next-update": self.until.isoformat() if self.until else None,
        }


_ABSENT = Revocation(status=RevocationStatus.UNKNOWN, reason="absent")


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationRule:
    """What an operator accepts for one role. `accept` never holds `revoked`; a hold needs its own switch.

    `max_age` bounds thisUpdate, `grace` extends nextUpdate (air-gapped sites import less often than CAs publish).
    """

    kind: ChainKind
    accept: frozenset[RevocationStatus]
    max_age: timedelta = DEFAULT_MAX_AGE
    grace: timedelta = timedelta(0)
    allow_hold: bool = False
    accepted: str = field(init=False, repr=False, compare=False)  # `accept` as findings say it

    def __post_init__(self) -> None:
        object.__setattr__(self, "accepted", "|".join(sorted(self.accept)))
        if not self.accept:
            raise Misconfigured("revocation-accept", "a rule that accepts no status", expected="good, unknown, stale")
        if RevocationStatus.REVOKED in self.accept:
            raise Misconfigured("revocation-accept", "revoked is never acceptable", expected="good, unknown, stale")
        if self.allow_hold and self.kind is not ChainKind.RIM:
            raise Misconfigured(
                "revocation-hold", "a hold is excused for reference-value chains only", expected="rim", got=self.kind
            )
        if self.max_age <= timedelta(0) or self.grace < timedelta(0):
            raise Misconfigured("revocation-age", "ages are positive", got=f"max_age {self.max_age} grace {self.grace}")


_GOOD = frozenset({RevocationStatus.GOOD})
_GOOD_OR_UNKNOWN = frozenset({RevocationStatus.GOOD, RevocationStatus.UNKNOWN})


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationPolicy:
    """One rule per role. Default: reference-value signers good and recent; device certificates may be unknown."""

    rim: RevocationRule = field(default_factory=lambda: RevocationRule(kind=ChainKind.RIM, accept=_GOOD))
    device_ca: RevocationRule = field(
        default_factory=lambda: RevocationRule(kind=ChainKind.DEVICE, accept=_GOOD_OR_UNKNOWN)
    )
    device_leaf: RevocationRule = field(
        default_factory=lambda: RevocationRule(kind=ChainKind.DEVICE, accept=_GOOD_OR_UNKNOWN)
    )

    def __post_init__(self) -> None:
        for rule, kind in ((self.rim, ChainKind.RIM), (self.device_ca, ChainKind.DEVICE)):
            if rule.kind is not kind:
                raise Misconfigured("revocation-kind", "rule of another chain", expected=kind, got=rule.kind)
        if self.device_leaf.kind is not ChainKind.DEVICE:
            raise Misconfigured(
                "revocation-kind", "rule of another chain", expected="device", got=self.device_leaf.kind
            )


def _statements(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    source: RevocationSource,
    now: datetime,
    nonce: bytes | None,
    cache: RevocationCache,
) -> tuple[list[Statement], str]:
    """Every document that truly speaks of `certificate`, and why the others do not."""
    found: list[Statement] = []
    refused = _ABSENT.reason
    crls = source.crls(issuer)[:MAX_CANDIDATES]
    for der in crls if nonce is None else ():
        try:
            found.append(read_crl(der, certificate=certificate, issuer=issuer, now=now, cache=cache.crl))
        except (Malformed, Untrusted) as exc:
            refused = exc.code
    for der in source.ocsp_responses(certificate, issuer)[:MAX_CANDIDATES]:
        try:
            statement, signer = read_ocsp(
                der, certificate=certificate, issuer=issuer, now=now, nonce=nonce, cache=cache.ocsp
            )
            if signer is not None:
                _require_unlisted(signer, issuer, crls, now, cache.crl)
            found.append(statement)
        except (Malformed, Untrusted) as exc:
            refused = exc.code
    return found, refused


def _require_unlisted(
    signer: x509.Certificate, issuer: x509.Certificate, crls: Sequence[bytes], now: datetime, cache: CrlCache
) -> None:
    """A delegated signer that a CRL of its issuer lists has no voice, however old that CRL is."""
    for der in crls:
        try:
            said = read_crl(der, certificate=signer, issuer=issuer, now=now, cache=cache).said
        except AttestationError:
            continue  # a CRL that proves nothing cannot silence a signer
        if said is not Said.GOOD:
            raise Untrusted("ocsp-signer-revoked", "the delegated OCSP signer is revoked")


def _outcome(statement: Statement, status: RevocationStatus, reason: str) -> Revocation:
    return Revocation(
        status=status,
        reason=reason,
        held=statement.said is Said.HELD,
        source=statement.source,
        document=statement.document,
        since=statement.since,
        until=statement.until,
    )


def check_revocation(
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    source: RevocationSource,
    *,
    rule: RevocationRule,
    now: datetime,
    nonce: bytes | None = None,
    cache: RevocationCache | None = None,
) -> Revocation:
    """Status of `certificate`, made by `issuer`, from stored documents at `now` (aware UTC). Raises nothing of ours.

    A revocation for good counts whatever its age; otherwise the newest document decides, and of equally new ones the
    worst. `nonce`: accept only an OCSP response to that request (straight after fetching it).
    `cache` spares the signatures of documents that verified before.
    """
    found, refused = _statements(
        certificate, issuer, source, now, nonce, cache if cache is not None else RevocationCache()
    )
    for statement in found:
        if statement.said is Said.REVOKED:
            return _outcome(statement, RevocationStatus.REVOKED, statement.reason)
    if not found:
        return Revocation(status=RevocationStatus.UNKNOWN, reason=refused) if refused != _ABSENT.reason else _ABSENT
    severity = {Said.GOOD: 0, Said.UNKNOWN: 1, Said.HELD: 2}
    newest = max(found, key=lambda s: (s.since, severity[s.said]))
    if newest.said is Said.HELD:
        return _outcome(newest, RevocationStatus.REVOKED, newest.reason)
    if not newest.fresh(now, max_age=rule.max_age, grace=rule.grace):
        return _outcome(newest, RevocationStatus.STALE, "stale")
    if newest.said is Said.UNKNOWN:
        return _outcome(newest, RevocationStatus.UNKNOWN, "responder-unknown")
    return _outcome(newest, RevocationStatus.GOOD, "not-revoked")


def judge_revocation(revocation: Revocation, rule: RevocationRule, *, subject: str) -> Finding:
    """The rule's finding, code `revocation-revoked|-unknown|-stale|-hold`; what is excused is a warning, not silent."""
    check = f"{rule.kind.value}-revocation"
    expected = rule.accepted
    got = f"{revocation.status.value} ({revocation.reason})"
    if revocation.held:
        if rule.allow_hold:
            return Finding(
                check=check, result=Result.WARN, code="revocation-hold", expected=expected, got=got, subject=subject,
                hint="the certificate is on hold; policy excuses it for reference values",
            )  # fmt: skip
        return failed(check, "revocation-hold", expected=expected, got=got, subject=subject)
    if revocation.status in rule.accept:
        if revocation.status is RevocationStatus.GOOD:
            return passed(check, got, expected=expected, subject=subject)
        return warned(
            check, f"revocation-{revocation.status.value}", expected=expected, got=got,
            subject=subject, hint=_HINTS[revocation.status],
        )  # fmt: skip
    return failed(
        check, f"revocation-{revocation.status}", expected=expected, got=got, subject=subject,
        hint=_HINTS[revocation.status],
    )  # fmt: skip


_HINTS = {
    RevocationStatus.GOOD: "",
    RevocationStatus.REVOKED: "stop using what this certificate signed",
    RevocationStatus.UNKNOWN: "no usable answer is stored: run `kata-gpu-kbs collateral fetch` or import a bundle",
    RevocationStatus.STALE: "the stored answer is too old: run `kata-gpu-kbs collateral fetch` or import a bundle",
}
