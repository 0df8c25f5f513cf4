"""What the handlers of the administrators' listener work with."""

import time
from dataclasses import dataclass

from starlette.requests import Request

from attestation.ops.world import World
from attestation.service.kbs import Clock
from attestation.service.metrics import Metrics
from attestation.service.request import peer
from attestation.service.workers import RateLimit, Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """One world, the threads that serve it, and how often one address may ask."""

    world: World
    workers: Workers
    metrics: Metrics
    clock: Clock
    peers: RateLimit

    def admit(self, request: Request) -> None:
        """Denied for an address that asks too often."""
        self.peers.take(peer(request), time.monotonic())
