"""The parts of a request that every endpoint reads: bounded body, session cookie, bearer token, decoded path."""

from ipaddress import IPv6Address

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from attestation.broker.cookie import COOKIE_CHARS
from attestation.errors import Denied, Malformed
from attestation.ops.release import Credentials
from attestation.service.intake import Intake

COOKIE = "kbs-session-id"
INTAKE = Intake()
_HOST_BITS = 64
MAX_COOKIE_CHARS = COOKIE_CHARS  # anything longer is no session of ours


def peer(request: Request) -> str:
    """The network that a request comes from. Forwarding headers are not believed: anybody can write them."""
    client = request.scope.get("client")
    return network_of(client[0]) if client else ""


def network_of(host: str) -> str:
    """An IPv4 address; of IPv6 its /64, which one machine has to itself (RFC 4291 2.5.4)."""
    if ":" not in host:
        return host
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Address(int(address) >> _HOST_BITS << _HOST_BITS))


async def read_body(request: Request, limit: int) -> bytes:
    """The whole body, or Denied once it exceeds `limit`; chunked ones included; Unavailable where too much arrives."""
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    first = await request.receive()
    if first["type"] == "http.request" and not first.get("more_body"):  # all of it came at once: nothing is held
        body: bytes = first.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    return await _slow_body(request, first, limit)


async def _slow_body(request: Request, message: Message, limit: int) -> bytes:
    parts: list[bytes] = []
    who, size, held = peer(request), 0, 0
    try:
        while True:
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            INTAKE.take(who, len(chunk))
            held = size
            parts.append(chunk)
            if not message.get("more_body"):
                return b"".join(parts)
            message = await request.receive()
    finally:
        INTAKE.give(who, held)


def _too_large(limit: int) -> Denied:
    return Denied("body-too-large", "request body is too large", expected=f"at most {limit} bytes")


def session_cookie(request: Request) -> str | None:
    """The value of our cookie among any others; the name is matched exactly."""
    return cookie_value(request, COOKIE, MAX_COOKIE_CHARS)


def cookie_value(request: Request, wanted: str, most: int) -> str | None:
    """A cookie by its exact name, None where it is absent, empty or longer than `most`."""
    for header in request.headers.getlist("cookie"):
        for pair in header.split(";"):
            name, sep, value = pair.strip().partition("=")
            if sep and name == wanted and 0 < len(value) <= most:
                return value
    return None


def bearer_token(request: Request) -> str | None:
    """The token of `Authorization: Bearer`; the scheme is case-insensitive (RFC 9110)."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def credentials(request: Request) -> Credentials:
    """Cookie and bearer."""
    return Credentials(cookie=session_cookie(request), bearer=bearer_token(request))


def kbs_path(request: Request) -> str:
    """What follows `/kbs/v0/`. An encoded slash or dot would mean different paths to a proxy and to us: refused."""
    raw: bytes = request.scope.get("raw_path", b"")
    if b"%" in raw.split(b"?")[0]:
        raise Malformed("resource-path", "percent-encoding is not used in paths", where="path")
    return str(request.path_params.get("path", ""))
