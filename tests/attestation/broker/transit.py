"""A small Vault Transit over real HTTP: encrypt, decrypt with associated data, key versions, tokens that expire."""

import json
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from secrets import token_bytes
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM


class FakeTransit:
    """Keys by name, oldest version first. `broken` answers 503 to everything; `garbage` is sent instead of an answer."""

    def __init__(self) -> None:
        self.keys: dict[str, list[AESGCM]] = {}
        self.token = "s.first"
        self.broken = False
        self.garbage: bytes | None = None
        self.url = ""
        self.calls = 0

    def rotate(self, name: str) -> None:
        self.keys.setdefault(name, []).append(AESGCM(token_bytes(32)))

    def answer(self, path: str, token: str | None, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.calls += 1
        if self.broken:
            return 503, {"errors": ["sealed"]}
        if token != self.token:
            return 403, {"errors": ["permission denied"]}
        _, _, _mount, verb, name = path.split("/")
        if name not in self.keys:
            return 404, {"errors": []}
        aad = b64decode(body["associated_data"])
        if verb == "encrypt":
            iv = token_bytes(12)
            boxed = iv + self.keys[name][-1].encrypt(iv, b64decode(body["plaintext"]), aad)
            return 200, {"data": {"ciphertext": f"vault:v{len(self.keys[name])}:{b64encode(boxed).decode()}"}}
        _, version, text = body["ciphertext"].split(":")
        boxed = b64decode(text)
        try:
            plain = self.keys[name][int(version[1:]) - 1].decrypt(boxed[:12], boxed[12:], aad)
        except InvalidTag:
            return 400, {"errors": ["cipher: message authentication failed"]}
        return 200, {"data": {"plaintext": b64encode(plain).decode()}}


@contextmanager
def transit() -> Iterator[FakeTransit]:
    """Served on loopback, with one key `root`."""
    fake = FakeTransit()
    fake.rotate("root")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, answer = fake.answer(self.path, self.headers.get("X-Vault-Token"), body)
            raw = json.dumps(answer).encode() if fake.garbage is None else fake.garbage
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
