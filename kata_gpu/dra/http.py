"""`/metrics`, `/healthz` and `/readyz` of the agent: reading only, small, on a listener of its own."""

import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Endpoint = Callable[[], tuple[int, str, bytes]]
REQUEST_S = 5.0  # a silent client must not hold a thread
MAX_CONNECTIONS = 64  # kubelet and a few Prometheus; a thread each


class _Server(ThreadingHTTPServer):
    """Any pod of the cluster reaches it: whoever comes last is served, and the oldest connection goes for it.

    So nobody who keeps connections open, however slowly he talks, keeps kubelet's probe out or fills our memory.
    """

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS
    endpoints: dict[str, Endpoint]

    def __init__(self, *args: Any) -> None:
        self._open: deque[socket.socket] = deque()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for the connection, after there is room for one."""
        while len(self._open) >= MAX_CONNECTIONS:
            with suppress(IndexError, OSError):
                self._open.popleft().shutdown(socket.SHUT_RDWR)
        self._open.append(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """It has ended by itself, or was cut."""
        with suppress(ValueError):
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_S

    def do_GET(self) -> None:
        """One of the endpoints, or 404."""
        endpoint = self.server.endpoints.get(self.path.partition("?")[0])
        status, kind, body = endpoint() if endpoint else (404, "text/plain", b"not found\n")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Probes every second are no news."""


class StatusServer:
    """Serves `endpoints` until stopped. Port 0 takes a free one."""

    def __init__(self, host: str, port: int, endpoints: dict[str, Endpoint]) -> None:
        self._http = _Server((host, port), _Handler)
        self._http.endpoints = endpoints
        self._thread = threading.Thread(target=self._http.serve_forever, name="status", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._http.server_address[1])

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._http.shutdown()
        self._http.server_close()
