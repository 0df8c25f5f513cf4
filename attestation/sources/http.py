"""The only code that talks to the internet: listed origins, bounded bytes and time, no redirects, few retries.

https everywhere; http only for origins listed as `plain`, which serve nothing but signed revocation documents.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from attestation.errors import AttestationError, Misconfigured, Unavailable

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 20.0  # longest silence
TOTAL_TIMEOUT_S = 120.0  # one attempt, all of it
MAX_ATTEMPTS = 4
FIRST_BACKOFF_S = 1.0  # doubles; AMD KDS asks for about that (tee.md 1.7)
MAX_RETRY_AFTER_S = 60.0  # a server that wants more gets no more questions
_CHUNK = 64 * 1024
_RETRIED = frozenset({429, 500, 502, 503, 504})
_USER_AGENT = "kata-gpu-collateral"

# NVIDIA: gpu-attestation.md 2.4, 3.1; AMD: tee.md 1.7; Intel: tee.md 2.3.
HTTPS_ORIGINS = frozenset(
    {
        "https://rim.attestation.nvidia.com",
        "https://nras.attestation.nvidia.com",
        "https://ocsp.ndis.nvidia.com",
        "https://crl.ndis.nvidia.com",
        "https://kdsintf.amd.com",
        "https://api.trustedservices.intel.com",
        "https://certificates.trustedservices.intel.com",
    }
)
PLAIN_ORIGINS = frozenset({"http://ocsp.ndis.nvidia.com", "http://crl.ndis.nvidia.com"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A 200 with its whole body. Header names are lower case."""

    url: str
    body: bytes
    headers: Mapping[str, str]


def origin_of(url: str) -> str:
    """`scheme://host[:port]`. Raises Misconfigured for anything that is not a plain absolute URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise Misconfigured("url", "not a URL", got=repr(url[:200])) from exc
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
        raise Misconfigured("url", "not an http(s) URL without credentials", got=repr(url[:200]))
    return f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port is not None else "")


class Fetcher:
    """GET and POST under the bounds above. `sleep` and `clock` (seconds, monotonic) are injected by tests."""

    def __init__(
        self,
        *,
        https: frozenset[str] = HTTPS_ORIGINS,
        plain: frozenset[str] = PLAIN_ORIGINS,
        bearer: Mapping[str, str] | None = None,
        total_s: float = TOTAL_TIMEOUT_S,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`bearer`: tokens by origin, sent over https only."""
        for origin, scheme in [(o, "https") for o in https] + [(o, "http") for o in plain]:
            if origin_of(origin) != origin or not origin.startswith(f"{scheme}://"):
                raise Misconfigured("origin", "not an origin", expected=f"{scheme}://host[:port]", got=origin)
        self._allowed = https | plain
        self._bearer = {o: t for o, t in (bearer or {}).items() if o in https}
        self._total_s, self._sleep, self._clock = total_s, sleep, clock
        self._session = requests.Session()
        self._session.auth = _no_auth  # else requests would look into ~/.netrc

    def close(self) -> None:
        """Close pooled connections."""
        self._session.close()

    def get(self, url: str, *, max_bytes: int) -> Answer:
        """The body of a 200. Raises Unavailable, or Misconfigured for an origin that is not listed."""
        return self._request("GET", url, b"", "", max_bytes)

    def post(self, url: str, body: bytes, *, content_type: str, max_bytes: int) -> Answer:
        """Likewise for a POST; only questions that may be repeated are posted (OCSP)."""
        return self._request("POST", url, body, content_type, max_bytes)

    def _request(self, method: str, url: str, body: bytes, content_type: str, max_bytes: int) -> Answer:
        origin = origin_of(url)
        if origin not in self._allowed:
            raise Misconfigured("origin-not-allowed", "this origin is not listed", where=url, got=origin)
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"}
        if content_type:
            headers["Content-Type"] = content_type
        if origin in self._bearer:
            headers["Authorization"] = f"Bearer {self._bearer[origin]}"
        backoff = FIRST_BACKOFF_S
        for attempt in range(1, MAX_ATTEMPTS + 1):
            outcome = self._within_total(method, url, body, headers, max_bytes)
            if isinstance(outcome, Answer):
                return outcome
            if attempt == MAX_ATTEMPTS or outcome.wait_s > MAX_RETRY_AFTER_S:
                raise outcome.error
            self._sleep(max(outcome.wait_s, backoff))
            backoff *= 2
        raise Unavailable("http", "no attempt was made", where=url)

    def _within_total(
        self, method: str, url: str, body: bytes, headers: dict[str, str], max_bytes: int
    ) -> "Answer | _Retry":
        """One attempt in a thread: a peer that sends its headers byte by byte stays below every socket timeout."""
        outcome: list[Answer | _Retry | AttestationError] = []

        def work() -> None:
            try:
                outcome.append(self._attempt(method, url, body, headers, max_bytes))
            except AttestationError as exc:
                outcome.append(exc)

        thread = threading.Thread(target=work, name="fetch", daemon=True)
        thread.start()
        thread.join(self._total_s)
        result = outcome[0] if outcome else _too_slow(url, self._total_s)
        if isinstance(result, AttestationError):
            raise result
        return result

    def _attempt(
        self, method: str, url: str, body: bytes, headers: dict[str, str], max_bytes: int
    ) -> "Answer | _Retry":
        deadline = self._clock() + self._total_s
        try:
            with self._session.request(
                method,
                url,
                data=body or None,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
            ) as response:
                if response.status_code in _RETRIED:
                    error = Unavailable(
                        "http-status", "server error", where=url, expected=200, got=response.status_code
                    )
                    return _Retry(error, _retry_after(response.headers.get("Retry-After")))
                _require_plain_success(response, url)
                content = self._read(response, url, max_bytes, deadline)
                return Answer(url=url, body=content, headers={k.lower(): v for k, v in response.headers.items()})
        except (requests.RequestException, urllib3.exceptions.HTTPError) as exc:
            return _Retry(Unavailable("http-failed", "no answer", where=url, got=type(exc).__name__), 0.0)

    def _read(self, response: requests.Response, url: str, max_bytes: int, deadline: float) -> bytes:
        content = bytearray()
        while chunk := response.raw.read1(_CHUNK, decode_content=False):
            content += chunk
            if len(content) > max_bytes:
                raise Unavailable("http-size", "answer too large", where=url, expected=f"at most {max_bytes} bytes")
            if self._clock() > deadline:
                raise _too_slow(url, self._total_s)
        return bytes(content)


@dataclass(frozen=True, slots=True)
class _Retry:
    error: AttestationError
    wait_s: float


def _too_slow(url: str, total_s: float) -> Unavailable:
    return Unavailable("http-time", "answer too slow", where=url, expected=f"{total_s} s")


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _retry_after(text: str | None) -> float:
    """Whole seconds, or 0 where absent; a date counts as too long, since a skewed clock would misread it."""
    if text is None:
        return 0.0
    return float(text) if text.isascii() and text.isdigit() and len(text) < 9 else MAX_RETRY_AFTER_S + 1


def _require_plain_success(response: requests.Response, url: str) -> None:
    if 300 <= response.status_code < 400:
        raise Unavailable("http-redirect", "redirects are not followed", where=url, got=response.status_code)
    if response.status_code != 200:
        raise Unavailable("http-status", "not the answer asked for", where=url, expected=200, got=response.status_code)
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise Unavailable("http-encoding", "compressed although not asked", where=url, got=encoding)
