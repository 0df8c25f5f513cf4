"""The fetcher and the services' answers, against a server on the loopback interface."""

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509 import ocsp

from attestation.errors import AttestationError, Malformed, Misconfigured, Unavailable, Untrusted
from attestation.formats.collateral import Document, Kind
from attestation.sources import http as subject
from attestation.sources.crls import distribution_points, fetch_crl
from attestation.sources.http import MAX_ATTEMPTS, Fetcher, origin_of
from attestation.sources.nv_ocsp import Pair, fetch_ocsp
from attestation.sources.nv_rim import ids_url, parse_ids, parse_rim_answer, rim_url
from tests.attestation.collateral.conftest import CRL_URL, DAY, NOW, Pki
from tests.attestation.forged_revocation import delegate, forge_crl, forge_ocsp

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Peer:
    """A scripted server: each path has replies that are used up, the last one stays."""

    origin: str
    replies: dict[str, list[Reply | Callable[[bytes], Reply]]] = field(default_factory=dict)
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def fetcher(self, **changes: object) -> Fetcher:
        values: dict[str, object] = {
            "https": frozenset(),
            "plain": frozenset({self.origin}),
            "sleep": self.slept.append,
        }
        return Fetcher(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def peer() -> Iterator[Peer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            found.seen.append((self.command, self.path, dict(self.headers), body))
            script = found.replies[self.path]
            reply = script.pop(0) if len(script) > 1 else script[0]
            status, headers, content = reply(body) if callable(reply) else reply
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Peer(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


def test_get(peer: Peer) -> None:
    peer.replies["/x"] = [(200, {"X-Chain": "a%20b"}, b"body")]
    answer = peer.fetcher().get(f"{peer.origin}/x", max_bytes=4)
    assert (answer.body, answer.headers["x-chain"]) == (b"body", "a%20b")
    method, _, headers, _ = peer.seen[0]
    assert (method, headers["Accept-Encoding"], "Authorization" in headers) == ("GET", "identity", False)


REFUSED: list[tuple[str, Reply, str, int]] = [
    ("too-large", (200, {}, b"x" * 5), "http-size", 1),
    ("too-large-chunkless", (200, {"Content-Length": "99999"}, b"x" * 5), "http-size", 1),
    ("truncated", (200, {"Content-Length": "4"}, b"x"), "http-failed", MAX_ATTEMPTS),
    ("redirect", (302, {"Location": "https://rim.attestation.nvidia.com/"}, b""), "http-redirect", 1),
    ("compressed", (200, {"Content-Encoding": "gzip"}, b"x"), "http-encoding", 1),
    ("absent", (404, {}, b""), "http-status", 1),
    ("no-content", (204, {}, b""), "http-status", 1),
    ("gpu-094-status-500", (500, {}, b""), "http-status", MAX_ATTEMPTS),
    ("retry-after-too-long", (429, {"Retry-After": "61"}, b""), "http-status", 1),
    ("retry-after-date", (429, {"Retry-After": "Fri, 31 Dec 2027 23:59:59 GMT"}, b""), "http-status", 1),
]


@pytest.mark.parametrize(("reply", "code", "asked"), [pytest.param(r, c, n, id=i) for i, r, c, n in REFUSED])
def test_refused(peer: Peer, reply: Reply, code: str, asked: int) -> None:
    peer.replies["/x"] = [reply]
    with pytest.raises(Unavailable) as caught:
        peer.fetcher().get(f"{peer.origin}/x", max_bytes=4)
    assert (caught.value.code, len(peer.seen)) == (code, asked)


def test_backoff_honours_retry_after(peer: Peer) -> None:
    peer.replies["/x"] = [(503, {}, b""), (429, {"Retry-After": "7"}, b""), (200, {}, b"ok")]
    assert peer.fetcher().get(f"{peer.origin}/x", max_bytes=4).body == b"ok"
    assert peer.slept == [1.0, 7.0]


def test_slow_answers_end(peer: Peer) -> None:
    peer.replies["/x"] = [(200, {}, b"ok")]
    ticks = iter(range(0, 10_000, 200))
    with pytest.raises(Unavailable) as caught:
        peer.fetcher(clock=lambda: float(next(ticks))).get(f"{peer.origin}/x", max_bytes=4)
    assert caught.value.code == "http-time"


def test_headers_byte_by_byte_end_as_well() -> None:
    """Every byte comes within the read timeout, and the attempt still ends."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                for _ in range(500):
                    if stop.wait(0.02):
                        break
                    connection.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        origin = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unavailable) as caught:
            Fetcher(https=frozenset(), plain=frozenset({origin}), total_s=0.2).get(f"{origin}/", max_bytes=4)
        stop.set()
        thread.join()
    assert caught.value.code == "http-time"


@pytest.mark.parametrize(
    ("url", "code"),
    [
        pytest.param("https://example.org/", "origin-not-allowed", id="unlisted-host"),
        pytest.param("http://rim.attestation.nvidia.com/v1/rim/ids", "origin-not-allowed", id="https-host-over-http"),
        pytest.param("https://rim.attestation.nvidia.com:8443/", "origin-not-allowed", id="other-port"),
        pytest.param("https://rim.attestation.nvidia.com@example.org/", "url", id="credentials"),
        pytest.param("file:///etc/passwd", "url", id="file"),
        pytest.param("https://[::1", "url", id="broken"),
        pytest.param("https://host:99999/", "url", id="bad-port"),
        pytest.param("/v1/rim/ids", "url", id="relative"),
    ],
)
def test_origins(url: str, code: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Fetcher().get(url, max_bytes=1)
    assert caught.value.code == code


def test_origin_lists_are_checked() -> None:
    assert origin_of("https://h/x?y") == "https://h"
    for lists in (
        {"https": frozenset({"http://h"})},
        {"plain": frozenset({"https://h"})},
        {"https": frozenset({"https://h/"})},
    ):
        with pytest.raises(Misconfigured):
            Fetcher(**lists)  # type: ignore[arg-type]
    assert {
        o for o in subject.PLAIN_ORIGINS if not o.startswith("http://ocsp.") and not o.startswith("http://crl.")
    } == set()


def test_bearer_goes_to_https_origins_only(peer: Peer) -> None:
    peer.replies["/x"] = [(200, {}, b"")]
    peer.fetcher(bearer={peer.origin: "secret"}).get(f"{peer.origin}/x", max_bytes=4)
    assert "Authorization" not in peer.seen[0][2]


def test_netrc_is_not_consulted(peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    peer.replies["/x"] = [(200, {}, b"")]
    peer.fetcher().get(f"{peer.origin}/x", max_bytes=4)
    assert "Authorization" not in peer.seen[0][2]


RIM_ID = "NV_GPU_DRIVER_GH100_580.95.05"
RIM = b"<SoftwareIdentity/>"


def rim_answer(**changes: object) -> bytes:
    values: dict[str, object] = {
        "id": RIM_ID,
        "rim": base64.b64encode(RIM).decode(),
        "sha256": sha256(RIM).hexdigest(),
        "last_updated": "2025-04-08T09:05:11.595000",
        "rim_format": "TCG",
        "request_id": "1",
    }
    return json.dumps(values | changes).encode()


@pytest.mark.parametrize(
    ("body", "error", "code"),
    [
        pytest.param(rim_answer(id="NV_GPU_DRIVER_GH100_1"), Untrusted, "rim-answer-id", id="gpu-138-wrong-id"),
        pytest.param(rim_answer(sha256="00" * 32), Untrusted, "rim-answer-digest", id="gpu-138-wrong-sha256"),
        pytest.param(rim_answer(rim="PD9*"), Untrusted, "rim-answer-base64", id="gpu-138-bad-base64"),
        pytest.param(rim_answer(rim="PHg+\n"), Untrusted, "rim-answer-base64", id="gpu-138-loose-base64"),
        pytest.param(rim_answer(rim_format="CORIM"), Untrusted, "rim-answer-format", id="gpu-138-corim"),
        pytest.param(rim_answer(sha256=None), Malformed, "json-type", id="gpu-138-no-sha256"),
        pytest.param(rim_answer(rim=7), Malformed, "json-type", id="gpu-138-number"),
        pytest.param(b"[]", Malformed, "json-type", id="gpu-138-not-an-object"),
        pytest.param(b'{"id":"a","id":"b"}', Malformed, "json-duplicate-key", id="gpu-138-duplicate-key"),
        pytest.param(b"<html>", Malformed, "json", id="gpu-138-html"),
    ],
)
def test_rim_answers(body: bytes, error: type[AttestationError], code: str) -> None:
    with pytest.raises(error) as caught:
        parse_rim_answer(body, RIM_ID)
    assert caught.value.code == code


def test_rim_answer_accepted() -> None:
    assert parse_rim_answer(rim_answer(), RIM_ID) == RIM
    assert parse_rim_answer(rim_answer(sha256=sha256(RIM).hexdigest().upper()), RIM_ID) == RIM
    assert rim_url(RIM_ID) == f"https://rim.attestation.nvidia.com/v1/rim/{RIM_ID}"
    assert ids_url("https://mirror") == "https://mirror/v1/rim/ids"
    assert parse_ids(b'{"ids":["b","a","b"],"request_id":"1"}') == ("a", "b")
    for bad in (b'{"ids":["../x"]}', b'{"ids":{}}', b'{"ids":[1]}'):
        with pytest.raises((Malformed, Untrusted)):
            parse_ids(bad)
    with pytest.raises(Malformed):
        rim_url("../../secret")


def responder(pki: Pki, *, echo: bool = True, **changes: object) -> Callable[[bytes], Reply]:
    signer = delegate(pki.ca, now=NOW - DAY)

    def reply(body: bytes) -> Reply:
        request = ocsp.load_der_ocsp_request(body)
        nonce = request.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
        values: dict[str, object] = {"this_update": NOW, "next_update": NOW + DAY, "nonce": nonce if echo else None}
        der = forge_ocsp(pki.leaf.certificate, pki.ca.certificate, signer, **(values | changes))  # type: ignore[arg-type]
        return 200, {}, der

    return reply


def asked(peer: Peer, pki: Pki) -> Document:
    pair = Pair(pki.leaf.certificate, pki.ca.certificate)
    return fetch_ocsp(peer.fetcher(), pair, nonce=b"n" * 32, now=NOW, service=f"{peer.origin}/")


def test_ocsp_fetch(peer: Peer, pki: Pki) -> None:
    peer.replies["/"] = [responder(pki)]
    document = asked(peer, pki)
    assert (document.kind, document.id, document.first_seen) == (Kind.OCSP, "1001", NOW)
    assert peer.seen[0][2]["Content-Type"] == "application/ocsp-request"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        pytest.param({"echo": False}, "ocsp-nonce", id="gpu-091-nonce-not-echoed"),
        pytest.param({"nonce": b"x" * 32}, "ocsp-nonce", id="gpu-091-other-nonce"),
        pytest.param(
            {"this_update": NOW - 2 * DAY / 3, "next_update": NOW - DAY / 3}, "ocsp-stale", id="gpu-088-expired"
        ),
    ],
)
def test_ocsp_fetch_refuses(peer: Peer, pki: Pki, changes: dict[str, object], code: str) -> None:
    peer.replies["/"] = [responder(pki, **changes)]  # type: ignore[arg-type]
    with pytest.raises(Untrusted) as caught:
        asked(peer, pki)
    assert caught.value.code == code


@pytest.mark.parametrize("status", [pytest.param(500, id="gpu-094-good-inside-a-500")])
def test_a_good_answer_with_an_error_status_is_no_answer(peer: Peer, pki: Pki, status: int) -> None:
    peer.replies["/"] = [lambda body: (status, {}, responder(pki)(body)[2])]
    with pytest.raises(Unavailable) as caught:
        asked(peer, pki)
    assert caught.value.code == "http-status"


def test_crl_fetch(peer: Peer, pki: Pki) -> None:
    leaf, ca = pki.leaf.certificate, pki.ca.certificate
    assert distribution_points(leaf) == (CRL_URL,)
    der = forge_crl(pki.ca, {}, last_update=NOW - DAY, next_update=NOW + DAY)
    peer.replies["/ca.crl"] = [(200, {}, der)]
    document = fetch_crl(peer.fetcher(), leaf, ca, f"{peer.origin}/ca.crl", now=NOW)
    assert (document.kind, document.content) == (Kind.CRL, der)
    peer.replies["/ca.crl"] = [(200, {}, forge_crl(pki.impostor, {}, last_update=NOW - DAY, next_update=NOW + DAY))]
    with pytest.raises(Untrusted):
        fetch_crl(peer.fetcher(), leaf, ca, f"{peer.origin}/ca.crl", now=NOW)
