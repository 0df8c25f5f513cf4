"""Reference values from documents and messages of other tools, stored with where they came from."""

from datetime import datetime, timedelta

from attestation.appraise.rvps import Imported, parse_message, parse_payload
from attestation.broker.roles import Principal, Verb
from attestation.errors import Malformed, Untrusted
from attestation.ops.administer import set_reference_values
from attestation.ops.world import World
from attestation.sources.reference_store import DEFAULT_LIFETIME
from attestation.verify.roots import Anchors, NvTrust


def register_message(
    world: World, who: Principal, message: str | bytes, *, rim_roots: Anchors | None = None, now: datetime
) -> tuple[str, ...]:
    """An RVPS message; returns the names that have new values. NVIDIA's root, unless the caller has another.

    A document with a bad signature is Malformed here: the sender itself was authenticated before.
    """
    who.require(Verb.WRITE_GLOBAL)  # before anything is parsed
    try:
        found = parse_message(message, rim_roots=rim_roots or _roots(), now=now)
    except Untrusted as exc:
        raise Malformed("reference-value", f"the document is not believed: {exc.what}", got=exc.code) from exc
    return _store(world, who, found, DEFAULT_LIFETIME, now)


def import_document(
    world: World, who: Principal, kind: str, document: bytes, *, lifetime: timedelta, now: datetime
) -> tuple[str, ...]:
    """A file of a named format."""
    who.require(Verb.WRITE_GLOBAL)
    return _store(world, who, parse_payload(kind, document, rim_roots=_roots(), now=now), lifetime, now)


def _store(world: World, who: Principal, found: Imported, lifetime: timedelta, now: datetime) -> tuple[str, ...]:
    provenance = f"{found.provenance} by {who.name}"
    set_reference_values(world, who, found.values, provenance=provenance, lifetime=lifetime, now=now)
    return tuple(sorted(found.values))


def _roots() -> Anchors:
    return NvTrust.production().rim_roots
