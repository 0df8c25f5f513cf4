"""Everything that a device verification may look at besides the evidence: stored, passed in, never fetched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from attestation.findings import Finding
from attestation.formats.nv_evidence import decode_base64
from attestation.values import JsonObject
from attestation.verify.cache import MAX_CHAINS, MAX_DEVICES, MAX_RIMS, BoundedCache
from attestation.verify.chain import ChainCache, PathCertificate, VerifiedPath
from attestation.verify.compare import Comparison
from attestation.verify.identity import DeviceCertificate
from attestation.verify.nv_content import Content
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.revocation import (
    Revocation,
    RevocationCache,
    RevocationRule,
    RevocationSource,
    check_revocation,
    judge_revocation,
)
from attestation.verify.rim import RimCache, RimSource, Slot
from attestation.verify.roots import NvTrust

MAX_COMPARED = 1024  # contents of so many devices
_MAX_JUDGED = 1024  # certificates of 64 devices and their documents fit
_MAX_TEXTS, _MAX_TEXT_BYTES = 256, 8 * 1024  # chains as base64 of PEM, 5600 characters each: 3 MB at most


Role = Literal["rim", "device_ca", "device_leaf"]  # fields of RevocationPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownDevice:
    """A device whose chain and last new report verified: neither its dates nor revocation are part of that."""

    path: VerifiedPath
    certificate: DeviceCertificate
    content: Content


@dataclass(frozen=True, slots=True)
class NvCache:
    """Verified devices, issuers, documents and revocation answers, owned by the caller; one per process is enough."""

    devices: BoundedCache[KnownDevice] = field(default_factory=lambda: BoundedCache(MAX_DEVICES))
    chains: ChainCache = field(default_factory=lambda: BoundedCache(MAX_CHAINS))
    rims: RimCache = field(default_factory=lambda: BoundedCache(MAX_RIMS))
    revocation: RevocationCache = field(default_factory=RevocationCache)
    texts: BoundedCache[bytes] = field(default_factory=lambda: BoundedCache(_MAX_TEXTS))
    moments: list["Collateral"] = field(default_factory=list)  # the last one

    def collateral(
        self, *, trust: NvTrust, rims: RimSource, revocation: RevocationSource, policy: NvPolicy, now: datetime
    ) -> "Collateral":
        """What verifications within one second share.

        Certificates and answers are dated in whole seconds: what holds when a second begins holds until it ends.
        """
        second = now.replace(microsecond=0)
        for last in self.moments[:1]:
            sources = last.rims is rims and last.revocation is revocation
            if last.now == second and last.trust is trust and last.policy is policy and sources:
                return last
        made = Collateral(trust=trust, rims=rims, revocation=revocation, policy=policy, now=second, cache=self)
        self.moments[:] = [made]
        return made

    def decode_chain(self, text: str, *, where: str) -> bytes:
        """`decode_base64`, remembering texts of a usual size, whoever sent them: this proves nothing."""
        if len(text) > _MAX_TEXT_BYTES:
            return decode_base64(text, where=where)
        return self.texts.remember(text, lambda: decode_base64(text, where=where))


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What the documents say to one content; `signers` are the claims about who signed them, by slot."""

    content: Content
    comparisons: tuple[Comparison, ...]
    findings: tuple[Finding, ...]
    signers: Mapping[Slot, JsonObject]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collateral:
    """Everything a verification may look at besides the evidence; all of it stored, none of it fetched."""

    trust: NvTrust
    rims: RimSource
    revocation: RevocationSource
    policy: NvPolicy
    now: datetime
    cache: NvCache | None = None
    neighbours: Sequence[bytes] = ()  # other known documents, only to explain mismatches
    # What was said about issuers and contents at this `now`: the devices of one set share it.
    _issuers: dict[tuple[bytes, Role], tuple[Revocation, Finding]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    signer_claims: dict[str, JsonObject] = field(default_factory=dict, init=False, repr=False, compare=False)
    compared: dict[int, "Compared"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def judge_certificate(
        self, subject: PathCertificate, issuer: PathCertificate, role: Role
    ) -> tuple[Revocation, Finding]:
        """Revocation of one certificate from stored answers, and what the rule of its role says to it."""
        key = (subject.tbs, role)
        if known := self._issuers.get(key):
            return known
        rule: RevocationRule = getattr(self.policy.revocation, role)
        status = check_revocation(
            subject.certificate,
            issuer.certificate,
            self.revocation,
            rule=rule,
            now=self.now,
            cache=self.cache.revocation if self.cache is not None else None,
        )
        judged = status, judge_revocation(status, rule, subject=subject.name)
        if len(self._issuers) < _MAX_JUDGED:
            self._issuers[key] = judged
        return judged
