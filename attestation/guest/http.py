"""HTTP to one pinned server: bounded in bytes and time, no proxies, no redirects, patient only where that can help."""

import re
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from attestation.errors import Denied, Misconfigured, Unavailable
from attestation.formats.json_strict import parse_json

MAX_BODY_BYTES = 4 << 20  # a secret of 2 MiB is a JWE of 2.7 MiB (keybroker.md 4.2 no. 53)
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0  # upstream's client waits as long; a cold verifier fetches collateral first
ATTEMPTS = 6  # with the pauses below about half a minute; then kubelet restarts the container
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
RETRY_STATUS = frozenset({429, 503})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_READ_BYTES = 64 << 10
_WRONG_SCHEME = " (plain http: does it want https?)"
_CAUSE = re.compile(r"\[Errno -?\d+\] ([\w ]+)|(certificate verify failed[^(]*|Remote end closed connection)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How waiting is done, and who is told of it; tests hold another one. `jitter` is between 0 and 1."""

    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = lambda: time.monotonic_ns() % 1000 / 1000
    clock: Callable[[], float] = time.monotonic
    say: Callable[[str], object] = lambda _line: None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A complete answer; `body` is within its bound."""

    status: int
    body: bytes
    where: str

    def json(self) -> Any:
        """The body as strict JSON, or Malformed."""
        return parse_json(self.body, max_bytes=MAX_BODY_BYTES, what=self.where)


class PinnedHttp:
    """Client of one server. For https only `certificate` (PEM) is trusted; http is for loopback alone."""

    def __init__(self, url: str, *, certificate: str | None, pace: Pace | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise Misconfigured(
                "broker-url", "not a server URL", where="url", expected="https://host[:port]", got=url[:200]
            )
        if parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            raise Misconfigured(
                "broker-http", "plain http is for loopback only", where="url", expected="https", got=url[:200]
            )
        if parts.scheme == "https" and not certificate:
            raise Misconfigured(
                "broker-cert", "no certificate to pin", where=url[:200], expected="--broker-cert, or one in init-data"
            )
        self.base = url.rstrip("/")
        self._pace = pace or Pace()
        self._session = requests.Session()
        self._session.trust_env = False  # the environment of a guest is chosen by its host: no proxies, no netrc
        self._session.headers["User-Agent"] = "kata-gpu-guest"
        if certificate and parts.scheme == "https":
            self._session.mount("https://", _PinnedAdapter(certificate))

    def close(self) -> None:
        """Drop connections and cookies."""
        self._session.close()

    def forget(self) -> None:
        """Drop cookies: the next handshake starts clean."""
        self._session.cookies.clear()

    def call(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One exchange; 429, 503 and connections refused or cut are tried again with growing pauses.

        Raises Unavailable when patience ends. Any other status is the caller's to judge.
        """
        failure = ""
        for attempt in range(ATTEMPTS):
            wanted = 0.0
            try:
                reply, wanted = self._once(method, path, json, data, headers)
                if reply.status not in RETRY_STATUS:
                    return reply
                failure = f"status {reply.status}"
            except requests.exceptions.SSLError as exc:
                if not _hung_up(exc):
                    raise Denied(
                        "broker-tls", "the server is not the pinned one", where=self.base, got=_reason(exc)
                    ) from exc
                failure = _reason(exc)
            except (requests.exceptions.ConnectionError, requests.exceptions.Timeout) as exc:
                failure = _reason(exc)
            if attempt + 1 < ATTEMPTS:
                self._pace.say(f"no answer of {self.base} yet ({failure}): attempt {attempt + 2} of {ATTEMPTS} follows")
                grown = FIRST_PAUSE_S * 2**attempt * (0.5 + self._pace.jitter() / 2)
                self._pace.sleep(min(max(wanted, grown), MAX_PAUSE_S))
        raise Unavailable(
            "broker-unavailable",
            f"no answer after {ATTEMPTS} attempts",
            where=f"{method} {self.base}{path}",
            got=failure + (_WRONG_SCHEME if self.base.startswith("http:") and "closed" in failure else ""),
        )

    def _once(
        self, method: str, path: str, json: Any, data: bytes | None, headers: Mapping[str, str] | None
    ) -> tuple[Reply, float]:
        where = f"{method} {self.base}{path}"
        deadline = self._pace.clock() + READ_TIMEOUT_S
        with self._session.request(
            method,
            self.base + path,
            json=json,
            data=data,
            headers=dict(headers or {}),
            timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            allow_redirects=False,
            stream=True,
        ) as response:
            body = bytearray()
            try:
                for block in response.iter_content(_READ_BYTES):
                    body += block
                    if len(body) > MAX_BODY_BYTES:
                        raise Unavailable("broker-size", "answer is too long", where=where, expected=MAX_BODY_BYTES)
                    if self._pace.clock() > deadline:
                        raise Unavailable("broker-slow", "answer takes too long", where=where, expected=READ_TIMEOUT_S)
            except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError) as exc:
                raise requests.exceptions.ConnectionError(str(exc)) from exc
            after = response.headers.get("Retry-After", "")
            wanted = float(after[:4]) if after[:4].isdecimal() else 0.0
            return Reply(status=response.status_code, body=bytes(body), where=where), wanted


class _PinnedAdapter(HTTPAdapter):
    """Trusts exactly the given certificates (root, intermediate or the server's own), whatever the system trusts."""

    def __init__(self, certificate: str) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks host names
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            self._context.load_verify_locations(cadata=certificate)
        except (ssl.SSLError, ValueError) as exc:
            raise Misconfigured("broker-cert", "not a PEM certificate", where="certificate", got=str(exc)[:80]) from exc
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Every connection uses the one context."""
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)

    def cert_verify(self, conn: Any, url: str, verify: object, cert: object) -> None:  # noqa: ARG002 - requests' own
        """Requests would add the system's roots to the context here."""
        conn.cert_reqs = "CERT_REQUIRED"
        conn.ca_certs = None
        conn.ca_cert_dir = None


def _hung_up(exc: BaseException) -> bool:
    """Whether the connection ended before TLS said anything: a balancer whose server is gone, not another server."""
    cause: BaseException | None = exc
    while cause is not None and not isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):  # by OpenSSL version
        cause = cause.__context__  # requests' error, urllib3's, ssl's
    return cause is not None


def _reason(exc: Exception) -> str:
    """What failed, without the wrappers of urllib3: `Connection refused`, not four class names around it."""
    text = f"{type(exc).__name__}: {exc}"
    cause = _CAUSE.search(text)
    return (cause[1] or cause[2]).strip() if cause else text[:200]
