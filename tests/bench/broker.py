"""Handshakes (challenge, evidence of SNP and one GPU, key) per second of server CPU, against the signatures alone.

The server runs in a process of its own and its CPU time is counted, so that neither the client, which forges evidence,
nor a busy machine is measured. Warm: chains, reference documents, configuration. Audit is durable before each key.
"""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.attestation.broker.broker import INIT_DATA, ready_broker
from tests.attestation.tee.world import Guest
from tests.bench.figure import Figure
from tests.conformance.rust_client import Evidence, RustClient, TeeKey, Wire

ROUNDS = 150
PATH = "resource/default/model/llama"
KEYS = TeeKey.make()
CACHES = "chains, RIMs, configuration warm"


def attester(nonce: str, jwk: dict[str, str]) -> Evidence:
    """One SNP chip, one Hopper GPU."""
    made = Guest(init_data=INIT_DATA).with_(nonce=nonce, jwk=jwk).evidence()
    return dict(made.primary), made.additional, made.init_data


@contextmanager
def server(folder: Path, mode: str) -> Iterator[tuple[str, psutil.Process]]:
    """A broker process and its address."""
    command = [sys.executable, "-m", "tests.bench.broker_peer", str(folder / "store"), mode]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    try:
        yield child.stdout.readline().strip(), psutil.Process(child.pid)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)
        child.stdout.close()


def cpu_per_handshake(folder: Path, mode: str) -> float:
    """Server CPU seconds for one handshake with a key at its end, back to back: evidence is forged in between."""
    with server(folder, mode) as (url, process):
        wire, spent = Wire(url), 0.0
        for counted in (False, True):
            guests = [RustClient(wire=wire, tee="snp", attester=attester, key=KEYS) for _ in range(ROUNDS)]
            started = _cpu(process)
            for guest in guests:
                guest.auth()
            spent += (_cpu(process) - started) * counted
            bodies = [guest.attest_body() for guest in guests]
            started = _cpu(process)
            for guest, body in zip(guests, bodies, strict=True):
                assert guest.attest(body).status == 200
                assert guest.get(PATH).status == 200
            spent += (_cpu(process) - started) * counted
        wire.close()
    return spent / ROUNDS


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def signature_limit() -> float:
    """CPU seconds of the signatures that no broker can leave out: report, GPU leaf, GPU report, token, ECDH."""
    p384, p256 = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP256R1())
    signature = p384.sign(b"x", ec.ECDSA(hashes.SHA384()))
    public, peer = p384.public_key(), p256.public_key()
    times: list[float] = []
    for _ in range(7):
        started = time.process_time()
        for _ in range(20):
            for _ in range(3):
                public.verify(signature, b"x", ec.ECDSA(hashes.SHA384()))
            p256.sign(b"x", ec.ECDSA(hashes.SHA256()))
            ec.generate_private_key(ec.SECP256R1()).exchange(ec.ECDH(), peer)
        times.append((time.process_time() - started) / 20)
    return sorted(times)[len(times) // 2]


def figures() -> list[Figure]:
    """Real and stubbed server next to each other, and the limit before and after."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with ready_broker(folder):
            pass  # the store with its key, policy and reference value
        before = signature_limit()
        real = cpu_per_handshake(folder, "real")
        stub = cpu_per_handshake(folder, "stub")
        limit = (before + signature_limit()) / 2
    return [
        Figure(suite="broker", name="handshakes per CPU second", value=1 / real, unit="1/s", caches=CACHES),
        Figure(suite="broker", name="signature-only limit", value=1 / limit, unit="1/s", caches="none"),
        Figure(
            suite="broker",
            name="share of the signature-only limit (3 P-384, token, ECDH)",
            value=limit / real,
            at_least=0.3,
            caches=CACHES,
        ),
        Figure(suite="broker", name="share of the same server without verification", value=stub / real, caches=CACHES),
    ]


if __name__ == "__main__":
    for figure in figures():
        print(f"{figure.name}: {figure.value:.3f} {figure.unit}")
