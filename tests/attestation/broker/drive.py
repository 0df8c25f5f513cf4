"""Use cases of the broker from beginning to end in this thread; the service leaves their transactions to another one."""

from datetime import datetime
from typing import Any, TypeVar

from attestation.broker.external import ExternalToken
from attestation.broker.session import Attested
from attestation.crypto.jwe import Sealed
from attestation.ops.attest import Token, attesting
from attestation.ops.external import releasing_external
from attestation.ops.release import releasing
from attestation.ops.steps import Steps
from attestation.ops.world import World
from attestation.sources.db import Database
from attestation.values import ResourcePath

T = TypeVar("T")


def finish(database: Database, steps: Steps[T]) -> T:
    """All of it, in this thread."""
    try:
        work = next(steps)
        while True:
            try:
                written = database.commit(work)
            except Exception as exc:  # noqa: BLE001 - it is raised where the use case yielded
                work = steps.throw(exc)
            else:
                work = steps.send(written)
    except StopIteration as end:
        result: T = end.value
        return result


def attest(world: World, **order: Any) -> Token:
    """The answer to evidence."""
    return finish(world.database, attesting(world, **order))


def release_resource(
    world: World, attested: Attested, path: ResourcePath, *, query: dict[str, str], now: datetime
) -> Sealed:
    """The key of an attested guest."""
    return finish(world.database, releasing(world, attested, path, query=query, now=now))


def release_external(
    world: World, token: ExternalToken, path: ResourcePath, *, query: dict[str, str], now: datetime
) -> Sealed:
    """The key of who has a foreign token."""
    return finish(world.database, releasing_external(world, token, path, query=query, now=now))
