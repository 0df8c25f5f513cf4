"""What a running server looks after: rows that expire, certificates and collateral that were renewed, its own parts."""

import asyncio
import contextlib

import structlog

from attestation.errors import AttestationError
from attestation.ops.world import World
from attestation.service.app import Service
from attestation.service.kbs import Clock
from attestation.service.tls import TlsListener

log = structlog.get_logger()
SWEEP_S = 60.0
LOOK_S = 5.0  # a renewed certificate or bundle is in use after this time at the latest


class Upkeep:
    """Failures are logged and counted; what was in use stays in use."""

    def __init__(
        self,
        service: Service,
        world: World,
        *,
        guests: TlsListener | None,
        administrators: TlsListener | None,
        clock: Clock,
    ) -> None:
        self._service, self._world, self._clock = service, world, clock
        named = {"guests": guests, "administrators": administrators}
        self._listeners = {name: listener for name, listener in named.items() if listener is not None}
        self._at_once = asyncio.Event()
        self._swept = 0.0

    def now(self) -> None:
        """Do not wait for the next look."""
        self._at_once.set()

    async def run(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        self._swept = loop.time()
        self._show_certificates()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._at_once.wait(), LOOK_S)
            forced = self._at_once.is_set()
            self._at_once.clear()
            try:
                await loop.run_in_executor(None, self._renew, forced)
                if loop.time() - self._swept >= SWEEP_S:
                    self._swept = loop.time()
                    await loop.run_in_executor(None, self._sweep)
            except Exception as exc:  # an outermost shell: a defect ends this round, and no other
                log.error("upkeep.crashed", exc_info=exc)

    def _renew(self, forced: bool) -> None:
        for name, listener in self._listeners.items():
            try:
                if listener.reload(force=forced):
                    log.info("tls.renewed", listener=name, not_after=listener.not_after.isoformat())
            except AttestationError as exc:
                self._service.metrics.reload_failures.labels(what="tls").inc()
                log.error("tls.not-renewed", listener=name, code=exc.code, where=exc.where, reason=exc.what)
        self._show_certificates()
        self._service.sum_up()
        try:
            if self._service.renew_collateral():
                log.info("collateral.renewed")
        except AttestationError as exc:
            self._service.metrics.reload_failures.labels(what="collateral").inc()
            log.error("collateral.not-renewed", code=exc.code, where=exc.where, reason=exc.what)

    def _show_certificates(self) -> None:
        for name, listener in self._listeners.items():
            self._service.metrics.certificate.labels(listener=name).set(listener.not_after.timestamp())

    def _sweep(self) -> None:
        """Delete what has expired, and look at every part, where nobody asks for readiness too."""
        now = self._clock()
        for name, fault in self._service.health.check(now).items():
            log.error("probe.failed", check=name, code=fault.code, where=fault.where, reason=fault.what)
        try:
            gone = self._world.sessions.sweep(now)
            self._world.attestations.sweep(now)
            self._world.leases.sweep(now)
        except AttestationError as exc:
            log.warning("sweep.failed", code=exc.code)
            return
        log.debug("sessions.swept", count=gone)
