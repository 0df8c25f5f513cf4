"""What an attacker tried on the wire (docs/threat-model.md, "What was tried")."""

import asyncio
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.requests import Request
from starlette.responses import Response

from attestation.broker.roles import Role
from attestation.errors import Unavailable
from attestation.ops.administer import add_user, issue_admin_token
from attestation.service import request as request_module
from attestation.service.handshakes import Handshakes
from attestation.service.intake import Intake
from attestation.service.protocol import MAX_FIELDS
from attestation.service.request import peer
from attestation.values import ResourcePath
from tests.attestation.broker.broker import (
    ADMIN,
    NOW,
    Served,
    ready_broker,
    served,
)


@pytest.fixture(scope="module")
def kbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with ready_broker(tmp_path_factory.mktemp("kbs")) as made, served(made) as running:
        yield running


def ask(url: str, verb: str, target: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
    parts = urlsplit(url)
    wire = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    wire.request(verb, target, body, headers)
    reply = wire.getresponse()
    content = reply.read()
    wire.close()
    return reply.status, json.loads(content) if content[:1] == b"{" else content


@pytest.mark.parametrize("target", ["*", "http://evil", "//", "/"])
def test_targets_that_are_no_paths(kbs: Served, target: str) -> None:
    """Refused by the router, not by a crash: nothing unauthenticated writes tracebacks."""
    assert ask(kbs.url, "OPTIONS", target)[0] in (400, 404, 405)
    assert ask(kbs.admin_url, "OPTIONS", target)[0] in (400, 404, 405)


@pytest.mark.parametrize("last", ["0001009", "000001" + "9" * 30, "000001" + "9" * 5000, "0", "1001", "-1"])
def test_a_tail_longer_than_its_bound(kbs: Served, last: str) -> None:
    """The digits that are compared are the digits that are used."""
    world = kbs.broker.world
    if world.users.get("eve") is None:
        add_user(world, ADMIN, "eve", Role.AUDITOR, (), now=NOW)
    token = issue_admin_token(world, "eve", now=NOW)
    status, body = ask(kbs.admin_url, "GET", f"/api/v1/audit?last={last}", authorization=f"Bearer {token}")
    assert (status, body["type"]) == (400, "urn:kata-gpu:error:audit-last")


@pytest.mark.parametrize(
    ("host", "bucket"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
        ("::1", "::"),
        ("fe80::1%eth0", "fe80::"),
        ("testclient", "testclient"),
    ],
)
def test_one_machine_has_one_bucket(host: str, bucket: str) -> None:
    """An IPv6 host has 2**64 addresses: its network is what is counted."""
    assert peer(Request({"type": "http", "client": (host, 1)})) == bucket


def test_bodies_that_never_end(kbs: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many connections with all but the last byte of a body: what one address may hold is bounded, and given back."""
    intake = Intake(total=400_000, each=300_000)
    monkeypatch.setattr(request_module, "INTAKE", intake)
    for url, path in ((kbs.url, "/kbs/v0/attest"), (kbs.admin_url, "/kbs/v0/resource/a/b/c")):
        wires = []
        for _ in range(3):
            parts = urlsplit(url)
            wire = socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)
            wires.append(wire)
            wire.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 140001\r\n\r\n".encode() + b"a" * 140_000)
            _until(lambda: intake._all > 0)
        assert wires[2].recv(12) == b"HTTP/1.1 503"
        for wire in wires:
            wire.close()
        _until(lambda: intake._all == 0 and not intake._held)
    with pytest.raises(Unavailable):
        Intake(total=10, each=20).take("a", 11)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 5000 + b"]" * 5000, id="brackets"),
        pytest.param(b"\xef\xbb\xbf{}", id="byte-order-mark"),
        pytest.param("{}".encode("utf-16"), id="utf-16"),
        pytest.param(b'"\\ud800"', id="half-a-surrogate"),
        pytest.param(b"NaN", id="no-number"),
        pytest.param(b"{}x", id="more"),
        pytest.param(b"", id="empty"),
    ],
)
def test_bodies_that_are_no_json(kbs: Served, body: bytes) -> None:
    """Whole, and where any JSON may be: refused, and not a word of it comes back."""
    for whole in (body, b'{"version":"0.4.0","tee":"snp","extra-params":' + body + b"}"):
        status, answer = ask(kbs.url, "POST", "/kbs/v0/auth", whole)
        assert (status, "Invalid JSON" in answer["detail"]) == (401, True)


def test_who_leaves_within_a_body_is_no_defect() -> None:
    """Anybody can: neither a traceback in the log nor an answer of the 500s in what is counted."""

    async def crash(_request: Request, exc: Exception) -> Response:
        raise AssertionError from exc

    class Guests:
        async def auth(self, request: Request) -> Response:
            await request_module.read_body(request, 100)
            return Response()

        attest = resource = auth

    async def run() -> None:
        await Handshakes(Guests(), Response(), crash=crash)(scope, receive, send)  # type: ignore[arg-type]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        answered.append(message)

    messages = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    answered: list[Any] = []
    scope = {"type": "http", "method": "POST", "path": "/kbs/v0/auth", "headers": [], "client": ("127.0.0.1", 1)}
    asyncio.run(run())
    assert answered[0]["status"] == 400


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_head_of_many_fields(kbs: Served) -> None:
    """A head within its bytes can be fifty thousand fields, each of which costs twenty times its bytes: refused."""
    parts = urlsplit(kbs.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as wire:
        wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"a:b\r\n" * (MAX_FIELDS - 1) + b"\r\n")
        assert wire.recv(12) == b"HTTP/1.1 200"
        wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n" + b"a:b\r\n" * (MAX_FIELDS + 1))
        got = b""
        while more := wire.recv(65536):
            got += more
    assert b"HTTP/1.1 400" in got


SMUGGLED = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param(b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", id="both-lengths"),
        pytest.param(b"content-length: 0\r\ncontent-length: 40\r\n\r\n", id="two-lengths"),
        pytest.param(b"content-length: 0, 0\r\n\r\n", id="length-list"),
        pytest.param(b"content-length: +0\r\n\r\n", id="signed-length"),
        pytest.param(b"content-length: 18446744073709551616\r\n\r\n", id="length-wraps"),
        pytest.param(b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n", id="unknown-coding"),
        pytest.param(b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", id="chunked-not-last"),
        pytest.param(b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n", id="space-before-colon"),
        pytest.param(b"x: a\r\n b\r\ncontent-length: 0\r\n\r\n", id="folded-line"),
        pytest.param(b"x: a\0b\r\ncontent-length: 0\r\n\r\n", id="nul"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\n-1\r\n\r\n", id="negative-chunk"),
        pytest.param(b"transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n", id="chunk-wraps"),
    ],
)
def test_requests_that_two_parsers_read_differently(kbs: Served, fields: bytes) -> None:
    """400 and the end of the connection: what follows is never taken for a request."""
    parts = urlsplit(kbs.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20) as wire:
        wire.sendall(b"POST /kbs/v0/auth HTTP/1.1\r\nhost: x\r\n" + fields + SMUGGLED)
        got = b""
        while more := wire.recv(65536):
            got += more
    assert got.startswith(b"HTTP/1.1 400 ")
    assert got.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "target",
    [
        *("default/%2e%2e/x", "default%2fmodel%2fllama", "default/../llama", "/default/model/llama"),
        *("default/model/llama/", "default/model/llama;x", "default/model/llama%00", "default/model"),
        *("DEFAULT/model/llama", "default/model/.llama"),
    ],
)
def test_paths_that_almost_name_a_key(kbs: Served, target: str) -> None:
    """A guest that may have `default/model/llama` gets it by that name alone: 403 or 404 for everything near it."""
    visit = kbs.broker.handshake()
    assert ask(kbs.url, "GET", "/kbs/v0/resource/default/model/llama", authorization=f"Bearer {visit.token}")[0] == 200
    status, _ = ask(kbs.url, "GET", f"/kbs/v0/resource/{target}", authorization=f"Bearer {visit.token}")
    assert status in (403, 404)


@pytest.mark.parametrize("role", list(Role))
def test_an_administrator_of_one_repository_reaches_no_other(kbs: Served, role: Role) -> None:
    """Whatever the role: keys, policies, log, leases and limits of others, and what concerns everybody, are refused."""
    world = kbs.broker.world
    kbs.broker.put(ResourcePath.parse("beta/x/y"))
    if world.users.get(f"alpha-{role}") is None:
        add_user(world, ADMIN, f"alpha-{role}", role, ("alpha",), now=NOW)
    bearer = f"Bearer {issue_admin_token(world, f'alpha-{role}', now=NOW)}"
    reached = [
        f"{verb} {target}"
        for verb, target, body in (
            *(("GET", f"/api/v1/{name}", b"") for name in ("attestations", "revocations", "policies/beta/x/y")),
            *(("GET", f"/api/v1/{name}?repository=beta", b"") for name in ("keys", "audit")),
            ("GET", "/api/v1/audit?repository=alpha&repository=beta", b""),
            ("GET", "/api/v1/leases?path=beta/x/y", b""),
            *((verb, "/api/v1/keys/beta/x/y", b'{"secret": "QUFB"}') for verb in ("GET", "POST", "PUT")),
            *(("POST", f"/api/v1/{name}/beta/x/y", b"x") for name in ("wrap", "unwrap")),
            ("PUT", "/api/v1/policies/beta/x/y", b"version = 1"),
            *(("PUT", f"/api/v1/tenants/{name}", b'{"max_keys": 9}') for name in ("alpha", "beta")),
            ("POST", "/api/v1/revocations", b'{"kind": "gpu", "value": "ab", "reason": "because"}'),
            ("DELETE", "/api/v1/revocations?kind=gpu&value=ab", b""),
            *((verb, "/kbs/v0/resource/beta/x/y", b"x") for verb in ("POST", "DELETE")),
            ("POST", "/kbs/v0/resource-policy", b'{"policy": "cGFja2FnZSBwb2xpY3k"}'),
            ("POST", "/kbs/v0/attestation-policy", b'{"policy_id": "default_cpu", "policy": "cGFja2FnZSBwb2xpY3k"}'),
            ("POST", "/kbs/v0/reference-value", b"{}"),
            ("GET", "/kbs/v0/reference-value/snp_launch_measurement", b""),
        )
        if ask(kbs.admin_url, verb, target, body, authorization=bearer)[0] != 403
    ]
    assert reached == []
    for target in ("/api/v1/keys", "/api/v1/audit", "/api/v1/leases", "/api/v1/tenants"):
        status, content = ask(kbs.admin_url, "GET", target, authorization=bearer)
        assert status == 200
        assert "beta" not in json.dumps(content)
