"""Root key rotation: which root wraps what, and moving everything under the current ones."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime

from attestation.broker.roles import Principal, Verb
from attestation.ops.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class RootUse:
    """One root key: how many secrets it wraps, and whether this configuration can open them."""

    name: str
    wraps: int
    known: bool


def root_uses(world: World) -> tuple[RootUse, ...]:
    """Every root key that is configured or that something in the store still needs."""
    counts = Counter(world.keys.roots()) + Counter(world.signing.roots())
    known = world.keys.root_names
    names = (*known, *sorted(set(counts) - set(known)))
    return tuple(RootUse(name=name, wraps=counts[name], known=name in known) for name in dict.fromkeys(names))


def rotate_root(world: World, who: Principal, *, now: datetime) -> int:
    """Wrap every secret with the root key that is configured for it. Replicas go on reading meanwhile.

    Returns how many were wrapped. A retired key may be removed once `root_uses` says that it wraps nothing.
    """
    who.require(Verb.WRITE_GLOBAL)
    done = world.keys.rewrap(everything=True) + world.signing.rewrap()
    world.audit.record(event="root-rotated", subject="root-key", body={"by": who.name, "rewrapped": done}, now=now)
    return done
