"""A resource for the bearer of another attestation service's token, where the operator trusts one and says so."""

from datetime import datetime

from attestation.broker.external import ExternalToken, decide_external, verify_external
from attestation.broker.jose import token_header
from attestation.broker.keys import KeyKind
from attestation.broker.release import grant, release
from attestation.crypto.jwe import Sealed
from attestation.crypto.jwk import thumbprint
from attestation.errors import Denied, Untrusted
from attestation.ops.release import (
    RESOURCE_POLICY,
    Credentials,
    attested_session,
    failures_json,
    policy_text,
    refuse,
    resource_data,
)
from attestation.ops.steps import Steps
from attestation.ops.world import World, conditions_of
from attestation.sources.db import Connection
from attestation.sources.policy_store import PolicyKind
from attestation.values import JsonValue, ResourcePath


def external_token(world: World, credentials: Credentials, *, now: datetime) -> ExternalToken | None:
    """The foreign token that came, verified; None where the caller must be known by a session or token of ours."""
    bearer = credentials.bearer
    if world.external is None or bearer is None:
        return None
    if attested_session(world, credentials.cookie, now=now) is not None:
        return None
    ours = {key.kid for key in (world.authority.current, *world.authority.previous)}
    kid = token_header(bearer).get("kid")
    if isinstance(kid, str) and kid in ours:
        return None
    token = verify_external(bearer, world.external, now=now)
    subjects = (("token", token.id), ("tee-key", thumbprint(token.tee_key)))
    if (revoked := world.revocations.revoked(subjects)) is not None:
        raise Untrusted("revoked", "this identity was revoked", got=revoked)
    return token


def releasing_external(
    world: World, token: ExternalToken, path: ResourcePath, *, query: dict[str, str], now: datetime
) -> Steps[Sealed]:
    """What upstream's key broker would release: what the resource policy allows, and no key with conditions of ours."""
    record = world.keys.get(path)
    text = policy_text(world, path, record)
    verdict = decide_external(
        token,
        conditions_of(text) if text else None,
        test_key=record.is_test if record else world.simulated,
        bundle=record is not None and record.kind is KeyKind.BUNDLE,
        resource_policy=_allowed(world, token, path, query),
    )
    if not verdict.trusted:
        codes = ",".join(finding.code for finding in verdict.failures)
        refuse(world, token.id, path, failures_json(verdict.failures), codes, now)
    if record is None:
        raise Denied("resource-not-found", "no such resource", where=str(path))
    granted = grant(path, token.tee_key, verdict)
    sealed = release(granted, world.keys.secret(path, record.current_version), random=world.random)
    body: dict[str, JsonValue] = {
        "jti": token.id,
        "issuer": token.issuer,
        "version": record.current_version,
        "policy": RESOURCE_POLICY,
        "waivers": [],
        "tee_key": thumbprint(token.tee_key),
        "chip_id": "",
        "devices": [],
        "simulated": token.forgeable,
    }

    def write(connection: Connection) -> None:
        # First: its lock orders everything below, on every replica.
        world.audit.append(connection, event="released", subject=str(path), body=body, now=now)
        world.keys.count_release(connection, path, None)
        world.tenants.count_release(connection, path.repository, now)

    try:
        yield write
    except Denied as exc:
        refuse(world, token.id, path, [{"check": "release-count", "code": exc.code}], exc.code, now)
    return sealed


def _allowed(world: World, token: ExternalToken, path: ResourcePath, query: dict[str, str]) -> bool | None:
    stored = world.policies.get(PolicyKind.REGO_RESOURCE, RESOURCE_POLICY)
    return None if stored is None else world.rego.allow(stored.text, token.claims, resource_data(path, query))
