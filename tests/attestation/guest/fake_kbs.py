"""A key broker for client tests: real HTTP on loopback, answers from a script. It checks cookies and nonces, no more."""

import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from attestation.crypto.jwe import seal
from attestation.crypto.jwk import parse_tee_key
from attestation.values import Secret

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class FakeKbs:
    """State of one broker. `script` maps a path prefix to answers that are given before the normal ones."""

    secret: bytes = bytes(range(32))
    extra_params: Any = ""
    script: dict[str, list[Answer]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    url: str = ""

    def answer(self, method: str, path: str, cookie: str, body: bytes) -> Answer:
        """One exchange."""
        self.calls.append((method, path))
        for prefix, answers in self.script.items():
            if path.startswith(prefix) and answers:
                return answers.pop(0)
        if path == "/kbs/v0/auth":
            return self._auth(json.loads(body))
        session = self.sessions.get(cookie.removeprefix("kbs-session-id="))
        if path == "/kbs/v0/attest":
            return self._attest(session, json.loads(body))
        if session is None or "key" not in session:
            return problem(401, "Attestation Token not found")
        sealed = seal(Secret(self.secret), parse_tee_key(session["key"]), random=counting(len(self.calls)))
        return reply(200, sealed.to_json())

    def _auth(self, body: Any) -> Answer:
        self.bodies.append(body)
        name = sha256(str(len(self.calls)).encode()).hexdigest()[:32]
        nonce = b64encode(sha256(name.encode()).digest()).decode()
        self.sessions[name] = {"nonce": nonce}
        status, headers, raw = reply(200, {"nonce": nonce, "extra-params": self.extra_params})
        return status, headers | {"Set-Cookie": f"kbs-session-id={name}; Path=/kbs/v0; HttpOnly"}, raw

    def _attest(self, session: dict[str, Any] | None, body: Any) -> Answer:
        self.bodies.append(body)
        if session is None or body["runtime-data"]["nonce"] != session["nonce"]:
            return problem(401, "Attestation error: RCAR handshake Attest failed")
        session["key"] = body["runtime-data"]["tee-pubkey"]
        return reply(200, {"token": "e30.e30.e30"})


def counting(seed: int) -> Any:
    """Repeatable bytes."""
    calls = iter(range(1 << 20))
    return lambda size: (sha256(f"{seed} {next(calls)}".encode()).digest() * 4)[:size]


def reply(status: int, document: Any, **headers: str) -> Answer:
    """A JSON answer; `retry_after="1"` becomes Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"Content-Type": "application/json"} | named, json.dumps(document).encode()


def problem(status: int, detail: str, **headers: str) -> Answer:
    """The protocol's error body."""
    return reply(status, {"type": "https://example.test/errors/Some", "detail": detail}, **headers)


@contextmanager
def serving(kbs: FakeKbs, certificate: Path | None = None) -> Iterator[FakeKbs]:
    """Run it on a free loopback port; over TLS when a PEM with key and chain is given."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, headers, raw = kbs.answer(self.command, self.path, self.headers.get("Cookie", ""), body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_DELETE = respond  # noqa: N815 - names of http.server

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        kbs.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield kbs
        finally:
            server.shutdown()
            thread.join()
