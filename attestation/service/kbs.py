"""The guests' endpoints of KBS protocol 0.4.0: `/auth`, `/attest`, `/resource/...` (docs/protocol.md)."""

import hashlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache

import structlog
from starlette.requests import Request
from starlette.responses import Response

from attestation.broker.session import CHALLENGE_LIFETIME, PROFILE_MEMBER
from attestation.errors import AttestationError, Denied, Malformed, Unavailable
from attestation.ops.attest import attesting
from attestation.ops.challenge import issue_challenge
from attestation.ops.external import external_token, releasing_external
from attestation.ops.release import Credentials, authenticate, releasing
from attestation.ops.steps import Steps
from attestation.ops.world import World
from attestation.service.answer import Answer
from attestation.service.metrics import Metrics
from attestation.service.problems import handshake_problem, kbs_problem
from attestation.service.request import COOKIE, credentials, kbs_path, peer, read_body, session_cookie
from attestation.service.wire import MAX_BODY_BYTES, AttestRequest, AuthRequest, parse_step
from attestation.service.workers import RateLimit, Workers
from attestation.values import BindingProfile, ResourcePath, Tee

log = structlog.get_logger()
Clock = Callable[[], datetime]
_MAX_AGE = f"Max-Age={int(CHALLENGE_LIFETIME.total_seconds())}"
_NO_TEE = "none"  # label of evidence that named no live session


class GuestApi:
    """Handlers over one world. `now` is read once per request."""

    def __init__(
        self,
        world: World,
        workers: Workers,
        metrics: Metrics,
        *,
        clock: Clock,
        peers: RateLimit,
        chips: RateLimit,
        deny_status: int = 403,
        secure_cookie: bool = False,
    ) -> None:
        self._world, self._workers, self._metrics = world, workers, metrics
        self._clock, self._peers, self._chips = clock, peers, chips
        self._deny_status, self._secure = deny_status, secure_cookie

    async def auth(self, request: Request) -> Response:
        """`POST /kbs/v0/auth`."""
        self._metrics.auth_requests.inc()
        try:
            self._admit(request, new=True)
            body = parse_step(AuthRequest, await read_body(request, MAX_BODY_BYTES))
            issued = issue_challenge(  # microseconds, and nothing to wait for
                self._world, version=body.version, tee=body.tee, offered=body.extra_params, now=self._clock()
            )
        except AttestationError as exc:
            self._metrics.auth_errors.inc()
            self._metrics.refused("auth", exc.code)
            log.info("auth.refused", code=exc.code)
            return handshake_problem(exc, "Auth")
        self._metrics.auth_successes.inc()
        # Upstream's guests get the empty string that upstream sends; ours are told which of their profiles was chosen.
        chosen = issued.challenged.profile
        extra = {PROFILE_MEMBER: str(chosen)} if chosen is not BindingProfile.TRUSTEE_RCAR else ""
        cookie = self._cookie(issued.cookie, issued.challenged.expires)
        return Answer({"nonce": issued.challenged.nonce, "extra-params": extra}, cookie=cookie)

    async def attest(self, request: Request) -> Response:
        """`POST /kbs/v0/attest`."""
        self._metrics.attestation_requests.inc()
        now = self._clock()
        tee = _NO_TEE

        def on_claim(claimed: Tee) -> None:
            nonlocal tee
            tee = str(claimed)

        try:
            self._admit(request)
            raw = await read_body(request, MAX_BODY_BYTES)
            answer = await self._workers.take(
                self._attest(request, raw, now, on_claim), self._world.database.commit_later
            )
        except AttestationError as exc:
            self._metrics.refused("attest", exc.code)
            if isinstance(exc, Unavailable):
                self._metrics.attestation_errors.inc()
            else:
                self._metrics.attestation_failures.labels(tee_type=tee).inc()
            log.warning(
                "attest.refused", code=exc.code, where=exc.where, reason=exc.what, expected=exc.expected, got=exc.got
            )
            return handshake_problem(exc, "Attest")
        self._metrics.attestation_successes.labels(tee_type=tee).inc()
        return Answer({"token": answer})

    def _attest(self, request: Request, raw: bytes, now: datetime, on_claim: Callable[[Tee], None]) -> Steps[str]:
        cookie = session_cookie(request)
        if cookie is None:
            raise Denied("session-missing", "no session cookie")
        submission = parse_step(AttestRequest, raw).submission()
        digest = hashlib.sha256(raw).hexdigest()
        answer = yield from attesting(
            self._world,
            cookie=cookie,
            submission=submission,
            body_digest=digest,
            now=now,
            network=peer(request),
            on_claim=on_claim,
        )
        return answer.token

    async def resource(self, request: Request) -> Response:
        """`GET /kbs/v0/resource/<repository>/<type>/<tag>`."""
        try:
            self._admit(request)
            steps = self._release(credentials(request), request, dict(request.query_params), self._clock())
            sealed = await self._workers.take(steps, self._world.database.commit_later)
        except AttestationError as exc:
            log.warning(
                "release.refused", code=exc.code, where=exc.where, findings=exc.got, first=exc.expected, reason=exc.what
            )
            self._count_refusal(exc)
            return kbs_problem(exc, deny_status=self._deny_status)
        self._metrics.policy_approvals.inc()
        self._metrics.resource_reads.inc()
        return Answer(sealed)

    def _release(
        self, who: Credentials, request: Request, query: dict[str, str], now: datetime
    ) -> Steps[dict[str, str]]:
        foreign = external_token(self._world, who, now=now)
        if foreign is not None:
            path = ResourcePath.parse(kbs_path(request))
            self._metrics.policy_evaluations.inc()
            sealed = yield from releasing_external(self._world, foreign, path, query=query, now=now)
            log.info("release.granted", path=str(path), jti=foreign.id, issuer=foreign.issuer)
            return sealed.to_json()
        attested = authenticate(self._world, who, now=now)
        # By identity, too: many guests share one address behind a proxy, and one machine may have many addresses.
        self._chips.take(attested.facts.cpu.chip_id, time.monotonic())
        path = ResourcePath.parse(kbs_path(request))
        self._metrics.policy_evaluations.inc()
        sealed = yield from releasing(self._world, attested, path, query=query, now=now)
        log.info("release.granted", path=str(path), jti=attested.jti, chip_id=attested.facts.cpu.chip_id)
        return sealed.to_json()

    async def unknown(self, request: Request) -> Response:
        """Everything else under `/kbs/v0`: a plugin that is not here, or a wrong method; always the error body."""
        try:
            plugin = kbs_path(request).partition("/")[0]
        except Malformed as exc:
            return kbs_problem(exc)
        known = {"auth": "POST", "attest": "POST", "resource": "GET"}
        if plugin in known and request.method != known[plugin]:
            return kbs_problem(Denied("method-not-allowed", "Illegal HTTP method"))
        return kbs_problem(Denied("plugin-not-found", f"Plugin {plugin[:64]} not found"))

    def _count_refusal(self, exc: AttestationError) -> None:
        denied = exc.code == "policy-denied"
        self._metrics.refused("release", exc.got if denied else exc.code)
        if denied:
            self._metrics.policy_violations.inc()
        elif isinstance(exc, Unavailable):
            self._metrics.policy_errors.inc()

    def _admit(self, request: Request, *, new: bool = False) -> None:
        """Before the body is read: what is refused costs next to nothing."""
        self._workers.admit(new=new)
        self._peers.take(peer(request), time.monotonic())

    def _cookie(self, cookie: str, expires: datetime) -> str:
        # `Secure` only over TLS: a guest on plain HTTP would not send it back (keybroker.md 4.2, 7).
        secure = "; Secure" if self._secure else ""
        # Max-Age beside upstream's Expires: it does not depend on the guest's clock.
        lifetime = f"Expires={_http_date(expires.replace(microsecond=0))}; {_MAX_AGE}"
        return f"{COOKIE}={cookie}; {lifetime}; Path=/kbs/v0; HttpOnly; SameSite=Strict{secure}"


@lru_cache(maxsize=8)  # requests of one second have one date
def _http_date(at: datetime) -> str:
    return format_datetime(at.astimezone(UTC), usegmt=True)
