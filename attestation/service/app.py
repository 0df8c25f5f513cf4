"""The two ASGI applications: the guests' and the administrators'. They share one world and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from attestation.errors import AttestationError, Unavailable
from attestation.hardening import keep_one_heap
from attestation.ops.readiness import probes
from attestation.ops.renewed_verifier import RenewedVerifier
from attestation.ops.world import World
from attestation.service import admin as handlers
from attestation.service import governance
from attestation.service.admin import AdminApi, Handler
from attestation.service.desk import Desk
from attestation.service.handshakes import Handshakes
from attestation.service.health import Health
from attestation.service.kbs import Clock, GuestApi
from attestation.service.metrics import Metrics
from attestation.service.observe import Observe, find_tracer
from attestation.service.page import OperatorPage
from attestation.service.problems import KBS_ERRORS, RETRY_AFTER_S, kbs_problem, problem
from attestation.service.workers import RateLimit, Workers

log = structlog.get_logger()
_OPENAPI = Path(__file__).with_name("openapi.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLimits:
    """Admission. Defaults suit a node's worth of guests starting at once."""

    threads: int = 3  # signature checks release the interpreter lock, and nobody here waits for the disk
    queue: int = 64  # what waits is answered within a few hundred milliseconds, or refused at once
    rate_per_s: float = 500.0  # of one address: a rack behind one gateway
    burst: int = 2000
    chip_rate_per_s: float = 50.0  # of one CPU: its guests, each with a handful of keys
    chip_burst: int = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Compat:
    """Switches for tools that expect upstream's ways."""

    deny_status: int = 403
    admin_on_guest_listener: bool = False
    secure_cookie: bool = False


class Service:
    """Both applications over one world; `close` when the server has drained."""

    def __init__(
        self,
        world: World,
        *,
        clock: Clock,
        limits: ServiceLimits | None = None,
        compat: Compat | None = None,
        collateral: RenewedVerifier | None = None,
    ) -> None:
        keep_one_heap()
        limits, compat = limits or ServiceLimits(), compat or Compat()
        self._span = find_tracer()
        self._world, self._clock, self._collateral = world, clock, collateral
        self._workers = Workers(threads=limits.threads, queue=limits.queue)
        self.metrics = Metrics()
        self.metrics.inside.set_function(lambda: self._workers.inside)
        self.metrics.limit.set(self._workers.limit)
        self.metrics.show_summed_up(lambda: world.refusals.summed_up)
        self._turned_away = self.metrics.requests.labels(status="503")
        self.health = Health({**probes(world), **({"collateral": collateral.require_usable} if collateral else {})})
        self._show_collateral()
        peers = RateLimit(rate=limits.rate_per_s, burst=limits.burst)
        guest = GuestApi(
            world,
            self._workers,
            self.metrics,
            clock=clock,
            peers=peers,
            chips=RateLimit(rate=limits.chip_rate_per_s, burst=limits.chip_burst),
            deny_status=compat.deny_status,
            secure_cookie=compat.secure_cookie,
        )
        # Administrators have a pool of their own: they can still look while guests fill the other one.
        self._office = Workers(threads=_OFFICE_THREADS, queue=limits.queue)
        for_admin, for_page = (
            Desk(
                world=world,
                workers=self._office,
                metrics=self.metrics,
                clock=clock,
                peers=RateLimit(rate=limits.rate_per_s, burst=limits.burst),
            )
            for _ in range(2)
        )
        admin = AdminApi(for_admin, deny_status=compat.deny_status)
        page = OperatorPage(for_page, secure_cookie=compat.secure_cookie, collateral=collateral)
        upstream_admin = _upstream_admin(admin)
        routes: list[BaseRoute] = [
            Route("/kbs/v0/auth", guest.auth, methods=["POST"]),
            Route("/kbs/v0/attest", guest.attest, methods=["POST"]),
            Route("/kbs/v0/{path:path}", guest.unknown, methods=_ALL),
        ]
        resource = Route("/kbs/v0/resource/{path:path}", guest.resource, methods=["GET"])
        more = upstream_admin if compat.admin_on_guest_listener else []
        others = self._app([*routes[:2], resource, *more, routes[2], *self._common()])
        self.guest = self._observed(Handshakes(guest, others, crash=_crash))
        self.routes = (
            others.routes,
            [*upstream_admin, *_api(admin), *self._common(), *self._operator(), *_page(page)],
        )
        self.admin = self._observed(self._app(self.routes[1]))

    def turn_away(self, target: bytes) -> ASGIApp | None:
        """What answers a guest's request that would not be admitted; None lets it in. Costs microseconds."""
        if not target.startswith(_KBS) or self._workers.admits(new=target.startswith(_AUTH)):
            return None
        return self._busy

    async def _busy(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        self._turned_away.inc()
        await send({"type": "http.response.start", "status": 503, "headers": _BUSY_HEADERS})
        await send({"type": "http.response.body", "body": _BUSY})

    def close(self) -> None:
        """Wait for running requests, and record what was only counted."""
        self._workers.close()
        self._office.close()
        self.sum_up(ending=True)

    def sum_up(self, *, ending: bool = False) -> None:
        """Record what was only counted of refusals, once it is due; what fails is tried again."""
        try:
            self._world.refusals.sum_up(self._world.audit, self._clock(), ending=ending)
        except AttestationError as exc:
            log.warning("refusals.not-summed-up", code=exc.code)

    @property
    def inside(self) -> int:
        """Requests running or waiting."""
        return self._workers.inside + self._office.inside

    def renew_collateral(self) -> bool:
        """Whether the collateral store had changed; raises where it cannot be read. Blocks."""
        renewed = self._collateral is not None and self._collateral.renew()
        if renewed:
            self._show_collateral()
        return renewed

    def _show_collateral(self) -> None:
        shelf = self._collateral.shelf if self._collateral else ()
        for kind in {entry.kind for entry in shelf}:
            of_kind = [entry for entry in shelf if entry.kind is kind]
            self.metrics.documents.labels(kind=str(kind)).set(len(of_kind))
            ends = [entry.ends.timestamp() for entry in of_kind if entry.ends is not None]
            if ends:
                self.metrics.collateral_end.labels(kind=str(kind)).set(min(ends))

    def _app(self, routes: Sequence[BaseRoute]) -> Starlette:
        handlers_of = {HTTPException: _http_error, Exception: _crash}
        return Starlette(routes=list(routes), exception_handlers=handlers_of)  # type: ignore[arg-type]

    def _observed(self, app: ASGIApp) -> ASGIApp:
        return Observe(app, self.metrics, self._span)

    def _common(self) -> list[BaseRoute]:
        return [
            Route("/healthz", _healthy, methods=["GET"]),
            Route("/readyz", self._ready, methods=["GET"]),
            Route("/.well-known/jwks.json", self._jwks, methods=["GET"]),
            Route("/openapi.json", _openapi, methods=["GET"]),
        ]

    def _operator(self) -> list[BaseRoute]:
        return [Route("/metrics", self._metrics, methods=["GET"])]

    async def _ready(self, _request: Request) -> Response:
        if self.health.draining:
            return problem(Unavailable("draining", "not ready", where="draining"))
        try:
            await self._office.run(self.health.require_ready, self._clock())
        except AttestationError as exc:
            return problem(exc)
        return PlainTextResponse("ready\n")

    async def _jwks(self, _request: Request) -> Response:
        return JSONResponse(self._world.authority.jwks())

    async def _metrics(self, _request: Request) -> Response:
        try:
            failed: Mapping[str, AttestationError] = await self._office.run(self.health.check, self._clock())
        except AttestationError as exc:
            return problem(exc)
        for name in self.health.names:
            self.metrics.ready.labels(check=name).set(name not in failed)
        return Response(self.metrics.render(), media_type="text/plain; version=0.0.4")


_OFFICE_THREADS = 2
_KBS, _AUTH = b"/kbs/v0/", b"/kbs/v0/auth"
_BUSY = bytes(kbs_problem(Unavailable("overloaded", "the broker is busy; try again")).body)
_BUSY_HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(_BUSY)).encode()),
    (b"retry-after", RETRY_AFTER_S.encode()),
]
_ALL = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"]


def _upstream_admin(api: AdminApi) -> list[BaseRoute]:
    rows: list[tuple[str, str, Handler]] = [
        ("/kbs/v0/resource/{resource:path}", "POST", handlers.put_resource),
        ("/kbs/v0/resource/{resource:path}", "DELETE", handlers.delete_resource),
        ("/kbs/v0/resource-policy", "POST", handlers.put_resource_policy),
        ("/kbs/v0/resource-policy", "GET", handlers.list_resource_policies),
        ("/kbs/v0/attestation-policy", "POST", handlers.put_attestation_policy),
        ("/kbs/v0/reference-value", "POST", handlers.put_reference_value),
        ("/kbs/v0/reference-value/{name:path}", "GET", handlers.get_reference_value),
    ]
    return [Route(path, api.endpoint(handler, kbs=True), methods=[verb]) for path, verb, handler in rows]


def _api(api: AdminApi) -> list[BaseRoute]:
    rows: list[tuple[str, str, Handler]] = [
        ("/api/v1/keys", "GET", handlers.list_keys),
        ("/api/v1/keys/{resource:path}", "GET", handlers.get_key),
        ("/api/v1/keys/{resource:path}", "POST", handlers.make_model_key),
        ("/api/v1/keys/{resource:path}", "PUT", handlers.keep_key),
        ("/api/v1/wrap/{resource:path}", "POST", handlers.wrap_key),
        ("/api/v1/unwrap/{resource:path}", "POST", handlers.unwrap_key),
        ("/api/v1/policies/{resource:path}", "PUT", handlers.put_key_policy),
        ("/api/v1/policies/{resource:path}", "GET", governance.policy_history),
        ("/api/v1/audit", "GET", governance.audit_tail),
        ("/api/v1/revocations", "GET", governance.list_revocations),
        ("/api/v1/revocations", "POST", governance.revoke),
        ("/api/v1/revocations", "DELETE", governance.unrevoke),
        ("/api/v1/leases", "GET", governance.list_leases),
        ("/api/v1/tenants", "GET", governance.list_tenants),
        ("/api/v1/tenants/{name}", "PUT", governance.set_tenant),
        ("/api/v1/attestations", "GET", handlers.attestations),
    ]
    return [Route(path, api.endpoint(handler, kbs=False), methods=[verb]) for path, verb, handler in rows]


def _page(page: OperatorPage) -> list[BaseRoute]:
    return [
        Route("/ui", page.show, methods=["GET"]),
        Route("/ui/login", page.login, methods=["POST"]),
        Route("/ui/logout", page.logout, methods=["POST"]),
        Route("/ui/style.css", page.style, methods=["GET"]),
    ]


async def _healthy(_request: Request) -> Response:
    return PlainTextResponse("")


async def _openapi(_request: Request) -> Response:
    return Response(_OPENAPI.read_bytes(), media_type="application/json")


async def _http_error(request: Request, exc: HTTPException) -> Response:
    """What the router itself refuses: unknown paths and methods."""
    if request.url.path.startswith("/kbs/"):
        body = {"type": KBS_ERRORS + "InvalidRequestPath", "detail": str(exc.detail)}
        return JSONResponse(body, exc.status_code, exc.headers)
    about = {"type": "about:blank", "title": str(exc.detail), "status": exc.status_code}
    return JSONResponse(about, exc.status_code, exc.headers, media_type="application/problem+json")


async def _crash(request: Request, exc: Exception) -> Response:
    """A defect of ours: the log has the traceback, the caller learns nothing."""
    log.error("request.crashed", path=request.url.path.split("/")[1:3], exc_info=exc)
    if request.url.path.startswith("/kbs/"):
        return JSONResponse({"type": KBS_ERRORS + "PluginInternalError", "detail": "internal error"}, 500)
    return problem(Unavailable("internal", "internal error"))
