"""What publishers do with a model key without ever holding it: wrap and unwrap data keys, derive shard keys. Audited.

Wrapped keys are the annotation packets that stock guests open with the same key (keybroker.md 2.8).
"""

from datetime import datetime

from attestation.broker.keys import KeyKind, KeyRecord
from attestation.broker.model_key import derive_shard_key
from attestation.broker.roles import Principal, Verb
from attestation.crypto.sealed_secret import IV_BYTES, unwrap_layer_key, wrap_layer_key
from attestation.errors import Malformed, Untrusted
from attestation.ops.administer import existing_key
from attestation.ops.world import World
from attestation.values import JsonValue, ResourcePath, Secret


def wrap_key(world: World, who: Principal, path: ResourcePath, data: bytes, *, now: datetime) -> tuple[int, str]:
    """Encrypt a data key under the newest version; the version, and the packet as text."""
    record = _model_key(world, who, path)
    kek = world.keys.secret(path, record.current_version)
    packet = wrap_layer_key(data, kek=kek, path=path, iv=world.random(IV_BYTES))
    _record(world, who, "key-wrapped", path, record.current_version, now)
    return record.current_version, packet


def unwrap_key(world: World, who: Principal, path: ResourcePath, packet: str, *, now: datetime) -> tuple[int, Secret]:
    """Inverse of `wrap_key`, under whichever version wrapped it. Recorded before anything is returned.

    Raises Malformed where none did.
    """
    _model_key(world, who, path)
    for version in reversed(world.keys.versions(path)):
        try:
            data = unwrap_layer_key(packet, kek=world.keys.secret(path, version))
        except Untrusted:
            continue
        _record(world, who, "key-unwrapped", path, version, now)
        return version, Secret(data)
    raise Malformed("wrapped-key", "no version of this key wrapped it", where=str(path))


def derive_key(world: World, who: Principal, path: ResourcePath, label: str, *, now: datetime) -> tuple[int, Secret]:
    """The shard key that a guest gets for `label` from the newest version."""
    record = _model_key(world, who, path)
    secret = derive_shard_key(world.keys.secret(path, record.current_version), path, label)
    _record(world, who, "key-derived", path, record.current_version, now, {"label": label})
    return record.current_version, secret


def _model_key(world: World, who: Principal, path: ResourcePath) -> KeyRecord:
    who.require(Verb.WRITE_KEY, path.repository)
    record = existing_key(world, path)
    if record.kind is not KeyKind.MODEL_KEY:
        raise Malformed("key-kind", "only a model key wraps and derives", where=str(path), got=record.kind)
    return record


def _record(
    world: World,
    who: Principal,
    event: str,
    path: ResourcePath,
    version: int,
    now: datetime,
    more: dict[str, JsonValue] | None = None,
) -> None:
    body: dict[str, JsonValue] = {"by": who.name, "version": version, **(more or {})}
    world.audit.record(event=event, subject=str(path), body=body, now=now)
