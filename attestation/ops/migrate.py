"""Resources of upstream's key broker into ours: new keys only, each without a policy, so that nobody gets one yet."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

from attestation.broker.roles import Principal
from attestation.errors import Malformed
from attestation.ops.administer import put_key
from attestation.ops.world import World
from attestation.values import ResourcePath, Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What became of one resource: `imported`, or why not."""

    name: str
    outcome: str

    def to_json(self) -> dict[str, str]:
        """For output."""
        return {"name": self.name, "outcome": self.outcome}


def import_resources(
    world: World | None,
    who: Principal,
    resources: Iterable[tuple[str, Secret | None]],
    *,
    now: datetime,
) -> Iterator[Moved]:
    """One result for each. Without a world nothing is written; a key that is there is left as it is."""
    for name, secret in resources:
        try:
            path = ResourcePath.parse(name)
        except Malformed:
            yield Moved(name=name[:160], outcome="not a resource name")
            continue
        if secret is None:
            yield Moved(name=name, outcome="no regular file, or too long")
        elif world is None:
            yield Moved(name=name, outcome="would be imported")
        elif world.keys.get(path) is not None:
            yield Moved(name=name, outcome="there already")
        else:
            put_key(world, who, path, secret, now=now)
            yield Moved(name=name, outcome="imported")
