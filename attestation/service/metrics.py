"""Prometheus metrics under upstream's names where upstream has one. No path, token or identity is ever a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from attestation import __version__


class Metrics:
    """One registry per server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        build = Gauge("kbs_build_info", "Build of this broker", ["version"], registry=self.registry)
        build.labels(version=__version__).set(1)
        self.auth_requests = self._counter("kbs_auth_requests", "Challenges asked for")
        self.auth_successes = self._counter("kbs_auth_successes", "Challenges issued")
        self.auth_errors = self._counter("kbs_auth_errors", "Challenges refused")
        self.attestation_requests = self._counter("kbs_attestation_requests", "Evidence received")
        self.attestation_successes = self._counter("kbs_attestation_successes", "Evidence accepted")
        self.attestation_failures = self._counter("kbs_attestation_failures", "Evidence refused")
        self.resource_reads = self._counter("kbs_resource_reads", "Keys released")
        self.policy_violations = self._counter("kbs_policy_violations", "Releases denied by policy")
        self.requests = Counter("kbs_http_requests", "Requests by status", ["status"], registry=self.registry)

    def refused(self, code: str) -> None:
        """Count a denial."""
        if code == "policy-denied":
            self.policy_violations.inc()

    def render(self) -> bytes:
        """Exposition text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)
