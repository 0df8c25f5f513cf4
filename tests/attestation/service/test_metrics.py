"""Metrics: upstream's names, closed labels; dashboard and alerts ask only for what exists; spans where they are wanted."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.service.metrics import MAX_CODES, OTHER, Metrics
from attestation.service.observe import endpoint_of
from kata_gpu.core.yaml12 import load
from tests.attestation.broker.broker import PATH, Served, ready_broker, served
from tests.conformance.rust_client import RustClient, TeeKey, Wire
from tests.conformance.transcripts import snp_attester

MONITORING = Path(__file__).parents[3] / "deploy" / "monitoring"
FUNCTIONS = {"sum", "min", "max", "rate", "increase", "topk", "absent", "histogram_quantile", "time"}
LABELS = {"job", "check", "kind", "instance", "listener", "code", "step", "status", "endpoint", "tee_type", "what"}
UPSTREAM = (
    "kbs_build_info", "kbs_http_requests_total", "kbs_http_request_duration_seconds", "kbs_http_request_size_bytes",
    "kbs_http_response_size_bytes", "kbs_http_active_connections", "kbs_resource_reads_total",
    "kbs_resource_writes_total", "kbs_resource_deletes_total", "kbs_policy_evaluations_total",
    "kbs_policy_approvals_total", "kbs_policy_violations_total", "kbs_policy_errors_total",
    "kbs_attestation_requests_total", "kbs_attestation_successes_total", "kbs_attestation_failures_total",
    "kbs_attestation_errors_total", "kbs_auth_requests_total", "kbs_auth_successes_total", "kbs_auth_errors_total",
)  # fmt: skip


@pytest.fixture(scope="module")
def kbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with ready_broker(tmp_path_factory.mktemp("kbs"), simulated=True) as made, served(made) as running:
        yield running


def exported(kbs: Served) -> str:
    wire = Wire(kbs.admin_url)
    try:
        return wire.call("GET", "/metrics").body.decode()
    finally:
        wire.close()


def value(text: str, series: str) -> float:
    found = re.search(rf"^{re.escape(series)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("name", UPSTREAM)
def test_upstreams_names(name: str) -> None:
    """Dashboards written for upstream find them (keybroker.md 2.6)."""
    assert name in set(Metrics().names())


def test_one_handshake_is_counted_once(kbs: Served) -> None:
    """Challenge, evidence, release, a denial and a refusal, each in its place."""
    before = exported(kbs)
    client = RustClient(wire=Wire(kbs.url), tee="snp", attester=snp_attester, key=TeeKey.make())
    client.handshake()
    assert client.get(f"resource/{PATH}").status == 200
    assert client.get("resource/default/model/none").status == 403
    client.auth()
    broken = client.attest_body()
    broken["tee-evidence"]["additional_evidence"] = ""
    assert client.attest(broken).status == 401
    client.wire.close()
    after = exported(kbs)
    grown = {
        "kbs_auth_successes_total": 2, "kbs_attestation_requests_total": 2,
        'kbs_attestation_successes_total{tee_type="snp"}': 1, 'kbs_attestation_failures_total{tee_type="snp"}': 1,
        "kbs_policy_evaluations_total": 2, "kbs_policy_approvals_total": 1, "kbs_policy_violations_total": 1,
        "kbs_resource_reads_total": 1, 'kbs_http_requests_total{status="200"}': 4,
        'kata_gpu_kbs_refusals_total{code="report-data-mismatch",step="attest"}': 1,
        'kata_gpu_kbs_refusals_total{code="no-release-policy",step="release"}': 1,
        'kbs_http_request_duration_seconds_count{endpoint="attest"}': 2,
    }  # fmt: skip
    extra = {name: value(after, name) - value(before, name) for name in grown}
    extra['kbs_http_requests_total{status="200"}'] -= 1  # the reading of the metrics before
    assert extra == grown


def test_labels_are_closed() -> None:
    """Neither paths nor codes can grow a series without bound."""
    assert endpoint_of("/kbs/v0/resource/tenant/secret/name") == "resource"
    assert {endpoint_of(path) for path in ("/", "/x", "/kbs/v0/../x", "/a/b/c/d", "/ui/login")} == {OTHER, "page"}
    metrics = Metrics()
    for index in range(2 * MAX_CODES):
        metrics.refused("release", f"code-{index}")
    text = metrics.render().decode()
    assert len(re.findall(r"^kata_gpu_kbs_refusals_total\{", text, re.MULTILINE)) == MAX_CODES + 1


def expressions() -> dict[str, str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    found = {p["title"]: " ".join(t["expr"] for t in p["targets"]) for p in dashboard["panels"]}
    alerts = load((MONITORING / "alerts.yaml").read_text(), where="alerts.yaml")
    return found | {rule["alert"]: rule["expr"] for group in alerts["groups"] for rule in group["rules"]}


@pytest.mark.parametrize("name", sorted(expressions()))
def test_what_is_watched_exists(name: str) -> None:
    """Every name in a panel or alert is exported by this broker; nothing else looks like one."""
    known = set(Metrics().names())
    text = re.sub(r'"[^"]*"|\[\w+\]|\$\w+', "", expressions()[name])
    names = set(re.findall(r"[a-z_][a-z0-9_]{2,}", text)) - FUNCTIONS - LABELS
    assert names
    assert names <= known, names - known


def test_alerts_are_complete() -> None:
    """Each says how bad it is and what to do; and every code that it names is one of ours."""
    for group in load((MONITORING / "alerts.yaml").read_text(), where="alerts.yaml")["groups"]:
        for rule in group["rules"]:
            assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
            assert rule["labels"]["severity"] in {"warning", "critical"}
            assert len(rule["annotations"]["summary"]) > 30
            for codes in re.findall(r'code=~"([^"]*)"', rule["expr"]):
                for code in codes.split("|"):
                    assert known_code(code), code


def known_code(code: str) -> bool:
    root = Path(__file__).parents[3] / "attestation"
    return any(f'"{code}"' in path.read_text() for path in root.rglob("*.py"))


OTEL = """
from contextlib import contextmanager
spans = []
class Span:
    def __init__(self, name): self.name, self.attributes = name, {}
    def set_attribute(self, key, value): self.attributes[key] = value
class SpanKind:
    SERVER = "server"
class Tracer:
    @contextmanager
    def start_as_current_span(self, name, kind):
        span = Span(name)
        yield span
        spans.append((span.name, kind, span.attributes))
def get_tracer(name): return Tracer()
"""
ASK = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from starlette.testclient import TestClient
from attestation.service.app import Service
from tests.attestation.broker.broker import broker
with broker(Path(sys.argv[1])) as made:
    service = Service(made.world, clock=made.clock)
    client = TestClient(service.guest)
    client.get("/kbs/v0/resource/tenant/secret/name", headers={"authorization": "Bearer hidden"})
    client.get("/healthz")
    service.close()
from opentelemetry import trace
print(trace.spans)
"""


def test_spans(tmp_path: Path) -> None:
    """Where OpenTelemetry is installed: one span a request, with method, kind and status, and nothing that identifies."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("")
    (tmp_path / "opentelemetry" / "trace.py").write_text(OTEL)
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK, str(tmp_path)],
        env={"PYTHONPATH": f"{tmp_path}:{root}"}, capture_output=True, text=True, check=True, cwd=root,
    )  # fmt: skip
    spans = done.stdout.strip().splitlines()[-1]
    assert spans == (
        "[('GET resource', 'server', {'http.response.status_code': 401}), "
        "('GET other', 'server', {'http.response.status_code': 200})]"
    )
