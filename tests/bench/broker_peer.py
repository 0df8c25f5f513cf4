"""The server that `tests/bench/broker.py` measures: the real broker, or the same with verification stubbed out.

The stub lives here and nowhere else: it believes whatever it is sent, which is the cost of everything but believing.
"""

import argparse
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from attestation.broker.session import Challenged, Submission
from attestation.cli.platform import platform_verifier
from attestation.cli.serve import log_to_stderr
from attestation.cli.verification import BUILTIN
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


def main(store: str, mode: str, root_key: Path | None, core: int | None) -> None:
    """Serve until terminated; prints the guests' address. Logs as `kata-gpu-kbs serve` does."""
    if core is not None:
        os.sched_setaffinity(0, {core})  # threads are born with it
    log_to_stderr("logfmt")
    verifier: Any = platform_verifier(collateral=None, simulated_roots=BUILTIN, sample=mode == "sample")
    tees = frozenset({Tee.SNP, Tee.SAMPLE} if mode == "sample" else {Tee.SNP})
    options = WorldOptions(store=store, root_key=root_key, tees=tees)
    world = open_world(options, Stub(verifier) if mode == "stub" else verifier, now=NOW)
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="folder or postgresql:// URL")
    parser.add_argument("mode", choices=("real", "stub", "sample"))
    parser.add_argument("--root-key", type=Path)
    parser.add_argument("--core", type=int, help="stay on this core")
    given = parser.parse_args()
    main(given.store, given.mode, given.root_key, given.core)
