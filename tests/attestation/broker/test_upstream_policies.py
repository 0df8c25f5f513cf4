"""Upstream's own Rego policies, unmodified: what they say of our claims (keybroker.md 3.4).

They are not in this repository: KATA_GPU_TRUSTEE_POLICIES names a folder that has them, a checkout of trustee or not.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestation.appraise.ear import Status
from attestation.appraise.facts import PlatformFacts
from attestation.appraise.rego import policy_input, vector_of
from attestation.broker.session import Attested
from attestation.errors import Denied
from attestation.ops.administer import set_rego_policy
from attestation.ops.release import RESOURCE_POLICY, Credentials, authenticate
from attestation.sources.policy_store import PolicyKind
from attestation.sources.rego_worker import RegoWorker
from attestation.values import JsonValue, ResourcePath
from tests.attestation.broker.broker import ADMIN, INIT_DATA, NOW, PATH, Broker, Visit, ready_broker
from tests.attestation.tee.world import Guest
from tests.conformance.rust_client import RustClient, b64u
from tests.conformance.target import local_target, std_b64

CLASSES = ("cpu", "gpu", "switch", "ppcie")
PLAIN = ResourcePath.parse("default/plain/secret")


@pytest.fixture(scope="module")
def upstream() -> dict[str, str]:
    """Policies by file name without its ending."""
    folder = os.environ.get("KATA_GPU_TRUSTEE_POLICIES")
    if not folder:
        pytest.skip("policies: KATA_GPU_TRUSTEE_POLICIES is not set")
    return {path.stem: path.read_text() for path in sorted(Path(folder).rglob("*.rego")) if "test" not in path.parts}


@pytest.fixture(scope="module")
def rego() -> Iterator[RegoWorker]:
    worker = RegoWorker()
    yield worker
    worker.close()


@pytest.fixture
def kbs(tmp_path: Path, upstream: dict[str, str]) -> Iterator[Broker]:
    """All four default policies stored under the names that upstream gives them."""
    with ready_broker(tmp_path) as made:
        for name in CLASSES:
            text = upstream[f"ear_default_policy_{name}"]
            set_rego_policy(made.world, ADMIN, PolicyKind.REGO_ATTESTATION, f"default_{name}", text, now=NOW)
        yield made


def attested(visit: Visit) -> Attested:
    return authenticate(visit.broker.world, Credentials(cookie=None, bearer=visit.token), now=NOW)


def vectors_of(visit: Visit) -> dict[str, dict[str, int]]:
    return {a.submod: dict(a.vector.to_json()) for a in attested(visit).appraisals}


def tcb_references(facts: PlatformFacts) -> dict[str, JsonValue]:
    """What upstream's policy compares a SNP chip with, as that chip is."""
    claims: Any = facts.cpu.claims.get("snp", facts.cpu.claims)
    names = {"snp_bootloader": "bootloader", "snp_microcode": "microcode", "snp_snp_svn": "snp", "snp_tee_svn": "tee"}
    return {name: [claims[f"reported_tcb_{part}"]] for name, part in names.items()}


def test_snp_by_upstreams_default(kbs: Broker) -> None:
    """Nothing known: 33/97; the measurement known: 3/97; the TCB too: affirming. Debug is off: configuration 3."""
    assert vectors_of(kbs.handshake())["cpu0"] == {"executables": 3, "hardware": 97, "configuration": 3}
    kbs.references(tcb_references(attested(kbs.handshake()).facts))
    assert vectors_of(kbs.handshake())["cpu0"] == {"executables": 3, "hardware": 2, "configuration": 3}
    assert attested(kbs.handshake(Guest(init_data=INIT_DATA, gpus=0))).status is Status.AFFIRMING
    kbs.references({"snp_launch_measurement": ["00" * 48]})
    assert vectors_of(kbs.handshake())["cpu0"] == {"executables": 33, "hardware": 2, "configuration": 3}


def test_gpu_by_upstreams_default(kbs: Broker) -> None:
    """Where nobody answers for revocation, as for simulated signers, upstream's policy recognises no hardware."""
    assert vectors_of(kbs.handshake())["gpu0"] == {"executables": 33, "hardware": 97, "configuration": 3}


def _good(claims: Any) -> Any:
    """The same claims with every revocation statement there and good."""
    if isinstance(claims, dict):
        return {k: "good" if k == "x-nvidia-cert-ocsp-status" else _good(v) for k, v in claims.items()}
    return claims


def test_gpu_with_revocation_statements(kbs: Broker, rego: RegoWorker, upstream: dict[str, str]) -> None:
    """With them it affirms; with known versions the configuration is approved; a wrong measurement is a warning only."""
    gpu = attested(kbs.handshake()).facts
    document = _good(policy_input(gpu.devices[0], gpu, None))
    text = upstream["ear_default_policy_gpu"]
    vector = vector_of(rego.appraise(text, document, {}))
    assert (vector.to_json(), vector.status) == (
        {"configuration": 3, "executables": 3, "hardware": 2}, Status.AFFIRMING,
    )  # fmt: skip
    versions: dict[str, JsonValue] = {
        "allowed_vbios_versions": [gpu.devices[0].vbios_version],
        "allowed_driver_versions": [gpu.devices[0].driver_version],
    }
    assert rego.appraise(text, document, versions)["configuration"] == 2
    failed = document["nvidia"] | {"measres": "fail", "secboot": None, "dbgstat": None}
    assert vector_of(rego.appraise(text, {"nvidia": failed}, versions)).status is Status.WARNING
    switch = {"nvidia": {key.replace("-gpu-", "-switch-"): value for key, value in document["nvidia"].items()}}
    assert rego.appraise(upstream["ear_default_policy_switch"], switch, {})["hardware"] == 2
    assert rego.appraise(upstream["ear_default_policy_ppcie"], {}, {})


def test_resource_policies(kbs: Broker, upstream: dict[str, str]) -> None:
    """`default` lets any hardware in, contraindicated or not; `affirming` asks every submodule. Keys with conditions
    of ours keep them.
    """
    kbs.put(PLAIN, b"shhhhhhh")

    def allowed(name: str, visit: Visit, path: ResourcePath = PLAIN) -> bool:
        set_rego_policy(kbs.world, ADMIN, PolicyKind.REGO_RESOURCE, RESOURCE_POLICY, upstream[name], now=NOW)
        try:
            return bool(visit.get(path))
        except Denied:
            return False

    weak = kbs.handshake(Guest(init_data=INIT_DATA, gpus=0))
    assert attested(weak).status is Status.CONTRAINDICATED
    kbs.references(tcb_references(attested(weak).facts))
    good = kbs.handshake(Guest(init_data=INIT_DATA, gpus=0))
    assert [allowed("default", who) for who in (weak, good)] == [True, True]
    assert [allowed("affirming", who) for who in (weak, good)] == [False, True]
    assert [allowed("allow_all", who) for who in (weak, good)] == [True, True]
    assert [allowed("deny_all", who) for who in (weak, good)] == [False, False]
    assert not allowed("allow_all", good, PATH)


def test_the_sample_tee(tmp_path: Path, upstream: dict[str, str]) -> None:
    """Upstream's integration tests: contraindicated without reference values, affirming with theirs, over HTTP."""
    with local_target(tmp_path) as kbs:
        body = {"type": "rego", "policy_id": "default_cpu", "policy": b64u(upstream["ear_default_policy_cpu"].encode())}
        assert kbs.admin("POST", "/kbs/v0/attestation-policy", body).status == 200
        kbs.policy(upstream["affirming"])
        assert _status(kbs.client()) == 403
        values = {"svn": ["1"], "launch_digest": ["abcde"], "major_version": 1, "minimum_minor_version": 1}
        payload = json.dumps(values).encode()
        message = {"version": "0.1.0", "type": "sample", "payload": std_b64(payload)}
        assert kbs.admin("POST", "/kbs/v0/reference-value", message).status == 200
        assert _status(kbs.client()) == 200
        kbs.policy(upstream["default"])
        assert _status(kbs.client()) == 403  # upstream's default policy is for hardware only


def _status(client: RustClient) -> int:
    client.handshake()
    return client.get("resource/default/test/secret").status


@pytest.mark.parametrize(
    "name", [*(f"ear_default_policy_{c}" for c in CLASSES), "default", "affirming", "allow_all", "deny_all"]
)
def test_every_policy_loads(rego: RegoWorker, upstream: dict[str, str], name: str) -> None:
    """As it is."""
    rego.check(upstream[name])
