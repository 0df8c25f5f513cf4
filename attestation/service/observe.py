"""What is seen of every request from outside: its status, how long it took, how much travelled, and a trace span.

OpenTelemetry is used where `opentelemetry-api` is installed and its SDK configured; without it this costs nothing. A
span has method, kind of endpoint and status, and never a path, cookie, token or body.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from attestation.service.metrics import OTHER, Metrics

_ENDPOINTS = {
    ("kbs", "auth"): "auth",
    ("kbs", "attest"): "attest",
    ("kbs", "resource"): "resource",
    ("kbs", "resource-policy"): "policy",
    ("kbs", "attestation-policy"): "policy",
    ("kbs", "reference-value"): "reference",
    ("api", "keys"): "keys",
    ("api", "policies"): "policy",
    ("api", "audit"): "audit",
    ("api", "attestations"): "attestations",
}
Span = Callable[[str], AbstractContextManager[Any]]


def endpoint_of(path: str) -> str:
    """The kind of endpoint; a closed set, so that a label cannot grow."""
    parts = path.split("/", 4)
    if len(parts) > 3:
        return _ENDPOINTS.get((parts[1], parts[3]), OTHER)
    return "page" if parts[1:2] == ["ui"] else OTHER


def find_tracer() -> Span | None:
    """Spans of OpenTelemetry, None where it is not installed."""
    try:
        from opentelemetry import trace  # type: ignore[import-not-found]
    except ImportError:
        return None
    tracer = trace.get_tracer("attestation.service")

    def span(name: str) -> AbstractContextManager[Any]:
        started: AbstractContextManager[Any] = tracer.start_as_current_span(name, kind=trace.SpanKind.SERVER)
        return started

    return span


class Observe:
    """The outermost ASGI layer of both listeners."""

    def __init__(self, app: ASGIApp, metrics: Metrics, span: Span | None = None) -> None:
        self._app, self._metrics, self._span = app, metrics, span
        self._seconds = {name: metrics.seconds.labels(endpoint=name) for name in {*_ENDPOINTS.values(), "page", OTHER}}
        self._statuses: dict[int, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint, started, status, size = endpoint_of(scope["path"]), time.perf_counter(), 500, 0

        async def counted(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                size += len(message.get("body", b""))
            await send(message)

        with self._span(f"{scope['method']} {endpoint}") if self._span else nullcontext() as span:
            try:
                await self._app(scope, receive, counted)
            finally:
                self._count(status)
                self._seconds[endpoint].observe(time.perf_counter() - started)
                self._metrics.received.observe(_announced(scope))
                self._metrics.sent.observe(size)
                if span is not None:
                    span.set_attribute("http.response.status_code", status)

    def _count(self, status: int) -> None:
        counter = self._statuses.get(status)
        if counter is None:
            counter = self._statuses[status] = self._metrics.requests.labels(status=str(status))
        counter.inc()


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0
