"""What a broker needs to serve a guest: its database, its root key, and a configuration that the audit log vouches for.

Collateral is probed where it is kept.
"""

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from threading import Lock

from attestation.errors import AttestationError, Unavailable
from attestation.ops.world import World
from attestation.sources.envelope import Vault
from attestation.values import JsonValue, Secret

SURVEY_S = 60.0  # how often all rows are read again: 8 ms for each thousand keys
CONFIRM_AFTER = 1000  # entries: a broker that starts verifies what follows, 0.1 ms each
_PROBE = Secret(b"readiness")


def probes(world: World) -> Mapping[str, Callable[[datetime], None]]:
    """By name; each raises one of our errors where its part does not work."""
    return {
        "database": lambda _now: world.database.ping(),
        "root-key": lambda _now: require_root_key(world.vault),
        "configuration": Surveyor(world),
    }


def require_root_key(vault: Vault) -> None:
    """Seal and open something: wherever the root key lives, it answers and is the one that it was."""
    try:
        opened = vault.open(vault.seal(_PROBE, path="readiness", version=0), path="readiness", version=0)
    except AttestationError as exc:
        raise Unavailable("root-key", "the root key cannot be used", got=exc.code) from exc
    if opened != _PROBE:
        raise Unavailable("root-key", "the root key does not open what it sealed")


class Surveyor:
    """Reads every row anew, now and then, and at once where one was refused. What it finds is recorded once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._looked = float("-inf")
        self._problem: Unavailable | None = None
        self._lock = Lock()

    def __call__(self, now: datetime) -> None:
        """Unavailable while the rows are not those that the audit log names."""
        with self._lock:
            problem = self._look(now)
        if problem is not None:
            raise problem.with_traceback(None)

    def _look(self, now: datetime) -> Unavailable | None:
        at, configuration = time.monotonic(), self._world.configuration
        if configuration.suspect or self._problem is not None or at - self._looked > SURVEY_S:
            survey = configuration.survey()
            found, before = survey.problem, self._problem
            if found is not None and (before is None or (found.code, found.where) != (before.code, before.where)):
                self._record(found, now)
            self._problem, self._looked = found, at
            if found is None and survey.behind > CONFIRM_AFTER and not configuration.behind:
                configuration.confirm(now)
        elif configuration.behind:
            configuration.walk()
        return self._problem

    def _record(self, problem: Unavailable, now: datetime) -> None:
        body: dict[str, JsonValue] = {"code": problem.code, "where": problem.where, "reason": problem.what}
        self._world.audit.record(event="configuration-refused", subject="configuration", body=body, now=now)
        self._world.webhook.notify("configuration-refused", "configuration", body, now)
