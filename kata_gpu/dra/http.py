"""`/metrics`, `/healthz` and `/readyz` of the agent: reading only, small, on a listener of its own."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Endpoint = Callable[[], tuple[int, str, bytes]]
REQUEST_S = 5.0  # a slow client must not hold a thread


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    endpoints: dict[str, Endpoint]


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
