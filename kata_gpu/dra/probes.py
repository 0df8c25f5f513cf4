"""`/metrics`, `/healthz` and `/readyz` of an agent in any mode, from its last pass."""

import json
from collections.abc import Callable
from datetime import datetime, timedelta

from kata_gpu.clock import utc_now
from kata_gpu.dra.http import StatusServer
from kata_gpu.dra.metrics import Metrics
from kata_gpu.ops.agent import ADVISORY, Picture

STALLED = timedelta(seconds=120)  # a pass includes a mode switch; far beyond it the loop hangs


class Probes:
    """`unregistered` says why kubelet has not accepted us, or nothing."""

    def __init__(self, listen: tuple[str, int], metrics: Metrics, unregistered: Callable[[], str]) -> None:
        self._metrics = metrics
        self._unregistered = unregistered
        self._picture = Picture()
        self._last: datetime | None = None
        self._server = StatusServer(
            *listen,
            {
                "/metrics": lambda: (200, "text/plain; version=0.0.4", metrics.render()),
                "/healthz": self._healthz,
                "/readyz": self._readyz,
            },
        )

    def start(self) -> None:
        """Begin to answer."""
        self._server.start()

    def stop(self) -> None:
        """End."""
        self._server.stop()

    def passed(self, picture: Picture) -> None:
        """The loop has turned once more."""
        self._metrics.picture(picture, registered=not self._unregistered())
        self._picture, self._last = picture, utc_now()

    def _healthz(self) -> tuple[int, str, bytes]:
        alive = self._last is None or utc_now() - self._last < STALLED
        return (200 if alive else 503), "text/plain", b"ok\n" if alive else b"the loop does not turn\n"

    def _readyz(self) -> tuple[int, str, bytes]:
        why = {step: error for step, error in self._picture.problems.items() if step not in ADVISORY}
        if unregistered := self._unregistered():
            why["registration"] = unregistered
        if not self._picture.published:
            why.setdefault("slices", "not published yet")
        body = json.dumps({"ready": not why, "why": why}).encode() + b"\n"
        return (503 if why else 200), "application/json", body
