"""Revoking and tenants' limits: authorised, audited, and told to the outside."""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from attestation.broker.revocation import MAX_REASON, FirmwareRange, Revocation, RevocationKind, normal_value
from attestation.broker.roles import Principal, Verb
from attestation.errors import Malformed
from attestation.ops.world import World
from attestation.sources.audit import Entry
from attestation.sources.leases import Lease
from attestation.sources.tenants import Quota
from attestation.values import JsonValue, ResourcePath

_POLICY_EVENTS = ("key-stored", "key-policy-set")


def revoke(
    world: World, who: Principal, kind: RevocationKind, value: str, reason: str, *, now: datetime
) -> tuple[Lease, ...]:
    """Refuse an identity or firmware from now on, on every replica; returns the leases that this ended.

    The broker cannot take a key back from a guest that has it: whoever runs the guests stops those of the leases.
    """
    who.require(Verb.WRITE_GLOBAL)
    if not 0 < len(reason) <= MAX_REASON:
        raise Malformed("revocation-reason", "say why", expected=f"1 to {MAX_REASON} characters")
    value = normal_value(kind, value)
    concerned = _concerns(world, kind, value)
    body: dict[str, JsonValue] = {"by": who.name, "kind": str(kind), "value": value, "reason": reason}
    with world.configuration.change() as change:
        world.revocations.revoke(change, kind, value, reason, now)
        live = [lease for lease in world.leases.live(now) if concerned(lease)]
        body["leases"] = [{"path": str(held.path), "holder": held.holder, "chip_id": held.chip_id} for held in live]
        change.record("revoked", f"{kind} {value}"[:390], body, now)
    ended = world.leases.end(now, concerned)
    world.webhook.notify("revoked", f"{kind} {value}", body, now)
    return ended


def unrevoke(world: World, who: Principal, kind: RevocationKind, value: str, *, now: datetime) -> bool:
    """Accept it again; false where it was not revoked."""
    who.require(Verb.WRITE_GLOBAL)
    value = normal_value(kind, value)
    body: dict[str, JsonValue] = {"by": who.name, "kind": str(kind), "value": value}
    with world.configuration.change() as change:
        found = world.revocations.unrevoke(change, kind, value)
        if found:
            change.record("unrevoked", f"{kind} {value}"[:390], body, now)
    if found:
        world.webhook.notify("unrevoked", f"{kind} {value}", body, now)
    return found


def list_revocations(world: World, who: Principal) -> tuple[Revocation, ...]:
    """Everything that is revoked."""
    who.require(Verb.READ)
    return world.revocations.all()


def list_leases(world: World, who: Principal, path: ResourcePath | None, *, now: datetime) -> tuple[Lease, ...]:
    """Who holds keys at present, as far as the principal may see."""
    who.require(Verb.READ, path.repository if path else who.somewhere)
    return tuple(lease for lease in world.leases.live(now, path) if who.sees(lease.path.repository))


def set_quota(world: World, who: Principal, tenant: str, quota: Quota, *, now: datetime) -> None:
    """Limits of one repository."""
    who.require(Verb.WRITE_GLOBAL)
    ResourcePath(tenant, "x", "x")  # the naming rule
    with world.configuration.change() as change:
        world.tenants.put(change, tenant, quota, now)
        change.record("quota-set", tenant, {"by": who.name, **asdict(quota)}, now)


def list_quotas(world: World, who: Principal, *, now: datetime) -> list[dict[str, Any]]:
    """Tenants with limits and what they have used of them, as far as the principal may see."""
    who.require(Verb.READ, who.somewhere)
    return [
        {
            "tenant": name,
            **asdict(quota),
            "used": {"keys": len(world.keys.list(name)), **world.tenants.used(name, now)},
        }
        for name, quota in world.tenants.all().items()
        if who.sees(name)
    ]


def audit_tail(world: World, who: Principal, count: int, repository: str | None = None) -> tuple[Entry, ...]:
    """The newest entries: of the whole log, of one repository, or of those that the principal is limited to."""
    who.require(Verb.READ, repository or who.somewhere)
    return world.audit.tail(count, (repository,) if repository else who.repositories)


def policy_history(world: World, who: Principal, path: ResourcePath) -> list[dict[str, Any]]:
    """Who gave a key which release policy when, oldest first: digests, as releases name them, from the audit log."""
    who.require(Verb.READ, path.repository)
    return [
        {"at": entry.at.isoformat(), "by": entry.body.get("by"), "policy": entry.body["policy"], "seq": entry.seq}
        for entry in world.audit.about(str(path))
        if entry.event in _POLICY_EVENTS and entry.body.get("policy")
    ]


def _concerns(world: World, kind: RevocationKind, value: str) -> Callable[[Lease], bool]:
    if kind is RevocationKind.FIRMWARE:
        covered = FirmwareRange.parse(value)

        def runs(lease: Lease) -> bool:
            known = world.attestations.get(lease.jti)
            return known is not None and covered.covers(known.facts)

        return runs

    def named(lease: Lease) -> bool:
        known = world.attestations.get(lease.jti)
        serials = [device.leaf_serial for device in known.facts.devices] if known else []
        return value in {
            RevocationKind.TOKEN: [lease.jti],
            RevocationKind.TEE_KEY: [lease.holder],
            RevocationKind.CHIP: [lease.chip_id.lower()],
            RevocationKind.GPU: [*map(str.lower, lease.devices), *serials],
        }.get(kind, [])

    return named
