"""HTTP/1.1 with bounds that its parser lacks: size of a head, time for a request, number of connections."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from attestation.service.request import network_of

MAX_HEAD_BYTES = 256 * 1024  # a foreign token with verbose claims of 8 GPUs is 170 KiB (keybroker.md 0, fact 6)
MAX_FIELDS = 128  # of one head: a parsed field costs far more memory than its bytes; clients and proxies send a dozen
REQUEST_S = 60.0  # upstream's client gives up after as long (keybroker.md 4.1)
MAX_CONNECTIONS = 8192  # of one listener; a rack of guests keeps one each
MAX_CONNECTIONS_EACH = 512  # of one network, of a rack behind one gateway; their heads are 128 MiB at most


class BoundedProtocol(HttpToolsProtocol):
    """Answers 431 to a head over the cap, 408 to a request that does not arrive, 503 to one connection too many.

    `instead` may name another application for a request, by its target: what is refused under overload must cost
    next to nothing, or refusing becomes the load.
    """

    instead: Callable[[bytes], ASGIApp | None] | None = None
    _usual: Any = None
    _head_bytes = 0
    _in_head = True
    _fields = 0
    _deadline: asyncio.TimerHandle | None = None
    _network: str | None = None
    networks: ClassVar[Counter[str]] = Counter()  # open connections; a listener's subclass has its own

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock: a client that connects and says nothing is let go."""
        super().connection_made(transport)
        self._network = network_of(self.client[0] if self.client else "")
        self.networks[self._network] += 1
        if len(self.connections) > MAX_CONNECTIONS or self.networks[self._network] > MAX_CONNECTIONS_EACH:
            self._refuse(503, "Service Unavailable", "too many connections", b"retry-after: 2\r\n")
            return
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._request_is_here()
        if self._network is not None:
            self.networks[self._network] -= 1
            if not self.networks[self._network]:
                del self.networks[self._network]
            self._network = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then look at how long an unfinished head has become."""
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "Request Header Fields Too Large", "request head too large")

    def on_message_begin(self) -> None:
        """The clock of a request starts with its first byte; waiting between requests is keep-alive's matter."""
        super().on_message_begin()
        self._fields = 0
        if self._deadline is None:
            self._expect_request()

    def on_header(self, name: bytes, value: bytes) -> None:
        """An exception is a syntax error to the parser: 400, and the connection ends."""
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise ValueError("too many header fields")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head ends here; body bytes are bounded by the endpoints."""
        self._in_head = False
        if self.instead is not None:
            self._usual = self._usual or self.app
            self.app = self.instead(self.url) or self._usual
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Another request may follow on this connection."""
        self._in_head, self._head_bytes = True, 0
        self._request_is_here()
        super().on_message_complete()

    def _expect_request(self) -> None:
        self._deadline = self.loop.call_later(REQUEST_S, self._too_slow)

    def _request_is_here(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        self._refuse(408, "Request Timeout", "the request did not arrive in time")

    def _refuse(self, status: int, reason: str, title: str, more: bytes = b"") -> None:
        transport: Any = self.transport
        if transport.is_closing():
            return
        body = b'{"type":"about:blank","title":"%s","status":%d}' % (title.encode(), status)
        transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\n%sconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (status, reason.encode(), more, len(body), body)
        )
        transport.close()
