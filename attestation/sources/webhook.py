"""Webhook: denials and revocations, posted to one URL by a thread of its own. It delays nothing and holds nothing up.

The queue is bounded, retries are bounded, and what is dropped is counted and logged: the audit log has it in any case.
Bodies are signed: `X-Kata-Gpu-Signature: t=<unix seconds>,v1=<hex HMAC-SHA-256 of "t.body">`.
"""

import hmac
import json
import queue
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from urllib.parse import urlsplit

import requests
import structlog

from attestation.errors import Misconfigured
from attestation.values import JsonValue, Secret

log = structlog.get_logger()
SIGNATURE = "X-Kata-Gpu-Signature"
QUEUE = 1000
ATTEMPTS = 4
FIRST_BACKOFF_S = 0.5  # doubles
TIMEOUT_S = (3.0, 5.0)  # to connect, and between bytes
CLOSE_S = 5.0
MIN_SECRET = 16
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def signature(secret: Secret, at: int, body: bytes) -> str:
    """What the receiver computes again, and compares in constant time."""
    return f"t={at},v1={hmac.digest(secret.expose(), b'%d.' % at + body, 'sha256').hex()}"


class Webhook:
    """`notify` returns at once; `close` waits a little for what is queued."""

    def __init__(
        self,
        url: str,
        secret: Secret,
        *,
        limit: int = QUEUE,
        sleep: Callable[[float], None] = time.sleep,
        ca_file: str | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise Misconfigured("webhook-url", "events travel only over TLS", expected="https://", got=url[:80])
        if len(secret) < MIN_SECRET:
            raise Misconfigured("webhook-secret", "secret is too short", expected=f"at least {MIN_SECRET} bytes")
        self._url, self._secret, self._sleep = url, secret, sleep
        self._where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._verify: str | bool = ca_file or True
        self._queue: queue.Queue[tuple[int, bytes] | None] = queue.Queue(limit)
        self.dropped = 0
        self._thread = threading.Thread(target=self._work, name="webhook", daemon=True)
        self._thread.start()

    def notify(self, event: str, subject: str, body: Mapping[str, JsonValue], now: datetime) -> None:
        """Queue one event; a full queue drops it."""
        document = {"event": event, "subject": subject, "at": now.isoformat(), "body": body}
        raw = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        try:
            self._queue.put_nowait((int(now.timestamp()), raw))
        except queue.Full:
            self._drop("queue-full", event)

    def close(self) -> None:
        """Send what is queued, for a few seconds at most."""
        try:
            self._queue.put(None, timeout=CLOSE_S)
        except queue.Full:
            return
        self._thread.join(CLOSE_S)

    def _work(self) -> None:
        with requests.Session() as session:
            session.trust_env = False  # no ~/.netrc, no proxies
            session.verify = self._verify
            while (item := self._queue.get()) is not None:
                self._deliver(session, *item)

    def _deliver(self, session: requests.Session, at: int, body: bytes) -> None:
        headers = {"Content-Type": "application/json", SIGNATURE: signature(self._secret, at, body)}
        backoff, problem = FIRST_BACKOFF_S, ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with session.post(
                    self._url, data=body, headers=headers, timeout=TIMEOUT_S, allow_redirects=False, stream=True
                ) as answer:
                    if 200 <= answer.status_code < 300:
                        return
                    problem = str(answer.status_code)
            except requests.RequestException as exc:
                problem = type(exc).__name__
            if attempt < ATTEMPTS:
                self._sleep(backoff)
                backoff *= 2
        self._drop(problem, "")

    def _drop(self, problem: str, event: str) -> None:
        self.dropped += 1
        log.warning("webhook.dropped", where=self._where, problem=problem, event_name=event, dropped=self.dropped)


class Silent:
    """No webhook is configured."""

    dropped = 0

    def notify(self, event: str, subject: str, body: Mapping[str, JsonValue], now: datetime) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""
