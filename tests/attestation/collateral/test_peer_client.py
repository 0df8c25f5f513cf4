"""NVIDIA's PyPI client `nv-attestation-sdk`, unmodified, in its own environment, against our service on loopback."""

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette

from attestation.clock import utc_now
from attestation.service.nras import NrasSettings, nras_routes
from attestation.service.workers import Workers
from attestation.simulate.nvidia import ForgedEvidence
from attestation.sources.collateral import Collateral
from attestation.values import Architecture
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.roots import NvTrust
from tests.attestation.collateral import test_nras_service as service
from tests.attestation.collateral.conftest import NOW
from tests.conftest import ROOT

PYTHON = Path(os.environ.get("KATA_GPU_PEERS", ROOT / ".cache" / "nv-attestation-sdk")) / "bin" / "python"
NO_PEERS = "peers: run `make peers` to install nv-attestation-sdk in its own environment"
CLIENT = Path(__file__).with_name("peer_client.py")
TIMEOUT_S = 60


@dataclass(frozen=True)
class Site:
    """A running service and the client's working directory."""

    url: str
    scratch: Path

    def run(self, **command: Any) -> dict[str, Any]:
        done = subprocess.run(
            [str(PYTHON), "-W", "ignore", str(CLIENT)],
            input=json.dumps(command),
            capture_output=True,
            text=True,
            cwd=self.scratch,  # the client writes its logs where it runs
            env={"PATH": "/usr/bin:/bin", "NO_PROXY": "*", "HOME": str(self.scratch)},
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        result = json.loads(done.stdout.splitlines()[-1])
        assert isinstance(result, dict)
        return result


def serve(settings: NrasSettings, scratch: Path) -> Iterator[Site]:
    """Tokens are issued now, because the client reads its own clock; evidence is judged at the fixed time."""
    made = replace(settings, clock=utc_now, verification_time=NOW)
    workers = Workers(threads=1, queue=4)
    app = Starlette(routes=nras_routes(made, workers))
    config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none", loop="asyncio")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", scratch)
    server.should_exit = True
    thread.join()
    listener.close()
    workers.close()


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not PYTHON.exists():
        pytest.skip(NO_PEERS)
    return tmp_path_factory.mktemp("peer")


@pytest.fixture(scope="module")
def genuine(vectors: Path, scratch: Path) -> Iterator[Site]:
    document = vectors / "nvidia" / "rim" / f"switchVBIOSRim_{service.LS10_RIM}.xml"
    store = Collateral.of([service.rim(service.LS10_RIM, document.read_bytes())])
    yield from serve(service.settings(store, NvTrust.production(), service.UNKNOWN_SIGNERS), scratch)


@pytest.fixture(scope="module")
def forged(scratch: Path) -> Iterator[Site]:
    yield from serve(service.settings(service.forged_store(), service.FORGE.trust, NvPolicy()), scratch)


def policy(**detached: Any) -> dict[str, Any]:
    return {
        "version": "3.0",
        "authorization-rules": {
            "type": "JWT",
            "overall-claims": {"iss": service.ISSUER, "x-nvidia-overall-att-result": True, "x-nvidia-ver": "3.0"},
            "detached-claims": {"measres": "success", "secboot": True} | detached,
        },
    }


def flip(evidence: list[dict[str, Any]]) -> list[dict[str, Any]]:
    report = bytearray(base64.b64decode(evidence[0]["evidence"]))
    report[60] ^= 1  # inside the digest of the first measurement
    return [evidence[0] | {"evidence": base64.b64encode(report).decode()}, *evidence[1:]]


def test_genuine_switch(genuine: Site, vectors: Path) -> None:
    """LS10, the one complete genuine set: the client attests, and accepts our token under its own policy."""
    body = service.genuine_switch(vectors)
    values = {"do": "attest", "device": "SWITCH", "nonce": body["nonce"], "claims_version": "3.0"}
    right = policy(**{"x-nvidia-switch-bios-rim-cert-chain": {"x-nvidia-cert-status": "valid"}})
    wrong = policy(**{"x-nvidia-switch-bios-version": "96.10.00.00.00"})
    result = genuine.run(
        **values, url=f"{genuine.url}/v3/attest/switch", evidence=body["evidence_list"], policies=[right, wrong]
    )
    assert (result["attested"], result["validated"]) == (True, [True, False])
    tampered = genuine.run(
        **values, url=f"{genuine.url}/v3/attest/switch", evidence=flip(body["evidence_list"]), policies=[right]
    )
    assert (tampered["attested"], tampered["validated"]) == (False, [False])


def test_rim_mirror(genuine: Site, vectors: Path) -> None:
    content = (vectors / "nvidia" / "rim" / f"switchVBIOSRim_{service.LS10_RIM}.xml").read_bytes()
    result = genuine.run(do="fetch-rim", url=f"{genuine.url}/v1/rim/", rim_id=service.LS10_RIM)
    assert result["sha256"] == [sha256(content).hexdigest()] * 2


@pytest.mark.parametrize("arch", [Architecture.HOPPER, Architecture.BLACKWELL])
def test_forged_gpus(forged: Site, arch: Architecture) -> None:
    """Under a test root: two GPUs succeed; one flipped bit, or one measurement that no document knows, fails."""
    good = [service.FORGE.device(arch, index, nonce=service.NONCE.raw) for index in (0, 1)]
    differing = service.FORGE.device(arch, 1, nonce=service.NONCE.raw, measurements={22: bytes(48)})
    values = {
        "do": "attest",
        "device": "GPU",
        "nonce": service.NONCE.hex(),
        "claims_version": "3.0",
        "url": f"{forged.url}/v3/attest/gpu",
        "policies": [policy(**{"x-nvidia-gpu-attestation-report-nonce-match": True})],
    }

    def evidence(*devices: ForgedEvidence) -> list[dict[str, Any]]:
        body = service.request(*devices)
        return [one | {"arch": body["arch"]} for one in body["evidence_list"]]

    result = forged.run(**values, evidence=evidence(*good))
    assert (result["attested"], result["validated"]) == (True, [True])
    assert forged.run(**values, evidence=flip(evidence(*good)))["attested"] is False
    mismatch = forged.run(**values, evidence=evidence(good[0], differing))
    assert (mismatch["attested"], mismatch["validated"]) == (False, [False])


def test_version_2_and_the_audience_of_version_4(forged: Site) -> None:
    """Claims 2.0 work; a token that names an audience is what this client refuses, so only /v4 sets one."""
    body = service.request(service.hopper())
    evidence = [one | {"arch": "HOPPER"} for one in body["evidence_list"]]
    values = {"do": "attest", "device": "GPU", "nonce": service.NONCE.hex(), "claims_version": "2.0", "policies": []}
    assert forged.run(**values, evidence=evidence, url=f"{forged.url}/v3/attest/gpu")["attested"] is True
    assert forged.run(**values, evidence=evidence, url=f"{forged.url}/v4/attest/gpu")["attested"] is False


def test_the_client_is_the_published_one(scratch: Path) -> None:
    code = "from importlib.metadata import version; print(version('nv-attestation-sdk'))"
    done = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True, check=True, cwd=scratch)
    assert done.stdout.strip().startswith("2.7.")
    assert Path(sys.executable) != PYTHON
