"""The three requests of a handshake go straight to their handlers; a router and its layers cost as much as a signature.

Whatever differs from them in one character (method, path) goes to the application that has every route.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from attestation.service.kbs import GuestApi

Handler = Callable[[Request], Awaitable[Response]]
RESOURCE: Final = "/kbs/v0/resource/"


class Handshakes:
    """An ASGI application in front of `others`. `crash` answers for a defect of ours, and logs it."""

    def __init__(
        self, guests: GuestApi, others: ASGIApp, *, crash: Callable[[Request, Exception], Awaitable[Response]]
    ) -> None:
        self._steps: dict[tuple[str, str], Handler] = {
            ("POST", "/kbs/v0/auth"): guests.auth,
            ("POST", "/kbs/v0/attest"): guests.attest,
        }
        self._resource, self._others, self._crash = guests.resource, others, crash

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        handler = self._handler(scope) if scope["type"] == "http" else None
        if handler is None:
            await self._others(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await handler(request)
        except ClientDisconnect:  # within a body, as anybody may
            response = Response(status_code=400)
        except Exception as exc:  # noqa: BLE001 - the outermost shell of a request
            response = await self._crash(request, exc)
        await response(scope, receive, send)

    def _handler(self, scope: Scope) -> Handler | None:
        path: str = scope["path"]
        if scope["method"] == "GET" and path.startswith(RESOURCE):
            scope["path_params"] = {"path": path[len(RESOURCE) :]}
            return self._resource
        return self._steps.get((scope["method"], path))
