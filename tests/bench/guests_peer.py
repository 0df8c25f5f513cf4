"""Guests for `tests/bench/broker.py`: their evidence is forged beforehand, so that sending costs next to nothing.

Every connection repeats challenge, evidence, key, each as soon as the answer before it is complete (closed loop). The
challenge begins a handshake that nobody finishes; the evidence answers a challenge of before the measurement. Who is
told to come back (503) does so at once.
"""

import json
import selectors
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.conformance.rust_client import HASHES, RustClient, TeeKey, Wire
from tests.conformance.transcripts import snp_attester

_READ = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What one handshake sends, byte by byte."""

    requests: tuple[bytes, bytes, bytes]


def prepare(url: str, path: str, count: int) -> list[Prepared]:
    """So many challenges, each with honest evidence for it: one SNP chip and one Hopper GPU."""
    wire, out = Wire(url), []
    for _ in range(count):
        guest = RustClient(wire=wire, tee="snp", attester=snp_attester, key=TeeKey.make())
        guest.auth()
        out.append(_handshake(guest, path))
    wire.close()
    return out


def _handshake(guest: RustClient, path: str) -> Prepared:
    cookie = {"cookie": f"kbs-session-id={guest.cookie}"}
    begin = {"version": "0.4.0", "tee": "snp", "extra-params": {"supported-hash-algorithms": HASHES}}
    return Prepared(
        requests=(
            _request("POST", "auth", {}, begin),
            _request("POST", "attest", cookie, guest.attest_body()),
            _request("GET", path, cookie, None),
        )
    )


def _request(method: str, path: str, headers: dict[str, str], body: object) -> bytes:
    data = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
    if body is not None:
        headers = {"content-type": "application/json", "content-length": str(len(data)), **headers}
    lines = [f"{method} /kbs/v0/{path} HTTP/1.1", "host: broker", "user-agent: attestation-agent-kbs-client/0.1.0"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


@dataclass
class _Connection:
    socket: socket.socket
    todo: list[bytes] = field(default_factory=list)
    received: bytes = b""

    def send(self) -> None:
        self.socket.sendall(self.todo[0])

    def answered(self) -> bool:
        """Read what is there; whether an answer is complete. Anything but 200 and 503 ends the measurement."""
        self.received += self.socket.recv(_READ)
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end or len(body) < int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return False
        status, self.received = self.received[9:12], b""
        if status == b"200":
            self.todo.pop(0)
        elif status != b"503":
            raise AssertionError(head + body)
        return True


def run(urls: Sequence[str], handshakes: Iterable[Prepared], clients: int) -> float:
    """Seconds until the last key arrived, over so many connections, to each server in turn."""
    waiting = iter(handshakes)
    with selectors.DefaultSelector() as ready:
        for number in range(clients):
            parts = urlsplit(urls[number % len(urls)])
            made = socket.create_connection((parts.hostname, parts.port))
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ready.register(made, selectors.EVENT_READ, _Connection(made))
        started = time.perf_counter()
        for key in list(ready.get_map().values()):
            _next(key.data, waiting, ready)
        while ready.get_map():
            for key, _ in ready.select():
                if not key.data.answered():
                    continue
                if key.data.todo:
                    key.data.send()
                else:
                    _next(key.data, waiting, ready)
        return time.perf_counter() - started


def _next(connection: _Connection, waiting: Iterator[Prepared], ready: selectors.BaseSelector) -> None:
    handshake = next(waiting, None)
    if handshake is None:
        ready.unregister(connection.socket)
        connection.socket.close()
        return
    connection.todo = list(handshake.requests)
    connection.send()
