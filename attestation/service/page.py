"""The operator's page: read-only HTML on the administrators' listener, behind an admin token in a cookie.

The cookie reaches nothing but this page, and this page changes nothing; the API wants its token in a header. No script
runs here: there is none, and the policy that goes with every answer permits none.
"""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import structlog
from starlette.requests import Request
from starlette.responses import Response

from attestation.broker.admin import MAX_ADMIN_TOKEN
from attestation.errors import AttestationError, Denied, Malformed
from attestation.ops.administer import authenticate_admin
from attestation.ops.overview import overview
from attestation.ops.renewed_verifier import RenewedVerifier
from attestation.service.desk import Desk
from attestation.service.html import Element, render
from attestation.service.page_view import login_page, overview_page
from attestation.service.problems import RETRY_AFTER_S, row_of
from attestation.service.request import cookie_value, read_body

log = structlog.get_logger()
COOKIE = "kbs-operator"
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
_MAX_FORM_BYTES = MAX_ADMIN_TOKEN + 1024
_STYLE = Path(__file__).with_name("style.css")
_OWN_SITE = frozenset({None, "same-origin", "none"})  # Fetch metadata; absent in old browsers and in tools


class OperatorPage:
    """Handlers over one world."""

    def __init__(self, desk: Desk, *, secure_cookie: bool, collateral: RenewedVerifier | None) -> None:
        self._desk, self._secure, self._collateral = desk, secure_cookie, collateral

    async def show(self, request: Request) -> Response:
        """`GET /ui`: the page, or 401 with the form that asks for a token."""
        return await self._answer(request, self._page, cookie_value(request, COOKIE, MAX_ADMIN_TOKEN))

    async def login(self, request: Request) -> Response:
        """`POST /ui/login`: the token moves into the cookie if it is good."""
        try:
            if request.headers.get("sec-fetch-site") not in _OWN_SITE:
                raise Denied("login-elsewhere", "the form was sent by another site")
            form = parse_qs((await read_body(request, _MAX_FORM_BYTES)).decode("ascii"), max_num_fields=4)
        except (UnicodeDecodeError, ValueError) as exc:
            return self._refuse(Malformed("login-form", f"not a form: {type(exc).__name__}"))
        except AttestationError as exc:
            return self._refuse(exc)
        return await self._answer(request, self._let_in, form.get("token", [""])[0].strip() or None)

    async def logout(self, _request: Request) -> Response:
        """`POST /ui/logout`: forget the token."""
        return self._redirect("", "Max-Age=0")

    async def style(self, _request: Request) -> Response:
        """`GET /ui/style.css`."""
        return Response(_STYLE.read_bytes(), media_type="text/css", headers=HEADERS)

    async def _answer(self, request: Request, make: Callable[[str | None], Response], token: str | None) -> Response:
        try:
            self._desk.admit(request)
            return await self._desk.workers.run(make, token)
        except AttestationError as exc:
            return self._refuse(exc)

    def _page(self, token: str | None) -> Response:
        now = self._desk.clock()
        who = authenticate_admin(self._desk.world, token, now=now)
        shelf = None if self._collateral is None else self._collateral.shelf
        return _html(overview_page(overview(self._desk.world, who, shelf, now=now)))

    def _let_in(self, token: str | None) -> Response:
        who = authenticate_admin(self._desk.world, token, now=self._desk.clock())
        log.info("page.entered", name=who.name, role=who.role)
        return self._redirect(token or "")

    def _refuse(self, exc: AttestationError) -> Response:
        status = row_of(exc).status
        if exc.code == "admin-token-missing":
            return _html(login_page(), status)
        self._desk.metrics.refused("page", exc.code)
        log.warning("page.refused", code=exc.code, reason=exc.what)
        headers = {"retry-after": RETRY_AFTER_S} if status in (429, 503) else {}
        return _html(login_page(exc.what), status, headers)

    def _redirect(self, token: str, *more: str) -> Response:
        parts = [f"{COOKIE}={token}", "Path=/ui", "HttpOnly", "SameSite=Strict", *more]
        parts += ["Secure"] if self._secure else []
        return Response(status_code=303, headers={**HEADERS, "location": "/ui", "set-cookie": "; ".join(parts)})


def _html(page: Element, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(render(page), status, {**HEADERS, **(headers or {})}, media_type="text/html")
