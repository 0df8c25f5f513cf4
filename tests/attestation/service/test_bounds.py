"""Bounds of a connection, admission, readiness and the end of a process."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from attestation.errors import AttestationError, Denied, Unavailable
from attestation.service import protocol
from attestation.service.app import ServiceLimits
from attestation.service.health import FRESH_S, Health
from attestation.service.workers import MAX_PEERS, RateLimit, Workers
from tests.attestation.broker.broker import NOW, PATH, Broker, Served, broker, ready_broker, served
from tests.conformance.rust_client import RustClient, TeeKey, Wire
from tests.conformance.transcripts import snp_attester


@pytest.fixture(scope="module")
def kbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with broker(tmp_path_factory.mktemp("kbs")) as made, served(made) as running:
        yield running


def raw(url: str, source: str = "127.0.0.1") -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname
    return socket.create_connection((parts.hostname, parts.port or 0), timeout=20, source_address=(source, 0))


def everything(wire: socket.socket) -> bytes:
    """Until the other side hangs up."""
    got = b""
    while more := wire.recv(65536):
        got += more
    return got


def test_a_head_over_the_cap(kbs: Served) -> None:
    """431, and the connection ends."""
    with raw(kbs.url) as wire:
        wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
        wire.sendall(b"authorization: Bearer " + b"a" * (protocol.MAX_HEAD_BYTES + 1))
        assert everything(wire).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="silence"),
        pytest.param(b"POST /kbs/v0/auth HT", id="half-a-line"),
        pytest.param(b"POST /kbs/v0/auth HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{", id="half-a-body"),
    ],
)
def test_a_request_that_does_not_arrive(kbs: Served, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 after the deadline; a complete request on the same kind of connection is not disturbed."""
    monkeypatch.setattr(protocol, "REQUEST_S", 0.2)
    with raw(kbs.url) as wire:
        if sent:
            wire.sendall(sent)
        assert b"HTTP/1.1 408 " in everything(wire)
    whole = Wire(kbs.url)
    assert whole.call("GET", "/healthz").status == 200
    time.sleep(0.3)
    assert whole.call("GET", "/healthz").status == 200
    whole.close()


def test_one_connection_too_many(kbs: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with Retry-After at once; others go on."""
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 1)
    first = Wire(kbs.url)
    assert first.call("GET", "/healthz").status == 200
    with raw(kbs.url) as wire:
        got = everything(wire)
    assert got.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 2\r\n" in got
    assert first.call("GET", "/healthz").status == 200
    first.close()


def test_one_address_cannot_take_every_connection(kbs: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each listener counts by address, and what was closed counts no more."""
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS_EACH", 2)
    for url in (kbs.url, kbs.admin_url):
        kept = [Wire(url) for _ in range(2)]
        assert [wire.call("GET", "/healthz").status for wire in kept] == [200, 200]
        with raw(url) as wire:
            assert everything(wire).startswith(b"HTTP/1.1 503 ")
        with raw(url, source="127.0.0.2") as wire:
            wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert everything(wire).startswith(b"HTTP/1.1 200 ")
        for one in kept:
            one.close()
        deadline = time.monotonic() + 10
        while not _answers(url):
            assert time.monotonic() < deadline


def _answers(url: str) -> bool:
    with raw(url) as wire:
        wire.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        return everything(wire).startswith(b"HTTP/1.1 200 ")


def test_new_handshakes_are_refused_before_old_ones() -> None:
    """Half of the queue is for what is under way; nothing runs beyond the whole."""
    gate = threading.Event()

    async def scenario() -> tuple[list[str], int]:
        workers = Workers(threads=1, queue=2)
        waiting = [asyncio.create_task(workers.run(gate.wait)) for _ in range(2)]
        await asyncio.sleep(0)
        seen = []
        for new in (True, False):
            try:
                workers.admit(new=new)
                seen.append("in")
            except Unavailable as exc:
                seen.append(exc.code)
        waiting.append(asyncio.create_task(workers.run(gate.wait)))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await workers.run(gate.wait)
        gate.set()
        await asyncio.gather(*waiting)
        workers.close()
        return seen, workers.inside

    assert asyncio.run(scenario()) == (["overloaded", "in"], 0)


def test_buckets() -> None:
    """A burst, then the rate; names do not share; the oldest is forgotten."""
    limit = RateLimit(rate=2.0, burst=3)
    for _ in range(3):
        limit.take("a", 0.0)
    with pytest.raises(Denied):
        limit.take("a", 0.1)
    limit.take("b", 0.1)
    limit.take("a", 0.6)
    with pytest.raises(Denied):
        limit.take("a", 0.7)
    for index in range(MAX_PEERS + 1):
        limit.take(str(index), 1.0)
    assert len(limit._buckets) == MAX_PEERS


def test_one_chip_cannot_take_everything(tmp_path: Path) -> None:
    """The rate of an identity: 429 with Retry-After, whatever address it comes from."""
    limits = ServiceLimits(chip_rate_per_s=0.0, chip_burst=2)
    with ready_broker(tmp_path, simulated=True) as made, served(made, limits=limits) as running:
        client = RustClient(wire=Wire(running.url), tee="snp", attester=snp_attester, key=TeeKey.make())
        client.handshake()
        replies = [client.get(f"resource/{PATH}") for _ in range(3)]
        client.wire.close()
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert replies[2].header("retry-after")


def test_health_asks_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are kept for a moment; failures are named."""
    asked: list[str] = []

    def fine(_now: object) -> None:
        asked.append("fine")

    def broken(_now: object) -> None:
        asked.append("broken")
        raise Unavailable("store", "password of the database is 1234")

    health = Health({"fine": fine, "broken": broken})
    with pytest.raises(Unavailable) as caught:
        health.require_ready(NOW)
    for _ in range(3):
        assert set(health.check(NOW)) == {"broken"}
    assert asked == ["fine", "broken"]
    assert (caught.value.where, "1234" in str(caught.value)) == ("broken", False)
    health._checked -= 2 * FRESH_S
    assert set(health.check(NOW)) == {"broken"}
    assert len(asked) == 4


def _ready(running: Served) -> tuple[int, str]:
    wire = Wire(running.url)
    running.service.health._checked = float("-inf")
    reply = wire.call("GET", "/readyz")
    wire.close()
    return reply.status, reply.json().get("instance", "") if reply.status != 200 else ""


def test_readiness_follows_its_parts(tmp_path: Path) -> None:
    """The database and the root key; liveness does not change with them."""

    class Locked:
        def seal(self, *_args: object, **_kwargs: object) -> None:
            raise AttestationError("sealed", "vault is sealed")

        open = seal

    with broker(tmp_path) as made:
        with served(made) as running:
            assert _ready(running) == (200, "")
        object.__setattr__(made.world, "vault", Locked())
        with served(made) as running:
            assert _ready(running) == (503, "root-key")
            wire = Wire(running.admin_url)
            assert b'kata_gpu_kbs_ready{check="root-key"} 0.0' in wire.call("GET", "/metrics").body
            assert b'kata_gpu_kbs_ready{check="database"} 1.0' in wire.call("GET", "/metrics").body
            assert wire.call("GET", "/healthz").status == 200
            wire.close()


def test_drain(tmp_path: Path) -> None:
    """Told to stop: not ready at once, still serving until balancers have noticed, then gone; work in flight ends."""
    with broker(tmp_path) as made, served(made, drain_delay_s=0.5) as running:
        wire = Wire(running.url)
        assert wire.call("GET", "/readyz").status == 200
        slow = threading.Event()
        answers: list[int] = []

        def in_flight() -> None:
            with raw(running.url) as late:
                body = json.dumps({"version": "0.4.0", "tee": "snp", "extra-params": ""}).encode()
                late.sendall(b"POST /kbs/v0/auth HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body))
                slow.wait(10)
                late.sendall(body)
                answers.append(int(everything(late).split(b" ")[1]))

        thread = threading.Thread(target=in_flight)
        thread.start()
        time.sleep(0.1)
        running.stop()
        deadline = time.monotonic() + 5
        while wire.call("GET", "/readyz").status == 200:
            assert time.monotonic() < deadline
        assert wire.call("GET", "/readyz").json()["instance"] == "draining"
        assert wire.call("GET", "/healthz").status == 200
        wire.close()
        while _accepts(running.url):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        slow.set()
        thread.join(10)
        assert answers == [200]


def _accepts(url: str) -> bool:
    try:
        raw(url).close()
    except ConnectionError:
        return False
    return True


def test_no_memory_of_this_process_is_written_or_read() -> None:
    """After the hook: no core dumps, and the kernel gives the process's memory to nobody."""
    script = (
        "from attestation.hardening import forbid_dumps; import resource, ctypes\n"
        "forbid_dumps()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(0, 0) 0"


def test_what_a_broker_is_made_of(kbs: Served) -> None:
    """A broker without a stored collateral probes what it has."""
    made: Broker = kbs.broker
    assert kbs.service.health.names == ("database", "root-key", "configuration")
    assert not kbs.service.health.check(made.clock())
