"""A loopback reader for programs that want files without a decrypted copy: HTTP with ranges, each chunk authenticated.

`GET /files/<name>` (with `Range: bytes=a-b`), `GET /tensors/<file>?name=<tensor>`, `GET /manifest`, `GET /healthz`.
Every request needs the bearer token that the starter was given: containers of one pod share the loopback interface.
"""

import hmac
import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from attestation.errors import AttestationError, Misconfigured
from attestation.guest.model import EncryptedModel, open_file
from attestation.guest.tensors import read_tensor, read_tensors

LOOPBACK = "127.0.0.1"
REQUEST_TIMEOUT_S = 60.0  # an idle or stuck client gives its thread back
_RANGE = re.compile(r"bytes=([0-9]{1,20})-([0-9]{1,20})?")


class ModelServer(ThreadingHTTPServer):
    """Serves one model on loopback. `server_address` says the port when 0 was asked for."""

    daemon_threads = True

    def __init__(self, model: EncryptedModel, port: int, token: str) -> None:
        self.model, self.token = model, token
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as exc:
            raise Misconfigured(
                "listen-address", f"cannot listen: {exc.strerror}", where=f"{LOOPBACK}:{port}", expected="a free port"
            ) from exc


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer
    protocol_version = "HTTP/1.1"
    server_version = "kata-gpu-guest"
    sys_version = ""
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        """Dispatch; a refused or failed request is one JSON line and never a traceback."""
        url = urlsplit(self.path)
        if url.path == "/healthz":
            self._send_json(HTTPStatus.OK, {"status": "ok"})
            return
        expected = f"Bearer {self.server.token}".encode()
        if not hmac.compare_digest(self.headers.get("Authorization", "").encode(), expected):
            self._send_json(HTTPStatus.UNAUTHORIZED, {"error": "unauthorized"})
            return
        try:
            if url.path == "/manifest":
                self._manifest()
            elif url.path.startswith("/files/"):
                self._file(unquote(url.path.removeprefix("/files/")))
            elif url.path.startswith("/tensors/"):
                self._tensor(unquote(url.path.removeprefix("/tensors/")), parse_qs(url.query))
            else:
                self._send_json(HTTPStatus.NOT_FOUND, {"error": "not-found"})
        except Misconfigured as exc:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": exc.code, "detail": str(exc)})
        except AttestationError as exc:
            self._send_json(HTTPStatus.BAD_GATEWAY, {"error": exc.code, "detail": str(exc)})
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _manifest(self) -> None:
        model = self.server.model
        files = [{"name": f.name, "size": f.size} for f in model.manifest.files]
        self._send_json(HTTPStatus.OK, {"digest": str(model.digest), "files": files})

    def _file(self, name: str) -> None:
        model = self.server.model
        with open_file(model, model.index(name)) as stored:
            start, end, size = 0, stored.entry.size, stored.entry.size
            wanted = self.headers.get("Range")
            if wanted is not None:
                match = _RANGE.fullmatch(wanted)
                if match is None or int(match[1]) >= size or int(match[2] or size) < int(match[1]):
                    self._send_json(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, {"error": "range"})
                    return
                start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
            status = HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK
            headers = {"Content-Range": f"bytes {start}-{end - 1}/{size}"} if wanted else {}
            self._send_views(status, stored.read(start, end - start), end - start, headers)

    def _tensor(self, name: str, query: dict[str, list[str]]) -> None:
        model = self.server.model
        with open_file(model, model.index(name)) as stored:
            tensors = read_tensors(stored)
            if "name" not in query:
                rows = {
                    t.name: {"dtype": t.dtype, "shape": t.shape, "bytes": t.end - t.start} for t in tensors.values()
                }
                self._send_json(HTTPStatus.OK, rows)
                return
            wanted = query["name"][0]
            views = read_tensor(stored, wanted)
            self._send_views(HTTPStatus.OK, views, tensors[wanted].end - tensors[wanted].start, {})

    def _send_views(
        self, status: HTTPStatus, views: Iterator[memoryview], length: int, headers: dict[str, str]
    ) -> None:
        """The first chunk is opened before the status goes out; a later bad chunk cuts the connection."""
        first = next(views, None)
        self.send_response(status)
        for name, value in (headers | {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            if first is not None:
                self.wfile.write(first)
            for view in views:
                self.wfile.write(view)
        except AttestationError as exc:
            self.close_connection = True
            self.log_error("%s: %s", exc.code, exc)

    def _send_json(self, status: HTTPStatus, document: Any) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Requests are not logged: an inference server reads thousands of ranges."""
