"""What a broker needs to serve a guest: its database and its root key. Collateral is probed where it is kept."""

from collections.abc import Callable, Mapping
from datetime import datetime

from attestation.errors import AttestationError, Unavailable
from attestation.ops.world import World
from attestation.sources.envelope import Vault
from attestation.values import Secret

_PROBE = Secret(b"readiness")


def probes(world: World) -> Mapping[str, Callable[[datetime], None]]:
    """By name; each raises one of our errors where its part does not work."""
    return {
        "database": lambda _now: world.database.ping(),
        "root-key": lambda _now: require_root_key(world.vault),
    }


def require_root_key(vault: Vault) -> None:
    """Seal and open something: wherever the root key lives, it answers and is the one that it was."""
    try:
        opened = vault.open(vault.seal(_PROBE, path="readiness", version=0), path="readiness", version=0)
    except AttestationError as exc:
        raise Unavailable("root-key", "the root key cannot be used", got=exc.code) from exc
    if opened != _PROBE:
        raise Unavailable("root-key", "the root key does not open what it sealed")
