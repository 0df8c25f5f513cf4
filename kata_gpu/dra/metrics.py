"""Prometheus metrics of the agent. Names and labels are an interface: docs and alerts depend on them."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kata_gpu.ops.agent import Picture
from kata_gpu.ops.modes import Phase

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 45.0)  # 45 s: kubelet's deadline


class Metrics:
    """One registry per process; implements `Observer` of the DRA service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self._calls = Counter("kata_gpu_claim_calls", "Calls of kubelet by outcome.", ["call", "code"], registry=r)
        self._seconds = Histogram(
            "kata_gpu_claim_seconds", "Duration of a call for one claim.", ["call"], buckets=_SECONDS, registry=r
        )
        self._devices = Gauge("kata_gpu_devices", "Devices by state.", ["state"], registry=r)
        self._claims = Gauge("kata_gpu_claims", "Claims in the checkpoint.", ["state"], registry=r)
        self._quarantined = Gauge("kata_gpu_quarantined", "Devices set aside.", registry=r)
        self._problem = Gauge("kata_gpu_step_failing", "1 while a step of the agent fails.", ["step"], registry=r)
        self._writes = Gauge("kata_gpu_slice_writes", "Writes of ResourceSlices since start.", registry=r)
        self._registered = Gauge("kata_gpu_registered", "1 while kubelet accepts the plugin.", registry=r)
        self._phase = Gauge("kata_gpu_mode_change", "1 for the phase of the mode change.", ["phase"], registry=r)
        self._heals = Counter("kata_gpu_socket_heals", "Sockets published again after an outside delete.", registry=r)

    def claim_call(self, call: str, code: str, seconds: float) -> None:
        """One claim of one call."""
        self._calls.labels(call, code).inc()
        self._seconds.labels(call).observe(seconds)

    def socket_healed(self) -> None:
        """A socket had been removed."""
        self._heals.inc()

    def picture(self, picture: Picture, *, registered: bool) -> None:
        """The node after a pass."""
        self._devices.clear()
        for offer in picture.offers:
            self._devices.labels(offer.unfit.code if offer.unfit else "ready").inc()
        self._claims.clear()
        for entry in picture.checkpoint.claims:
            self._claims.labels(str(entry.state)).inc()
        self._quarantined.set(len(picture.checkpoint.quarantine))
        self._problem.clear()
        for step in picture.problems:
            self._problem.labels(step).set(1)
        self._writes.set(picture.writes)
        self._registered.set(int(registered))
        for phase in Phase:
            self._phase.labels(str(phase)).set(int(picture.modes.phase is phase))

    def render(self) -> bytes:
        """Text exposition format."""
        return generate_latest(self.registry)
