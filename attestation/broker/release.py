"""The release itself: it takes the proof that every condition held, and nothing else opens the way to a secret."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from attestation.appraise.checks import Usage, check_origin, check_release
from attestation.appraise.policy import KeyConditions
from attestation.appraise.rules import References
from attestation.broker.session import Attested
from attestation.crypto.jwe import RandomBytes, Sealed, seal
from attestation.crypto.jwk import parse_tee_key
from attestation.findings import Finding, TrustedVerdict, Verdict, failed, passed
from attestation.values import ResourcePath, Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Proof that the holder of one attested key may have one resource. Only a trusted verdict leads here."""

    path: ResourcePath
    tee_key: Mapping[str, str]
    verdict: TrustedVerdict


def decide(
    attested: Attested,
    conditions: KeyConditions | None,
    usage: Usage,
    *,
    resource_policy: bool | None,
    references: References,
    now: datetime,
) -> Verdict:
    """All findings for one release. `resource_policy` is the Rego answer, None where no such policy is stored.

    A key needs conditions or an allowing resource policy; where both exist both must hold. Forgeable evidence is
    judged in every case.
    """
    if conditions is not None:
        findings = check_release(
            attested.facts,
            attested.appraisals,
            conditions,
            usage,
            simulated=attested.simulated,
            references=references,
            now=now,
        ).findings
    else:
        findings = (check_origin(attested.facts, usage, simulated=attested.simulated),)
        if resource_policy is None:
            findings += (_no_policy(),)
    if resource_policy is not None:
        findings += (_resource_policy(allowed=resource_policy),)
    return Verdict.of(findings)


def grant(path: ResourcePath, tee_key: Mapping[str, str], verdict: Verdict) -> Grant:
    """Proof, or Denied with the first failed finding."""
    return Grant(path=path, tee_key=tee_key, verdict=verdict.require_trusted())


def release(granted: Grant, secret: Secret, *, random: RandomBytes) -> Sealed:
    """Encrypt to the TEE key that the CPU report covers."""
    return seal(secret, parse_tee_key(granted.tee_key), random=random)


def _no_policy() -> Finding:
    return failed(
        "policy",
        "no-release-policy",
        expected="a policy of the key, its repository, or a resource policy",
        got="none",
        hint="kata-gpu-kbs key set-policy PATH POLICY.toml",
    )


def _resource_policy(*, allowed: bool) -> Finding:
    if allowed:
        return passed("resource-policy", "allow")
    return failed("resource-policy", "resource-policy-denies", expected="allow", got="deny")
