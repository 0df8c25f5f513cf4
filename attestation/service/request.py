"""The parts of a request that every endpoint reads: bounded body, session cookie, bearer token, decoded path."""

from ipaddress import IPv6Address

from starlette.requests import Request

from attestation.errors import Denied, Malformed
from attestation.ops.release import Credentials
from attestation.service.intake import Intake

COOKIE = "kbs-session-id"
INTAKE = Intake()
_HOST_BITS = 64
MAX_COOKIE_CHARS = 128  # 64 hex digits of ours; anything longer is no session of ours


def peer(request: Request) -> str:
    """The network that a request comes from. Forwarding headers are not believed: anybody can write them."""
    return network_of(request.client.host if request.client else "")


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
    parts: list[bytes] = []
    who, size, held = peer(request), 0, 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                raise _too_large(limit)
            INTAKE.take(who, len(chunk))
            held = size
            parts.append(chunk)
        return b"".join(parts)
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
