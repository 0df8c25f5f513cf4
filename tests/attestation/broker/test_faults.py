"""Faults under load, with real processes and a real PostgreSQL: replicas killed at random, the database restarted.

Short forms run in `make test`; `make soak` runs the long ones. What must hold is the same in both (`check`).
"""

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from secrets import token_bytes
from typing import Any

import pytest
from sqlalchemy import select

from attestation.cli.platform import platform_verifier
from attestation.cli.verification import BUILTIN
from attestation.crypto.jwk import thumbprint
from attestation.ops.open_world import WorldOptions, close_world, open_world
from attestation.simulate.amd import MEASUREMENT
from attestation.sources.envelope import FileRootKey
from attestation.sources.schema import attestations
from tests.attestation.broker.broker import GPU_POLICY, NOW, PATH, Broker
from tests.attestation.broker.postgres import ABSENT, FOUND, Cluster, cluster
from tests.attestation.broker.replica import Replicas, replicas
from tests.conformance.rust_client import Aborted, Reply, RustClient, TeeKey, Wire
from tests.conformance.transcripts import snp_attester

TIMEOUT_S = 5.0  # a client gives a replica this long, then asks another one
PATIENCE_S = 60.0  # and gives up altogether after this: the test fails then
DOWN = (OSError, http.client.HTTPException)


@dataclass
class Site:
    """Two replicas on one PostgreSQL, with one key."""

    made: Broker
    processes: Replicas
    server: Cluster


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Shared: no fault may leave anything behind."""
    if not FOUND:
        pytest.skip(ABSENT)
    folder = tmp_path_factory.mktemp("site")
    root = folder / "root.key"
    FileRootKey.create(root, token_bytes)
    with cluster() as server:
        options = WorldOptions(store=server.url, root_key=root, simulated=True)
        made = Broker(world=open_world(options, platform_verifier(collateral=None, simulated_roots=BUILTIN), now=NOW))
        made.references({"snp_launch_measurement": [MEASUREMENT.hex()]})
        made.put(policy=GPU_POLICY)
        try:
            with replicas(server.url, root, 2, folder / "replicas.log") as processes:
                yield Site(made, processes, server)
        finally:
            close_world(made.world)


@dataclass
class Load:
    """Guests that retry: every step of a handshake goes to a replica chosen at random."""

    urls: list[str]
    received: Counter[str] = field(default_factory=Counter)  # TEE key thumbprint to keys that arrived
    statuses: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    replayed: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def guest(self, seed: int) -> None:
        """One guest after another, each with a key of its own, until stopped."""
        choice = random.Random(seed)
        while not self.stop.is_set():
            key, began = TeeKey.make(), time.monotonic()
            while not self._visit(key, choice):
                if time.monotonic() - began > PATIENCE_S:
                    self.failures.append("a guest that retried got no key")
                    return
                time.sleep(0.05)

    def _visit(self, key: TeeKey, choice: random.Random) -> bool:
        """One attempt at a whole handshake. False where some step failed: a guest starts again then."""
        client = RustClient(wire=Wire(choice.choice(self.urls)), tee="snp", attester=snp_attester, key=key)
        wires = [client.wire]

        def other() -> None:
            client.wire = Wire(choice.choice(self.urls))
            client.wire._http.timeout = TIMEOUT_S
            wires.append(client.wire)

        try:
            other()
            client.auth()
            body = json.dumps(client.attest_body()).encode()
            other()
            if not self._answered(client, body):
                other()
                if not self._answered(client, body):  # the same body again, wherever: the same answer
                    return False
            other()
            self._replay(client, body)
            other()
            reply = self._counted(client.get(f"resource/{PATH}"))
            if reply.status != 200:
                return False
            with self.lock:
                assert key.decrypt(reply.json()) == b"k" * 32
                self.received[thumbprint({k: v for k, v in key.jwk.items() if k != "alg"})] += 1
            return True
        except Aborted:  # `auth` was answered with an error
            with self.lock:
                self.statuses[503] += 1
            return False
        except DOWN:
            return False
        finally:
            for wire in wires:
                wire.close()

    def _answered(self, client: RustClient, body: bytes) -> bool:
        try:
            return self._counted(_attest(client, body)).status == 200
        except DOWN:
            return False

    def _replay(self, client: RustClient, body: bytes) -> None:
        """Good evidence in other bytes, for a nonce that was answered: never accepted."""
        cookie = client.cookie
        reply = self._counted(_attest(client, body + b" "))
        client.cookie = cookie
        if reply.status == 200:
            self.failures.append("a nonce was accepted twice")
        self.replayed += reply.status == 401

    def _counted(self, reply: Reply) -> Reply:
        with self.lock:
            self.statuses[reply.status] += 1
        return reply


def _attest(client: RustClient, body: bytes) -> Reply:
    headers = {"content-type": "application/json", "cookie": f"kbs-session-id={client.cookie}"}
    return client.wire.call("POST", "/kbs/v0/attest", body, headers)


@dataclass
class Running:
    """Guests at work; leaving waits until each has had its key once more."""

    load: Load
    guests: int

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(self.guests)
        self._tasks = [self._pool.submit(self.load.guest, seed) for seed in range(self.guests)]
        return self.load

    def __exit__(self, *_exc: object) -> None:
        self.load.stop.set()
        for task in self._tasks:
            task.result()
        self._pool.shutdown()


def check(site: Site, load: Load) -> None:
    """What no fault may break."""
    world = site.made.world
    assert load.failures == []
    assert world.audit.verify() > 0
    released = Counter(str(e.body["tee_key"]) for e in world.audit.entries() if e.event == "released")
    without = {key: count for key, count in load.received.items() if released[key] < count}
    assert without == {}, "a key left without its audit entry"
    record = world.keys._read(PATH)
    assert record is not None
    assert record.releases == sum(released.values()) >= sum(load.received.values()) > 0
    with world.database.read() as connection:
        nonces = [
            json.loads(text[64:])["nonce"] for text in connection.execute(select(attestations.c.record)).scalars()
        ]
    assert len(nonces) == len(set(nonces)) > 0
    assert set(load.statuses) <= {200, 401, 403, 503}, load.statuses
    assert load.replayed > 0


def _kill_replicas(site: Site, kills: int) -> None:
    """One at a time, at a random moment of the load; restarted at once, on the same address."""
    choice = random.Random(kills)
    with Running(Load(site.processes.urls), guests=3) as load:
        for _ in range(kills):
            time.sleep(choice.uniform(0.05, 0.6))
            index = choice.randrange(len(site.processes.urls))
            site.processes.kill(index)
            site.processes.start(index)
        while not load.received and not load.failures:
            time.sleep(0.05)
    print(
        f"{kills} kills: {sum(load.received.values())} keys arrived, {load.replayed} replays refused, {load.statuses}"
    )
    check(site, load)


def test_replicas_killed_under_load(site: Site) -> None:
    """Ten times."""
    _kill_replicas(site, 10)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_replicas_killed_under_load_for_long(site: Site) -> None:
    """A hundred times."""
    _kill_replicas(site, 100)


def _ready(url: str) -> int:
    wire = Wire(url)
    wire._http.timeout = 15
    try:
        return wire.call("GET", "/readyz").status
    finally:
        wire.close()


def _wait_for(condition: Any, what: str) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_S, what
        time.sleep(0.05)


def _restart_database(site: Site, how: str, down_s: float) -> None:
    urls = site.processes.urls
    with Running(Load(urls), guests=3) as load:
        _wait_for(lambda: load.received, "no guest got a key before the fault")
        assert [_ready(url) for url in urls] == [200, 200]
        site.server.stop(how)
        _wait_for(lambda: [_ready(url) for url in urls] == [503, 503], "readiness did not go false")
        time.sleep(0.5)  # answers that were on their way
        while_down, refused = sum(load.received.values()), load.statuses[503]
        time.sleep(down_s)
        assert sum(load.received.values()) == while_down, "a key left while the database was down"
        assert load.statuses[503] > refused, "guests were not told to come back"
        site.server.start()
        _wait_for(lambda: [_ready(url) for url in urls] == [200, 200], "readiness did not come back")
        _wait_for(lambda: sum(load.received.values()) > while_down, "no guest got a key after the fault")
    check(site, load)


@pytest.mark.parametrize("how", ["fast", "immediate"], ids=["clean", "crash"])
def test_database_restarted_under_load(site: Site, how: str) -> None:
    """Readiness goes false and back, guests get 503, nothing is released meanwhile, nobody has to do anything."""
    _restart_database(site, how, 1.0)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_database_restarted_under_load_for_long(site: Site) -> None:
    """Ten crashes."""
    for number in range(10):
        _restart_database(site, "immediate" if number % 2 else "fast", 5.0)


def test_two_bodies_for_one_nonce_on_two_processes(site: Site) -> None:
    """Both hold good evidence and arrive together; one is accepted, and its token is the only one."""
    urls = site.processes.urls
    for _ in range(8):
        client = RustClient(wire=Wire(urls[0]), tee="snp", attester=snp_attester, key=TeeKey.make())
        client.auth()
        body, barrier = json.dumps(client.attest_body()).encode(), threading.Barrier(2)

        def send(index: int, client: RustClient = client, body: bytes = body, barrier: Any = barrier) -> int:
            wire = Wire(urls[index])
            mine = RustClient(wire=wire, key=client.key, cookie=client.cookie)
            barrier.wait()
            try:
                return _attest(mine, body + b" " * index).status
            finally:
                wire.close()

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(send, range(2))) == [200, 401]
        client.wire.close()
