"""Handshakes (challenge, evidence of SNP and one GPU, key) of a saturated server, against the signatures alone.

The server is a process of its own, which logs as in production, on one core; guests have another one and send what they
forged before (`guests_peer.py`). Warm: chains, reference documents, configuration. Audit is durable before each key.

Two clocks. CPU time of the server process, user and system, is what promises are made of: it stays itself beside other
work. Handshakes a second by the clock on the wall are reported beside it and mean something on a quiet machine only.

The signature-only limit counts what a handshake needs with chains and collateral cached, and no more: CPU report and
GPU report verified (P-384), the token signed (P-256), one ephemeral key agreed (P-256), two entries of the audit log
signed (Ed25519), the attestation and the release. The GPU's leaf is not in it: a chain that verified before is known.

What is promised together, 30 % of the signature-only limit `L` and 85 % of a server that verifies nothing, cannot be:
let `s` be the two P-384 verifications, four fifths of `L`. The stub has 85 % of its time left only if `s` is at most 15 %
of the whole, so that the whole is 5.3 `L` and the share of the limit 19 %. The first is kept; the second is missed, and
what it could be at most, with verification that costs nothing but its signatures, stands beside it.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes

import psutil
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from attestation.cli.platform import platform_verifier
from attestation.cli.verification import BUILTIN
from attestation.ops.administer import set_rego_policy
from attestation.ops.open_world import WorldOptions, close_world, open_world
from attestation.simulate.amd import MEASUREMENT
from attestation.sources.envelope import FileRootKey
from attestation.sources.policy_store import PolicyKind
from tests.attestation.broker.broker import ADMIN, GPU_POLICY, NOW, PATH, Broker, ready_broker
from tests.attestation.broker.postgres import FOUND, cluster
from tests.bench.figure import Figure
from tests.bench.guests_peer import prepare, run

ROUNDS, HANDSHAKES, GUESTS = 3, 300, 16
FREE_CORES = 4  # for two servers, a database and guests
VERIFIED, AUDITED = 2, 2  # of one handshake: reports of CPU and GPU; entries of attestation and release
CACHES = "chains, RIMs, configuration warm"
# Upstream's default policy in its shape: what Rego costs is the engine and the way to it, not these lines.
REGO = """package policy
import rego.v1
default executables := 33
default hardware := 97
default configuration := 36
executables := 3 if input.snp.measurement in query_reference_value("snp_launch_measurement")
hardware := 2 if input.snp
configuration := 2 if input.snp.policy_debug_allowed == false
trust_claims := {"executables": executables, "hardware": hardware, "configuration": configuration}
"""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A store with a key, and how a server opens it."""

    store: str
    root_key: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Pace:
    """One measurement, in seconds for each handshake; `limit` is that of the moment."""

    cpu: float
    wall: float
    limit: float


@contextmanager
def server(site: Site, mode: str, core: int | None = None) -> Iterator[tuple[str, psutil.Process]]:
    """A broker process and its address."""
    command = [sys.executable, "-m", "tests.bench.broker_peer", site.store, mode]
    command += ["--root-key", str(site.root_key)] if site.root_key else []
    command += ["--core", str(core)] if core is not None else []
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout
    try:
        yield child.stdout.readline().strip(), psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)
        child.stdout.close()


def measure(site: Site, mode: str, *, servers: int = 1, pinned: bool = True) -> Pace:
    """So many servers on one store, each saturated by guests of its own."""
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        if pinned:
            stack.callback(os.sched_setaffinity, 0, set(cores))
            os.sched_setaffinity(0, set(cores[1:] or cores))
        started = [stack.enter_context(server(site, mode, cores[0] if pinned else None)) for _ in range(servers)]
        path = f"resource/{PATH}"
        for url, _process in started:
            run([url], prepare(url, path, 2 * GUESTS), GUESTS)
        urls = [url for url, _process in started]
        handshakes = prepare(urls[0], path, HANDSHAKES * servers)
        limit, before = signature_limit(), sum(_cpu(process) for _url, process in started)
        wall = run(urls, handshakes, GUESTS * servers)
        cpu = sum(_cpu(process) for _url, process in started) - before
        limit = (limit + signature_limit()) / 2
    count = len(handshakes)
    return Pace(cpu=cpu / count, wall=wall / count, limit=limit)


def _cpu(process: psutil.Process) -> float:
    """With children: the Rego worker is one."""
    times = [p.cpu_times() for p in (process, *process.children())]
    return float(sum(t.user + t.system for t in times))


def verifications(count: int) -> float:
    """CPU seconds of so many P-384 verifications."""
    key = ec.generate_private_key(ec.SECP384R1())
    signature, public = key.sign(b"x", ec.ECDSA(hashes.SHA384())), key.public_key()
    started = time.process_time()
    for _ in range(20 * count):
        public.verify(signature, b"x", ec.ECDSA(hashes.SHA384()))
    return (time.process_time() - started) / 20


def signature_limit() -> float:
    """CPU seconds of the signatures that no broker can leave out: reports of CPU and GPU, token, ECDH, audit log."""
    p256, ed25519 = ec.generate_private_key(ec.SECP256R1()), Ed25519PrivateKey.generate()
    peer = p256.public_key()
    times: list[float] = []
    for _ in range(7):
        verified, started = verifications(VERIFIED), time.process_time()
        for _ in range(20):
            p256.sign(b"x", ec.ECDSA(hashes.SHA256()))
            ec.generate_private_key(ec.SECP256R1()).exchange(ec.ECDH(), peer)
            for _ in range(AUDITED):
                ed25519.sign(b"x")
        times.append(verified + (time.process_time() - started) / 20)
    return statistics.median(times)


@contextmanager
def sites(folder: Path) -> Iterator[dict[str, Site]]:
    """The same key and policy on SQLite, on SQLite with Rego appraisal, and on PostgreSQL where there is one."""
    made = {}
    for name in ("sqlite", "rego"):
        with ready_broker(folder / name) as broker:
            if name == "rego":
                set_rego_policy(broker.world, ADMIN, PolicyKind.REGO_ATTESTATION, "default_cpu", REGO, now=NOW)
        made[name] = Site(store=str(folder / name / "store"))
    with ExitStack() as stack:
        if FOUND:
            made["postgres"] = _on_postgres(stack.enter_context(cluster(fsync=True)).url, folder / "root.key")
        yield made


def _on_postgres(url: str, root: Path) -> Site:
    FileRootKey.create(root, token_bytes)
    options = WorldOptions(store=url, root_key=root)
    world = open_world(options, platform_verifier(collateral=None, simulated_roots=BUILTIN), now=NOW)
    made = Broker(world=world)
    made.references({"snp_launch_measurement": [MEASUREMENT.hex()]})
    made.put(policy=GPU_POLICY)
    close_world(world)
    return Site(store=url, root_key=root)


def figures() -> list[Figure]:
    """Everything once in each round, next to each other; medians."""
    with tempfile.TemporaryDirectory() as name, sites(Path(name)) as at:
        kinds = {"real": ("sqlite", "real"), "stub": ("sqlite", "stub"), "rego": ("rego", "real")}
        kinds |= {"postgres": ("postgres", "real")} if "postgres" in at else {}
        paces: dict[str, list[Pace]] = {kind: [] for kind in (*kinds, "free", "free stub", "one", "two")}
        for _ in range(ROUNDS):
            for kind, (site, mode) in kinds.items():
                paces[kind].append(measure(at[site], mode))
            shared = at.get("postgres", at["sqlite"])
            paces["free"].append(measure(at["sqlite"], "real", pinned=False))
            paces["free stub"].append(measure(at["sqlite"], "stub", pinned=False))
            paces["one"].append(measure(shared, "real", pinned=False))
            paces["two"].append(measure(shared, "real", servers=2, pinned=False))
    return [*_promised(paces), *_reported(paces)]


def _median(paces: list[Pace], what: str) -> float:
    return float(statistics.median(getattr(pace, what) for pace in paces))


def _limits(paces: list[Pace], what: str) -> float:
    """In signature limits of the same moment, so that a busy neighbour cancels."""
    return float(statistics.median(getattr(pace, what) / pace.limit for pace in paces))


def _figure(
    name: str, value: float, unit: str = "x", *, at_least: float | None = None, at_most: float | None = None
) -> Figure:
    return Figure(suite="broker", name=name, value=value, unit=unit, at_least=at_least, at_most=at_most, caches=CACHES)


def _promised(paces: dict[str, list[Pace]]) -> list[Figure]:
    real, stub = _limits(paces["real"], "cpu"), _limits(paces["stub"], "cpu")
    bare = statistics.median(verifications(VERIFIED) / signature_limit() for _ in range(5))
    out = [
        _figure("handshakes per CPU second", 1 / _median(paces["real"], "cpu"), "1/s"),
        _figure("signature-only limit (2 P-384, token, ECDH, 2 Ed25519)", 1 / _median(paces["real"], "limit"), "1/s"),
        _figure("share of the signature-only limit, CPU time", 1 / real, at_least=0.3),
        _figure("share of the same server without verification, CPU time", stub / real, at_least=0.85),
        _figure("highest that share could be: nothing but the signatures", stub / (stub + bare)),
        _figure("share of the same server with bare signatures for verification, CPU time", (stub + bare) / real),
    ]  # fmt: skip
    if paces.get("postgres"):
        ratio = _limits(paces["postgres"], "cpu") / real
        out.append(_figure("PostgreSQL / SQLite, CPU time of the server", ratio, at_most=1.5))
    return out


def _reported(paces: dict[str, list[Pace]]) -> list[Figure]:
    cores = len(os.sched_getaffinity(0))
    wall = {kind: _median(found, "wall") for kind, found in paces.items() if found}
    out = [
        _figure("Rego / native appraisal, CPU time with the worker's", _limits(paces["rego"], "cpu") / _limits(paces["real"], "cpu")),
        _figure("handshakes a second on one core, wall clock", 1 / wall["real"], "1/s"),
        _figure("share of the signature-only limit, wall clock, one core", _median(paces["real"], "limit") / wall["real"]),
        _figure("share of the same server without verification, wall clock, one core", wall["stub"] / wall["real"]),
        _figure(f"share of the same server without verification, wall clock, {cores} cores for all", wall["free stub"] / wall["free"]),
        _figure(f"two servers / one, wall clock, {cores} cores for all", wall["one"] / wall["two"], at_least=1.7 if cores >= FREE_CORES else None),
    ]  # fmt: skip
    if "postgres" in wall:
        out.append(_figure("PostgreSQL / SQLite, wall clock, server on one core", wall["postgres"] / wall["real"]))
    return out
