"""`GET /kbs/v0/resource/...`: who asks, may they, and the key, sealed; audited and durable before it leaves."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from attestation.appraise.checks import Usage
from attestation.appraise.facts import PlatformFacts
from attestation.appraise.policy import KeyConditions, ReleaseLimits
from attestation.appraise.rego import policy_input
from attestation.broker.keys import KeyKind, KeyRecord, parse_bundle, render_bundle
from attestation.broker.model_key import DERIVE_PARAMETER, derived, parse_labels
from attestation.broker.release import Grant, decide, grant, release
from attestation.broker.revocation import first_firmware, subjects
from attestation.broker.session import Attested
from attestation.broker.token import token_claims, verify_token
from attestation.crypto.jwe import Sealed
from attestation.crypto.jwk import thumbprint
from attestation.errors import Denied, Malformed, Untrusted
from attestation.findings import Finding, Result, Verdict
from attestation.ops.steps import Steps, Work
from attestation.ops.world import World, conditions_of
from attestation.sources.db import Connection
from attestation.sources.policy_store import PolicyKind
from attestation.sources.sessions import Session
from attestation.values import JsonValue, ResourcePath

RESOURCE_POLICY = "resource-policy"  # upstream's one id
DEFAULT_POLICY = "default"
TICKET_BYTES = 8
_MAX_SAID = 80  # of the first failure, in one log line; the audit log has all of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What came with a request; the cookie goes first (keybroker.md 1.12)."""

    cookie: str | None
    bearer: str | None


def attested_session(world: World, cookie: str | None, *, now: datetime) -> str | None:
    """The token id of the live session of a cookie, None where there is none."""
    if cookie is None:
        return None
    try:
        challenged = world.cookies.open(cookie, now=now)
    except Untrusted:
        return None
    return world.sessions.attested(Session.of(cookie, challenged))


def authenticate(world: World, credentials: Credentials, *, now: datetime) -> Attested:
    """The attestation behind a session or token. Untrusted, which is 401, in every other case."""
    jti = attested_session(world, credentials.cookie, now=now)
    if jti is None and credentials.bearer is not None:
        jti = verify_token(credentials.bearer, world.authority, now=now)
    if jti is None:
        raise Untrusted("token-not-found", "Attestation Token not found")
    result = world.attestations.get(jti)
    if result is None:
        raise Untrusted("token-unknown", "no attestation of this broker has this token id")
    if now >= result.expires:
        raise Untrusted("token-expired", "the attestation has expired")
    require_not_revoked(world, result)
    return result


def require_not_revoked(world: World, attested: Attested) -> None:
    """Untrusted where the token, the TEE key, the chip, a device or some firmware of this platform was taken back."""
    named = subjects(attested.facts, jti=attested.jti, tee_key=attested.jkt)
    revoked = world.revocations.revoked(named) or first_firmware(world.revocations.firmware(), attested.facts)
    if revoked is not None:
        raise Untrusted("revoked", "this identity was revoked", got=revoked)


def releasing(
    world: World, attested: Attested, path: ResourcePath, *, query: dict[str, str], now: datetime
) -> Steps[Sealed]:
    """The key for the attested TEE key, or Denied: with a ticket (403), or `resource-not-found` (404)."""
    record = world.keys.get(path)
    verdict = _judge(world, attested, path, record, query, now)
    _refuse_unless_trusted(world, attested, path, verdict, now)
    if record is None:
        raise Denied("resource-not-found", "no such resource", where=str(path))
    granted = grant(path, attested.tee_key, verdict)
    if record.kind is KeyKind.BUNDLE:
        members = _members(world, attested, record, query, now)
        secret = render_bundle({str(m.path): world.keys.secret(m.path, m.current_version) for m in members})
    else:
        members, secret = (), world.keys.secret(path, record.current_version)
        if record.kind is KeyKind.MODEL_KEY and DERIVE_PARAMETER in query:
            secret = derived(secret, path, parse_labels(query[DERIVE_PARAMETER]))
    sealed = release(granted, secret, random=world.random)
    try:
        yield _account(world, attested, granted, (record, *members), now)
    except Denied as exc:  # the last permitted release went to somebody else meanwhile
        refuse(world, attested.jti, path, [{"check": "release-count", "code": exc.code}], exc.code, now)
    return sealed


def explain(world: World, attested: Attested, path: ResourcePath, *, now: datetime) -> Verdict:
    """What a release would find now. Releases nothing and counts nothing."""
    return _judge(world, attested, path, world.keys.get(path), {}, now)


def _judge(
    world: World,
    attested: Attested,
    path: ResourcePath,
    record: KeyRecord | None,
    query: dict[str, str],
    now: datetime,
) -> Verdict:
    text = policy_text(world, path, record)
    # What is not there has the labels that a key put there by this broker would get.
    usage = Usage(releases=record.releases if record else 0, test_key=record.is_test if record else world.simulated)
    return decide(
        attested,
        conditions_of(text) if text else None,
        usage,
        resource_policy=_resource_policy(world, attested, path, query),
        references=world.references.get,
        now=now,
    )


def policy_text(world: World, path: ResourcePath, record: KeyRecord | None) -> str:
    """The release policy in force: the key's own, its repository's, the default, or none."""
    if record is not None and record.policy:
        return record.policy
    for name in (path.repository, DEFAULT_POLICY):
        stored = world.policies.get(PolicyKind.RELEASE, name)
        if stored is not None:
            return stored.text
    return ""


def _resource_policy(world: World, attested: Attested, path: ResourcePath, query: dict[str, str]) -> bool | None:
    stored = world.policies.get(PolicyKind.REGO_RESOURCE, RESOURCE_POLICY)
    if stored is None:
        return None
    document = token_claims(attested, world.authority)
    for name, part in attested.facts.submods():
        evidence: dict[str, Any] = document["submods"][name].setdefault("ear.veraison.annotated-evidence", {})
        evidence |= policy_input(part, attested.facts, evidence.get("runtime_data_claims"))
    return world.rego.allow(stored.text, document, resource_data(path, query))


def resource_data(path: ResourcePath, query: dict[str, str]) -> dict[str, JsonValue]:
    """`data` of a resource policy (keybroker.md 3.5)."""
    return {"plugin": "resource", "resource-path": [path.repository, path.type, path.tag], "query": dict(query)}


def _identity_allowlist(facts: PlatformFacts, conditions: KeyConditions | None) -> JsonValue:
    """The key's own list, which every released platform is on; else what the verification policy says."""
    if conditions is not None and conditions.gpus is not None and conditions.gpus.names_identities:
        return "match"
    return facts.binding.get("identity_allowlist")


def _refuse_unless_trusted(
    world: World, attested: Attested, path: ResourcePath, verdict: Verdict, now: datetime
) -> None:
    if not verdict.trusted:
        codes = ",".join(finding.code for finding in verdict.failures)
        first = verdict.failures[0]
        said = f"{first.subject} {first.check} {first.got}".strip()[:_MAX_SAID]
        refuse(world, attested.jti, path, failures_json(verdict.failures), codes, now, first=said)


def refuse(
    world: World, jti: str, path: ResourcePath, findings: list[JsonValue], codes: str, now: datetime, *, first: str = ""
) -> NoReturn:
    """The guest sees a ticket, the audit log the reasons; the service's log gets `codes` and the `first` failure."""
    ticket = world.random(TICKET_BYTES).hex()
    body: dict[str, JsonValue] = {"ticket": ticket, "jti": jti, "findings": findings}
    with world.database.write() as connection:
        world.audit.append(connection, event="release-denied", subject=str(path), body=body, now=now)
    world.webhook.notify("release-denied", str(path), body, now)
    raise Denied(
        "policy-denied", f"Access denied by policy (ticket {ticket})", where=str(path), expected=first, got=codes
    )


def _members(
    world: World, attested: Attested, record: KeyRecord, query: dict[str, str], now: datetime
) -> tuple[KeyRecord, ...]:
    """Every shard of a bundle, each judged by its own policy."""
    members: list[KeyRecord] = []
    for path in parse_bundle(world.keys.secret(record.path, record.current_version)):
        member = world.keys.get(path)
        if member is None or member.kind is KeyKind.BUNDLE:
            raise Malformed("bundle-member", "a bundle names a key that is not there", where=str(path))
        _refuse_unless_trusted(world, attested, path, _judge(world, attested, path, member, query, now), now)
        members.append(member)
    return tuple(members)


def _account(world: World, attested: Attested, granted: Grant, records: tuple[KeyRecord, ...], now: datetime) -> Work:
    """Count and record every key in one durable transaction. Where it raises, nothing leaves."""
    facts = attested.facts

    def write(connection: Connection) -> None:
        for record in records:
            text = policy_text(world, record.path, record)
            conditions = conditions_of(text) if text else None
            limits = conditions.limits if conditions else ReleaseLimits()
            body: dict[str, JsonValue] = {
                "jti": attested.jti,
                "version": record.current_version,
                "policy": str(conditions.digest) if conditions else RESOURCE_POLICY,
                "waivers": list(conditions.waivers) if conditions else [],
                "tee_key": thumbprint(granted.tee_key),
                "chip_id": facts.cpu.chip_id,
                "devices": [device.chip_id for device in facts.devices],
                "identity_allowlist": _identity_allowlist(facts, conditions),
                "collateral": facts.binding.get("collateral"),
                "simulated": attested.simulated,
            }
            # First: its lock orders everything below, on every replica.
            world.audit.append(connection, event="released", subject=str(record.path), body=body, now=now)
            world.keys.count_release(connection, record.path, limits.max_releases)
            tenant = record.path.repository
            world.tenants.count_release(connection, tenant, now)
            limited = world.tenants.get(tenant).attestations_per_minute is not None
            if limited and not world.leases.used_by(connection, tenant, attested.jti):
                world.tenants.count_attestation(connection, tenant, now)
            world.leases.grant(
                connection, record.path, attested, lifetime=limits.lease, most=limits.max_leases, now=now
            )

    return write


def failures_json(findings: tuple[Finding, ...]) -> list[JsonValue]:
    """Failed findings for the audit log."""
    return [finding.to_json() for finding in findings if finding.result is Result.FAIL]
