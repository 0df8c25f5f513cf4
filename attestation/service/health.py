"""Whether this process should get guests: it is not draining, and every probe passed a moment ago."""

import time
from collections.abc import Callable, Mapping
from datetime import datetime

from attestation.errors import AttestationError, Unavailable

FRESH_S = 1.0  # anybody may ask; the database is asked once a second at most
Probe = Callable[[datetime], None]


class Health:
    """Probes by name. A probe raises one of our errors where its part does not work."""

    def __init__(self, probes: Mapping[str, Probe]) -> None:
        self._probes = dict(probes)
        self._checked = float("-inf")
        self._failed: dict[str, AttestationError] = {}
        self.draining = False

    @property
    def names(self) -> tuple[str, ...]:
        """What is probed."""
        return tuple(self._probes)

    def check(self, now: datetime) -> Mapping[str, AttestationError]:
        """What does not work, by name. Blocks; call it from a worker."""
        at = time.monotonic()
        if at - self._checked > FRESH_S:
            failed: dict[str, AttestationError] = {}
            for name, probe in self._probes.items():
                try:
                    probe(now)
                except AttestationError as exc:
                    failed[name] = exc
            self._failed, self._checked = failed, at
        return self._failed

    def require_ready(self, now: datetime) -> None:
        """Unavailable, naming what does not work and nothing about why: guests may read this."""
        failed = self.check(now)
        if failed:
            raise Unavailable("not-ready", "not ready", where="+".join(failed))
