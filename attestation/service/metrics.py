"""Prometheus metrics under upstream's names where upstream has one. No path, token or identity is ever a label."""

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from attestation import __version__

SECONDS = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.5, 1.0)  # upstream's buckets (keybroker.md 2.6)
BYTES = tuple(32.0 * 4**n for n in range(5))
MAX_CODES = 200  # codes of ours are a closed set; whatever exceeds it is a defect and must not grow a time series
OTHER = "other"


class _Counted(Collector):
    """A counter that somebody else keeps."""

    def __init__(self, name: str, text: str, count: Callable[[], int]) -> None:
        self._name, self._text, self._count = name, text, count

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Its value now."""
        return [CounterMetricFamily(self._name, self._text, value=self._count())]


class Metrics:
    """One registry per server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._gauge("kbs_build_info", "Build of this broker", "version").labels(version=__version__).set(1)

        self.requests = self._counter("kbs_http_requests", "Requests by status", "status")
        self.seconds = self._histogram("kbs_http_request_duration_seconds", "Time to answer", SECONDS, "endpoint")
        self.received = self._histogram("kbs_http_request_size_bytes", "Announced size of bodies received", BYTES)
        self.sent = self._histogram("kbs_http_response_size_bytes", "Size of bodies sent", BYTES)
        self.connections = self._gauge("kbs_http_active_connections", "Open connections", "listener")

        self.auth_requests = self._counter("kbs_auth_requests", "Challenges asked for")
        self.auth_successes = self._counter("kbs_auth_successes", "Challenges issued")
        self.auth_errors = self._counter("kbs_auth_errors", "Challenges refused")
        self.attestation_requests = self._counter("kbs_attestation_requests", "Evidence received")
        self.attestation_successes = self._counter("kbs_attestation_successes", "Evidence accepted", "tee_type")
        self.attestation_failures = self._counter("kbs_attestation_failures", "Evidence refused", "tee_type")
        self.attestation_errors = self._counter("kbs_attestation_errors", "Evidence that could not be judged")
        self.policy_evaluations = self._counter("kbs_policy_evaluations", "Releases judged")
        self.policy_approvals = self._counter("kbs_policy_approvals", "Releases allowed")
        self.policy_violations = self._counter("kbs_policy_violations", "Releases denied by policy")
        self.policy_errors = self._counter("kbs_policy_errors", "Releases that could not be judged")
        self.resource_reads = self._counter("kbs_resource_reads", "Keys released")
        self.resource_writes = self._counter("kbs_resource_writes", "Keys stored")
        self.resource_deletes = self._counter("kbs_resource_deletes", "Keys deleted")

        self._refusals = self._counter("kata_gpu_kbs_refusals", "Refusals by step and finding", "step", "code")
        self._codes: set[str] = set()
        self.inside = self._gauge("kata_gpu_kbs_requests_inside", "Requests running or waiting")
        self.limit = self._gauge("kata_gpu_kbs_requests_limit", "Requests that may run or wait")
        self.ready = self._gauge("kata_gpu_kbs_ready", "1 where this part works", "check")
        self.documents = self._gauge("kata_gpu_kbs_collateral_documents", "Usable documents", "kind")
        self.collateral_end = self._gauge(
            "kata_gpu_kbs_collateral_end_timestamp_seconds", "When the first document of a kind ends", "kind"
        )
        self.certificate = self._gauge(
            "kata_gpu_kbs_tls_certificate_end_timestamp_seconds", "When a listener's certificate ends", "listener"
        )
        self.reload_failures = self._counter(
            "kata_gpu_kbs_reload_failures", "Renewed files that could not be used", "what"
        )
        for what in ("tls", "collateral"):
            self.reload_failures.labels(what=what)

    def show_summed_up(self, count: Callable[[], int]) -> None:
        """Export a count that is kept elsewhere."""
        self.registry.register(_Counted("kata_gpu_kbs_refusals_summed_up", "Refusals in the log as a number", count))

    def refused(self, step: str, code: str) -> None:
        """Count a refusal by its stable code; several findings of one denial count one by one."""
        for part in code.split(",")[:8]:
            known = part in self._codes or len(self._codes) < MAX_CODES
            if known:
                self._codes.add(part)
            self._refusals.labels(step=step, code=part if known else OTHER).inc()

    def names(self) -> Iterable[str]:
        """Every name that a query may use."""
        for family in self.registry.collect():
            yield family.name
            if family.type == "counter":
                yield f"{family.name}_total"
            if family.type == "histogram":
                yield from (f"{family.name}_{part}" for part in ("bucket", "count", "sum"))

    def render(self) -> bytes:
        """Exposition text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self.registry)
