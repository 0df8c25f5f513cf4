"""Encrypted models: throughput against `cp` and bare AES-GCM, memory, many small files, a key through a broker, and time
to a key.

Everything lies in /dev/shm, on two cores: a 2 GiB safetensors model where memory allows it. The plaintext that comes out
is compared with what went in; a difference ends the run.
"""

import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.attestation.guest.drivers import build
from tests.attestation.guest.vm import SimulatedGuest
from tests.bench.figure import Figure
from tests.bench.model_peer import KEY, BrokerProcess, start_broker, travel

SUITE = "model"
GIB = 1 << 30
ROUNDS = 3
STARTS = 9  # the least disturbed one counts
CORES = 2
KBS = "import sys; from attestation.cli.main import cli, run; code = run(cli, sys.argv[1:])"
GUEST = "import sys; from attestation.guest.main import run; code = run(sys.argv[1:])"
PEAK = "; print(*[n for n in open('/proc/self/status') if 'VmHWM' in n], file=sys.stderr); sys.exit(code)"
WARM = "page cache (tmpfs), Python files"


def figures() -> list[Figure]:
    """Every figure of the suite."""
    with _two_cores(), TemporaryDirectory(dir="/dev/shm", prefix="kata-gpu-bench-") as name:
        folder = Path(name)
        source = _make_model(folder)
        measured = _throughput(folder, source)
        with start_broker(folder) as broker:
            measured += [*_released(folder, source, broker), *_start(broker)]
        shutil.rmtree(source)
        return [*measured, *_small_files(folder)]


@contextmanager
def _two_cores() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:CORES])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _size() -> int:
    """2 GiB, or what fits three times with room to spare."""
    free = shutil.disk_usage("/dev/shm").free
    available = (
        int(next(ln for ln in Path("/proc/meminfo").read_text().splitlines() if "MemAvail" in ln).split()[1]) << 10
    )
    return min(2 * GIB, min(free, available) // 4)


def _make_model(folder: Path) -> Path:
    """Eight layers of random weights."""
    source = folder / "model"
    source.mkdir()
    block = np.frombuffer(os.urandom(_size() // 8), dtype=np.uint8)
    save_file({f"layer.{n}.weight": block for n in range(8)}, source / "model.safetensors")
    return source


def _throughput(folder: Path, source: Path) -> list[Figure]:
    """Speeds as shares of the speed of the slower of `cp` and bare AES-256-GCM: more is better, 1 is as fast."""
    key, size = folder / "key", (source / "model.safetensors").stat().st_size
    key.write_bytes(os.urandom(32))
    seconds: dict[str, list[float]] = {"cp": [], "aes": [], "encrypt": [], "decrypt": []}
    memory = {"encrypt": 0, "decrypt": 0}
    encrypted, plain, copied = folder / "model.kgm", folder / "plain", folder / "copy"
    for _ in range(ROUNDS):
        seconds["cp"].append(_timed(lambda: subprocess.run(["cp", source / "model.safetensors", copied], check=True)))
        copied.unlink()
        seconds["aes"].append(_timed(lambda: _bare_aes(size)))
        shutil.rmtree(encrypted, ignore_errors=True)
        took, memory["encrypt"] = _command(KBS, "model", "encrypt", source, encrypted, "--key-file", key)
        seconds["encrypt"].append(took)
        shutil.rmtree(plain, ignore_errors=True)
        took, memory["decrypt"] = _command(GUEST, "model", "decrypt", encrypted, plain, "--key-file", key)
        seconds["decrypt"].append(took)
    _require_same(source, plain)
    for path in (encrypted, plain):
        shutil.rmtree(path)
    ratios = {
        what: statistics.median(
            max(cp, aes) / took for cp, aes, took in zip(seconds["cp"], seconds["aes"], seconds[what], strict=True)
        )
        for what in ("encrypt", "decrypt")
    }
    speed = {what: size / statistics.median(times) / 1e9 for what, times in seconds.items()}
    label = f"{size / GIB:.2g} GiB safetensors"
    return [
        Figure(
            suite=SUITE,
            name=f"speed of decrypt, {label}, cp or AES-256-GCM (the slower) = 1",
            value=ratios["decrypt"],
            at_least=0.7,
            caches=WARM,
        ),
        Figure(
            suite=SUITE,
            name=f"speed of encrypt, {label}, cp or AES-256-GCM (the slower) = 1",
            value=ratios["encrypt"],
            at_least=0.6,
            caches=WARM,
        ),
        *(
            Figure(suite=SUITE, name=f"speed of {what}, {label}", value=rate, unit="GB/s", caches=WARM)
            for what, rate in speed.items()
        ),
        *(
            Figure(suite=SUITE, name=f"memory of {what}, {label}", value=size_mib, unit="MiB", at_most=100)
            for what, size_mib in memory.items()
        ),
    ]


def _released(folder: Path, source: Path, broker: BrokerProcess) -> list[Figure]:
    """The same model under a key that only a broker has, released to a simulated VM: what arrives is bit-identical."""
    libraries, machine = folder / "drivers", folder / "vm"
    libraries.mkdir()
    machine.mkdir()
    guest = SimulatedGuest(folder=machine, libraries=build(libraries))
    started = time.perf_counter()
    plain = travel(broker, source, guest, key="models/bench/travelling")
    took = time.perf_counter() - started
    _require_same(source, plain)
    size = (source / "model.safetensors").stat().st_size
    shutil.rmtree(plain)
    shutil.rmtree(source.with_suffix(".travelling"))
    label = f"{size / GIB:.2g} GiB encrypted, key released by a broker, decrypted in a VM, bit-identical"
    return [Figure(suite=SUITE, name=label, value=took, unit="s", caches=WARM)]


def _require_same(source: Path, plain: Path) -> None:
    """Byte by byte, and tensor by tensor as the genuine library reads it."""
    subprocess.run(["cmp", source / "model.safetensors", plain / "model.safetensors"], check=True)
    with safe_open(source / "model.safetensors", "np") as before, safe_open(plain / "model.safetensors", "np") as after:
        if sorted(before.keys()) != sorted(after.keys()) or not all(
            np.array_equal(before.get_tensor(name), after.get_tensor(name))
            for name in before.keys()  # noqa: SIM118
        ):
            raise AssertionError("the decrypted model differs")


def _small_files(folder: Path) -> list[Figure]:
    """1,000 files of 256 KiB against one file of 250 MiB, whole command lines."""
    key, content = folder / "key", os.urandom(256 << 10)
    many, one = folder / "many", folder / "one"
    many.mkdir()
    one.mkdir()
    for number in range(1000):
        (many / f"{number:04d}.bin").write_bytes(content)
    (one / "all.bin").write_bytes(content * 1000)
    best: dict[tuple[str, str], float] = {}
    for _ in range(5):
        for source in (many, one):
            encrypted, plain = folder / f"{source.name}.kgm", folder / f"{source.name}.plain"
            for what, code, command in (
                ("encrypt", KBS, ("model", "encrypt", source, encrypted)),
                ("decrypt", GUEST, ("model", "decrypt", encrypted, plain)),
            ):
                took, _ = _command(code, *command, "--key-file", key)
                best[what, source.name] = min(took, best.get((what, source.name), took))
            shutil.rmtree(encrypted)
            shutil.rmtree(plain)
    return [
        Figure(
            suite=SUITE,
            name=f"time of {what}, 1,000 files / one file of as many bytes",
            value=best[what, "many"] / best[what, "one"],
            at_most=2,
            caches=WARM,
        )
        for what in ("encrypt", "decrypt")
    ]


def _start(broker: BrokerProcess) -> list[Figure]:
    """Process start to key in hand, against a broker of ours on loopback, evidence simulated."""
    arguments = ("simulate", "vm", KEY, "--broker", broker.url, "--output", "json")
    times = [_command(KBS, *arguments)[0] for _ in range(STARTS)]
    start = min(_command(GUEST, "--version")[0] for _ in range(STARTS))
    return [
        Figure(
            suite=SUITE,
            name="client start to key in hand",
            value=min(times) * 1000,
            unit="ms",
            at_most=400,
            caches=WARM,
        ),
        Figure(suite=SUITE, name="of which Python start", value=start * 1000, unit="ms", at_most=150, caches=WARM),
    ]


def _bare_aes(size: int) -> None:
    """AES-256-GCM of `cryptography` over as many bytes, on as many cores."""
    aead, chunk = AESGCM(bytes(32)), 1 << 20

    def run(count: int) -> None:
        data, out = bytearray(chunk), bytearray(chunk + 16)
        for number in range(count):
            aead.encrypt_into(number.to_bytes(12, "big"), data, None, out)

    with ThreadPoolExecutor(CORES) as pool:
        list(pool.map(run, [size // chunk // CORES] * CORES))


def _timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _command(code: str, *arguments: str | Path) -> tuple[float, int]:
    """Seconds of wall time and peak MiB of resident memory of one command line, which says its peak itself.

    (The kernel's `ru_maxrss` of a child starts with the memory of the parent that it was forked from.)
    """
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code + PEAK, *map(str, arguments)], capture_output=True, text=True, check=True
    )
    took = time.perf_counter() - started
    return took, int(done.stderr.split("VmHWM:")[1].split()[0]) >> 10
