"""What administrators do: authorised for the repository, and audited."""

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from attestation.appraise.policy import MAX_POLICY_BYTES, KeyConditions
from attestation.broker.admin import render_admin_token, verify_admin_token
from attestation.broker.keys import MODEL_KEY_BYTES, TEST_LABEL, KeyKind, KeyRecord, parse_bundle
from attestation.broker.roles import Principal, Role, Verb
from attestation.errors import Denied, Malformed, Misconfigured, Untrusted
from attestation.ops.release import DEFAULT_POLICY, RESOURCE_POLICY
from attestation.ops.world import World, conditions_of
from attestation.sources.configuration_change import Change
from attestation.sources.policy_store import PolicyKind
from attestation.sources.reference_store import DEFAULT_LIFETIME, text_of
from attestation.values import Digest, JsonValue, ResourcePath, Secret

ADMIN_TOKEN_LIFETIME = timedelta(hours=12)
_MAX_POLICY_NAME = 128


def authenticate_admin(world: World, bearer: str | None, *, now: datetime) -> Principal:
    """Token to principal. Untrusted (401) for no or a bad token, Denied (403) for a role that means nothing here."""
    if world.deny_all_admins:
        raise Denied("admins-denied", "DenyAll authorization_mode is enabled")
    if bearer is None:
        raise Untrusted("admin-token-missing", "admin access denied: no bearer token")
    claims = verify_admin_token(
        bearer, own=world.admin_key, own_issuer=world.authority.issuer, issuers=world.admin_issuers, now=now
    )
    if claims.issuer is not None:
        role = claims.issuer.roles.get(claims.role)
        if role is None:
            raise Denied("role-not-allowed", f"Role {claims.role[:64]} not allowed")
        return Principal(name=claims.subject, role=role, title=claims.role[:64])
    user = world.users.get(claims.subject)
    if user is None or user.epoch != claims.epoch:
        raise Untrusted("admin-token-revoked", "Cannot verify token with any of the issuers: it was taken back")
    return Principal(name=user.name, role=user.role, repositories=user.repositories)


def issue_admin_token(world: World, name: str, *, lifetime: timedelta = ADMIN_TOKEN_LIFETIME, now: datetime) -> str:
    """A token for an existing user."""
    user = world.users.get(name)
    if user is None:
        raise Malformed("user-unknown", "no such user", where=name[:80])
    return render_admin_token(
        world.admin_key,
        issuer=world.authority.issuer,
        name=name,
        role=user.role,
        epoch=user.epoch,
        lifetime=lifetime,
        now=now,
    )


def put_key(
    world: World,
    who: Principal,
    path: ResourcePath,
    secret: Secret | None,
    *,
    kind: KeyKind = KeyKind.RESOURCE,
    labels: Sequence[str] = (),
    policy: str | None = None,
    expected: int | None = None,
    now: datetime,
) -> int:
    """Store bytes, or make a model key where `secret` is None; with labels and policy, or nothing. Returns the version.

    A key keeps the labels that it was made with: others are Denied. A broker that accepts forgeable evidence labels
    whatever it stores `test`.
    """
    who.require(Verb.WRITE_KEY, path.repository)
    record = world.keys.get(path)
    if policy is not None:
        who.require(Verb.WRITE_POLICY, path.repository)
        _refuse_older_key_policy(world, path, policy)
    if record is not None:
        _require_labels(record, labels)
    if secret is None:
        secret = Secret(world.random(MODEL_KEY_BYTES))
    if kind is KeyKind.BUNDLE:
        parse_bundle(secret)
    if world.simulated:
        labels = sorted({*labels, TEST_LABEL})
    if record is None:
        world.tenants.require_room(path.repository)
    with world.configuration.change() as change:
        version = world.keys.put(
            change, path, secret, kind=kind, labels=labels, policy=policy, expected=expected, now=now
        )
        body: dict[str, JsonValue] = {"version": version, "kind": str(kind), "labels": list(labels)}
        if policy is not None:
            body["policy"] = str(conditions_of(policy).digest)
        _record(change, who, "key-stored", str(path), body, now)
    return version


def keep_key(
    world: World,
    who: Principal,
    path: ResourcePath,
    secret: Secret,
    *,
    labels: Sequence[str] = (),
    policy: str | None = None,
    now: datetime,
) -> int:
    """Have exactly these bytes under this name, with these labels and this policy; or change nothing. The version.

    A name that is taken is Denied other bytes: what the present ones encrypted could no longer be opened.
    """
    record = world.keys.get(path)
    if record is None:
        return put_key(world, who, path, secret, labels=labels, policy=policy, expected=0, now=now)
    who.require(Verb.WRITE_KEY, path.repository)
    if world.keys.secret(path, record.current_version) != secret:
        raise Denied("key-differs", "another key has this name (use that key's file, or another name)", where=str(path))
    _require_labels(record, labels)
    if policy is not None:
        set_key_policy(world, who, path, policy, now=now)
    return record.current_version


def rotate_key(world: World, who: Principal, path: ResourcePath, *, now: datetime) -> int:
    """A new random version of a model key."""
    record = existing_key(world, path)
    if record.kind is not KeyKind.MODEL_KEY:
        raise Malformed("key-kind", "only model keys rotate by themselves", where=str(path), got=record.kind)
    return put_key(world, who, path, None, kind=KeyKind.MODEL_KEY, labels=record.labels, now=now)


def delete_key(world: World, who: Principal, path: ResourcePath, *, now: datetime) -> None:
    """Shred every version."""
    who.require(Verb.WRITE_KEY, path.repository)
    with world.configuration.change() as change:
        if not world.keys.delete(change, path):
            raise _no_such_key(path)
        _record(change, who, "key-deleted", str(path), {}, now)


def set_key_policy(world: World, who: Principal, path: ResourcePath, text: str, *, now: datetime) -> None:
    """Replace a key's own release policy."""
    who.require(Verb.WRITE_POLICY, path.repository)
    conditions = conditions_of(text)
    _refuse_older_key_policy(world, path, text)
    with world.configuration.change() as change:
        if not world.keys.set_policy(change, path, text):
            raise _no_such_key(path)
        body: dict[str, JsonValue] = {"policy": str(conditions.digest), "waivers": list(conditions.waivers)}
        _record(change, who, "key-policy-set", str(path), body, now)


def set_release_policy(
    world: World,
    who: Principal,
    name: str,
    text: str,
    *,
    expected: int | None = None,
    allow_rollback: bool = False,
    now: datetime,
) -> int:
    """A release policy for a repository, or `default` for all of them. Older ones do not come back unnoticed."""
    repository = None if name == DEFAULT_POLICY else name
    who.require(Verb.WRITE_POLICY if repository else Verb.WRITE_GLOBAL, repository)
    conditions = conditions_of(text)
    earlier = world.policies.history(PolicyKind.RELEASE, name)
    if earlier:
        if text != earlier[-1].text:
            _refuse_older_epoch(conditions, max(conditions_of(policy.text).epoch for policy in earlier), name)
            if not allow_rollback and any(policy.text == text for policy in earlier):
                raise Denied("policy-rollback", "this is an earlier version", where=name, expected="--allow-rollback")
        expected = earlier[-1].version if expected is None else expected  # nobody writes between check and store
    with world.configuration.change() as change:
        version = world.policies.put(
            change, PolicyKind.RELEASE, name, text, author=who.name, expected=expected, now=now
        )
        _record(change, who, "policy-set", name, {"version": version, "policy": str(conditions.digest)}, now)
    return version


def set_rego_policy(world: World, who: Principal, kind: PolicyKind, name: str, text: str, *, now: datetime) -> int:
    """Upstream's resource policy or an attestation policy; it must compile."""
    who.require(Verb.WRITE_GLOBAL)
    if len(text.encode()) > MAX_POLICY_BYTES or not 0 < len(name) <= _MAX_POLICY_NAME:
        raise Malformed("rego-syntax", "policy or its name is too long", expected=f"{MAX_POLICY_BYTES} bytes")
    world.rego.check(text)
    with world.configuration.change() as change:
        version = world.policies.put(change, kind, name, text, author=who.name, now=now)
        body: dict[str, JsonValue] = {"version": version, "policy": digest_of(text)}
        _record(change, who, "policy-set", f"{kind}/{name}", body, now)
    return version


def policy_names(world: World, who: Principal) -> tuple[str, ...]:
    """Names of resource policies, as upstream lists them."""
    who.require(Verb.READ)
    return world.policies.names(PolicyKind.REGO_RESOURCE) or (RESOURCE_POLICY,)


def set_reference_values(
    world: World,
    who: Principal,
    values: Mapping[str, JsonValue],
    *,
    provenance: str,
    lifetime: timedelta = DEFAULT_LIFETIME,
    now: datetime,
) -> None:
    """New versions of reference values."""
    who.require(Verb.WRITE_GLOBAL)
    with world.configuration.change() as change:
        for name, value in values.items():
            version = world.references.put(change, name, value, expires=now + lifetime, provenance=provenance, now=now)
            body: dict[str, JsonValue] = {"version": version, "provenance": provenance}
            _record(change, who, "reference-set", name, {**body, "value": digest_of(text_of(value))}, now)


def add_user(
    world: World, who: Principal, name: str, role: Role, repositories: tuple[str, ...], *, now: datetime
) -> None:
    """A new administrator."""
    who.require(Verb.MANAGE_USERS)
    with world.configuration.change() as change:
        world.users.add(change, name, role, repositories, now)
        _record(change, who, "user-added", name, {"role": str(role), "repositories": list(repositories)}, now)


def revoke_user(world: World, who: Principal, name: str, *, now: datetime) -> None:
    """Take back every token of an administrator."""
    who.require(Verb.MANAGE_USERS)
    with world.configuration.change() as change:
        if not world.users.bump(change, name):
            raise Misconfigured("user-unknown", "no such user", where=name)
        _record(change, who, "user-revoked", name, {}, now)


def list_keys(world: World, who: Principal, repository: str | None = None) -> tuple[KeyRecord, ...]:
    """Keys that the principal may see."""
    who.require(Verb.READ, repository or who.somewhere)
    return tuple(record for record in world.keys.list(repository) if who.sees(record.path.repository))


def _require_labels(record: KeyRecord, labels: Sequence[str]) -> None:
    if not set(labels) <= set(record.labels):
        raise Denied(
            "key-labels",
            "a key keeps the labels that it was made with",
            where=str(record.path),
            expected=",".join(labels),
            got=",".join(record.labels) or "none",
        )


def _refuse_older_key_policy(world: World, path: ResourcePath, text: str) -> None:
    conditions, record = conditions_of(text), world.keys.get(path)
    if record is not None and record.policy and record.policy != text:
        _refuse_older_epoch(conditions, conditions_of(record.policy).epoch, str(path))


def _refuse_older_epoch(conditions: KeyConditions, newest: int, where: str) -> None:
    if newest and conditions.epoch <= newest:
        raise Denied(
            "policy-rollback", "an older policy", where=where, expected=f"epoch above {newest}", got=conditions.epoch
        )


def existing_key(world: World, path: ResourcePath) -> KeyRecord:
    """The key's record. Misconfigured where there is none: an administrator named it, nobody was denied anything."""
    record = world.keys.get(path)
    if record is None:
        raise _no_such_key(path)
    return record


def _no_such_key(path: ResourcePath) -> Misconfigured:
    return Misconfigured("resource-not-found", "no such resource", where=str(path))


def digest_of(text: str) -> str:
    """As entries name a text, whatever it says."""
    return str(Digest("sha256", hashlib.sha256(text.encode()).digest()))


def _record(
    change: Change, who: Principal, event: str, subject: str, body: Mapping[str, JsonValue], now: datetime
) -> None:
    change.record(event, subject, {"by": who.name, **body}, now)
