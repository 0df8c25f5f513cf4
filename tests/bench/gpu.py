"""GPU verification against its own raw P-384 verifications and against the peer, in one run.

*warm* is a report of a device whose product chain and reference documents were verified before; the device itself is
new, so its own two certificates and its report are verified: three signatures. *repeat* is the same device again: one.
*cold* starts with nothing. The artefact is forged (no complete genuine set of a GPU exists), with NVIDIA's layout.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from attestation.formats.nv_evidence import NvEvidence
from attestation.simulate.nv_products import PRODUCTS
from attestation.simulate.nvidia import ForgedEvidence, NvidiaForge
from attestation.values import Architecture, Level, Nonce
from attestation.verify.cache import BoundedCache
from attestation.verify.nv_gpu import Collateral, NvCache, verify_device
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.nv_set import Expected, verify_set
from attestation.verify.revocation import ChainKind, NoRevocation, RevocationPolicy, RevocationRule, RevocationStatus
from tests.bench.figure import Figure, paired_ratio, seconds_per_call

SUITE = "gpu"
ROOT = Path(__file__).resolve().parents[2]
PEER_PACKAGE = ROOT / ".cache" / "nv-local-gpu-verifier"
PEER_VENV = ROOT / ".cache" / "nv-local-gpu-verifier-venv"
PEER_REQUIREMENTS = (  # what the wheel's metadata names
    "cryptography==43.0.1", "ecdsa==0.18.0", "lxml>=4.9.1", "signxml==3.2.0", "xmlschema==2.2.3", "pyOpenSSL==24.2.1",
    "PyJWT==2.7.0", "nvidia-ml-py==12.550.52", "asn1==2.7.0", "urllib3==2.6.3",
)  # fmt: skip
PEER_ROUNDS = 40
DEVICES = 64  # new devices, enough that none repeats within a measurement before the cache forgot it

NOW = datetime(2026, 11, 21, tzinfo=UTC)
NONCE = Nonce(bytes(range(1, 33)))
FORGE = NvidiaForge(seed="bench")
# Stored revocation answers would add their own signatures to every figure: none are there, and that is reported.
POLICY = NvPolicy(
    revocation=RevocationPolicy(
        rim=RevocationRule(kind=ChainKind.RIM, accept=frozenset({RevocationStatus.GOOD, RevocationStatus.UNKNOWN}))
    )
)
SHELF = FORGE.shelf()


def figures() -> list[Figure]:
    """Every figure of the suite."""
    evidence = FORGE.device(nonce=NONCE.raw)
    raw, cache = raw_verification(evidence), NvCache()
    fresh = new_devices(cache)
    repeat = lambda: verify(evidence, cache)
    cold = lambda: verify(evidence, NvCache())
    return [
        Figure(suite=SUITE, name="raw P-384 verification", value=1e3 * seconds_per_call(raw), unit="ms"),
        Figure(suite=SUITE, name="verifications per second, warm", value=1 / seconds_per_call(fresh), unit="/s/core"),
        Figure(suite=SUITE, name="verifications per second, repeat", value=1 / seconds_per_call(repeat), unit="/s/core"),
        Figure(suite=SUITE, name="verifications per second, cold", value=1 / seconds_per_call(cold), unit="/s/core"),
        Figure(suite=SUITE, name="warm / own 3 raw verifications", value=paired_ratio(fresh, raw) / 3, at_most=1.6,
               caches="product chain, documents"),
        Figure(suite=SUITE, name="repeat / own raw verification", value=paired_ratio(repeat, raw),
               caches="device chain, documents"),
        Figure(suite=SUITE, name="cold / raw verification", value=paired_ratio(cold, raw), at_most=20, caches="none"),
        *_board(cache),
        *_imports(),
        *_peer(evidence, repeat, cold),
    ]  # fmt: skip


def raw_verification(evidence: ForgedEvidence) -> Callable[[], object]:
    """The report's own signature, checked by nothing but the library."""
    key = evidence.key.public_key()
    signature = evidence.report[-96:]
    der = encode_dss_signature(int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big"))
    digest, algorithm = hashlib.sha384(evidence.signed).digest(), ec.ECDSA(Prehashed(hashes.SHA384()))
    return lambda: key.verify(der, digest, algorithm)


def verify(evidence: ForgedEvidence, cache: NvCache) -> None:
    """One device, which must be trusted."""
    device = verify_device(
        evidence.report, evidence.chain, trust=FORGE.trust, nonce=NONCE, rims=SHELF, revocation=NoRevocation(),
        policy=POLICY, now=NOW, cache=cache,
    )  # fmt: skip
    if device.level is not Level.TRUSTED:
        raise RuntimeError(device.findings)


def new_devices(cache: NvCache) -> Callable[[], object]:
    """Each call verifies a device whose own certificates the cache does not hold, and everything above is known."""
    devices = [FORGE.device(index=i, nonce=NONCE.raw) for i in range(DEVICES)]
    # Room for the product chain, which every device uses, and for few devices: a device is forgotten before it returns.
    shared = NvCache(devices=BoundedCache(1), chains=BoundedCache(DEVICES // 2), rims=cache.rims)
    turn = cycle(devices)
    return lambda: verify(next(turn), shared)


def _board(cache: NvCache) -> list[Figure]:
    """8 GPUs and 4 switches over one nonce against one of its GPUs; and twice the GPUs against once."""
    board = [NvEvidence(report=e.report, chain=e.chain) for e in FORGE.board(nonce=NONCE.raw)]
    collateral = Collateral(
        trust=FORGE.trust, rims=SHELF, revocation=NoRevocation(), policy=POLICY, now=NOW, cache=cache
    )

    def judge(evidence: list[NvEvidence], expected: Expected) -> None:
        if verify_set(evidence, expected=expected, nonce=NONCE, collateral=collateral).level is not Level.TRUSTED:
            raise RuntimeError("the board is not trusted")

    gpus = [FORGE.device(index=i, nonce=NONCE.raw) for i in range(16)]
    many = [NvEvidence(report=e.report, chain=e.chain) for e in gpus]
    return [
        Figure(
            suite=SUITE, name="8 GPUs + 4 switches / one GPU", at_most=12.0, caches="device chains, documents",
            value=paired_ratio(
                lambda: judge(board, Expected(gpus=8, switches=4)), lambda: judge(board[:1], Expected(gpus=1))
            ),
        ),
        Figure(
            suite=SUITE, name="16 GPUs / 8 GPUs", at_most=2.2, caches="device chains, documents",
            value=paired_ratio(lambda: judge(many, Expected(gpus=16)), lambda: judge(many[:8], Expected(gpus=8))),
        ),
    ]  # fmt: skip


_IMPORT = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"
# Not ru_maxrss, which starts at what the parent had when it forked.
_RSS = (
    "from attestation.cli.main import cli, run; run(cli, {!r}); "
    "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
)


def _imports() -> list[Figure]:
    """CPU time of the import, best of five; peak memory of a process that verifies one device."""
    runs = [
        float(subprocess.run([sys.executable, "-c", _IMPORT.format("attestation.verify.nv_gpu")], check=True,
                             capture_output=True, text=True, cwd=ROOT).stdout)
        for _ in range(5)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_artefact(folder, FORGE.device(nonce=NONCE.raw))
        command = [
            "verify", "gpu", "--report", str(folder / "report.bin"), "--chain", str(folder / "chain.pem"),
            "--nonce", NONCE.hex(), "--rim", str(folder), "--at", NOW.isoformat(),
            "--unsafe-trust-simulated-roots", str(folder),
        ]  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", _RSS.format(command)], check=True, capture_output=True, text=True, cwd=ROOT
        )
        if "level: trusted (reaches" not in done.stdout:
            raise RuntimeError(done.stdout + done.stderr)
    return [
        Figure(suite=SUITE, name="import attestation.verify.nv_gpu", value=min(runs) * 1e3, unit="ms", at_most=100),
        Figure(suite=SUITE, name="peak memory of `verify gpu`", value=int(done.stdout.split()[-1]) / 1024, unit="MiB",
               at_most=45),
    ]  # fmt: skip


def write_artefact(folder: Path, evidence: ForgedEvidence) -> None:
    """Report, chain, documents and roots as files."""
    product = PRODUCTS[Architecture.HOPPER]
    (folder / "report.bin").write_bytes(evidence.report)
    (folder / "chain.pem").write_bytes(evidence.chain)
    for rim_id in (product.driver_rim, product.vbios_rim):
        (folder / f"{rim_id}.xml").write_bytes(SHELF.rims(rim_id)[0])
    for name, pem in FORGE.roots.items():
        (folder / name).write_bytes(pem)
    meta = {"driver": product.driver, "vbios": product.vbios.lower(), "nonce": NONCE.hex()}
    (folder / "meta.json").write_text(json.dumps(meta))


def _peer(evidence: ForgedEvidence, repeat: Callable[[], object], cold: Callable[[], object]) -> list[Figure]:
    """The peer over the same artefact, where it can be installed; otherwise nothing is claimed."""
    if not PEER_PACKAGE.is_dir() or not _peer_python():
        print("peer nv-local-gpu-verifier: not available, left out", file=sys.stderr)
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_artefact(folder, evidence)
        script = Path(__file__).with_name("gpu_peer.py")
        done = subprocess.run(
            [PEER_VENV / "bin" / "python", script, PEER_PACKAGE, folder, str(PEER_ROUNDS)],
            check=True, capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
        peer = json.loads(done.stdout.splitlines()[-1])
    warm_ms, cold_ms = 1e3 * seconds_per_call(repeat), 1e3 * seconds_per_call(cold)
    return [
        Figure(suite=SUITE, name="peer warm", value=peer["warm_best"], unit="ms", caches="imports"),
        Figure(suite=SUITE, name="peer warm / ours repeat", value=peer["warm_best"] / warm_ms, at_least=12,
               caches="ours: device chain, documents; network of the peer stubbed"),
        Figure(suite=SUITE, name="peer cold / ours cold", value=peer["first"] / cold_ms, at_least=4,
               caches="none but imports; network of the peer stubbed"),
    ]  # fmt: skip


def _peer_python() -> bool:
    """Make the peer's virtual environment once."""
    if not (PEER_VENV / "bin" / "python").exists():
        made = subprocess.run([sys.executable, "-m", "venv", PEER_VENV], check=False)
        pip = [str(PEER_VENV / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        if made.returncode or subprocess.run([*pip, *PEER_REQUIREMENTS], check=False).returncode:
            return False
    return subprocess.run([PEER_VENV / "bin" / "python", "-c", "import signxml"], check=False).returncode == 0
