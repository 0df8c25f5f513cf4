"""The server that `tests/bench/broker.py` measures: the real broker, or the same with verification stubbed out.

The stub lives here and nowhere else: it believes whatever it is sent, which is the cost of everything but believing.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from attestation.broker.session import Challenged, Submission
from attestation.cli.platform import BUILTIN, platform_verifier
from attestation.ops.local_verifier import LocalVerifier
from attestation.ops.open_world import WorldOptions, close_world, open_world
from attestation.service.app import Service, ServiceLimits
from attestation.service.server import Serving, listen, serve
from attestation.values import Tee
from attestation.verify.verified import BoundPlatform
from tests.attestation.broker.broker import NOW


class Stub:
    """The first result of a real verification, for everybody."""

    def __init__(self, real: LocalVerifier) -> None:
        self.trust, self._real = real.trust, real
        self._known: BoundPlatform | None = None

    def verify(self, submission: Submission, challenged: Challenged, *, now: datetime) -> BoundPlatform:
        if self._known is None:
            self._known = self._real.verify(submission, challenged, now=now)
        return self._known


def main(folder: Path, *, stub: bool, sample: bool = False) -> None:
    """Serve until terminated; prints the guests' address."""
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    verifier: Any = platform_verifier(collateral=None, simulated_roots=BUILTIN, sample=sample)
    tees = frozenset({Tee.SNP, Tee.SAMPLE} if sample else {Tee.SNP})
    options = WorldOptions(store=str(folder), tees=tees)
    world = open_world(options, Stub(verifier) if stub else verifier, now=NOW)
    unlimited = ServiceLimits(rate_per_s=1e9, burst=10**9, chip_rate_per_s=1e9, chip_burst=10**9)
    service = Service(world, clock=lambda: NOW, limits=unlimited)
    guest, admin = listen("127.0.0.1:0"), listen("127.0.0.1:0")
    serve(
        service,
        world,
        Serving(guest=guest, admin=admin),
        clock=lambda: NOW,
        ready=lambda _stop: print(guest.url, flush=True),
    )
    close_world(world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), stub=sys.argv[2] == "stub", sample=sys.argv[2] == "sample")
