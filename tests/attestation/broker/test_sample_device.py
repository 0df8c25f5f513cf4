"""Upstream's sample device, which anybody can make: for tests behind the flag of the sample TEE, and never a device."""

import hashlib
import json
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.appraise.checks import Usage, check_origin
from attestation.appraise.facts import PlatformFacts, SampleDeviceFacts
from attestation.appraise.native import appraise_platform
from attestation.broker.token import verify_token
from attestation.crypto import binding
from attestation.errors import Denied
from attestation.values import BindingProfile, ResourcePath
from attestation.verify.platform import PlatformEvidence, PlatformTrust
from tests.attestation.broker.broker import GPU_POLICY, INIT_DATA, NOW, Broker, Visit, ready_broker
from tests.attestation.tee.test_composite import code_of
from tests.attestation.tee.world import Guest, trust, verify
from tests.conformance.rust_client import Evidence, RustClient, b64u, claims_of, jcs
from tests.conformance.target import Target, local_target, std_b64

SVN_POLICY = """package policy
import rego.v1
default hardware := 97
hardware := 2 if input.{name}.svn in query_reference_value("{value}")
trust_claims := {{"hardware": hardware}}
"""
BOTH_POLICY = """package policy
import rego.v1
default allow := false
allow if {
    input.submods.cpu0["ear.status"] == "affirming"
    input.submods.gpu0["ear.status"] == "affirming"
}
"""
TEST_PATH = ResourcePath.parse("default/test/key")
UNSAFE = replace(trust(), unsafe_sample_tee=True)


def sample_device(nonce: str, jwk: dict[str, str], **changes: Any) -> str:
    digest = hashlib.sha384(jcs({"nonce": nonce, "tee-pubkey": jwk})).digest()
    device = {"svn": "2", "report_data": b64encode(digest).decode(), **changes}
    return json.dumps({name: value for name, value in device.items() if value is not None})


def attester(nonce: str, jwk: dict[str, str]) -> Evidence:
    """What upstream's attester sends with ENABLE_SAMPLE_DEVICE."""
    additional = f'{{"sampledevice":{sample_device(nonce, jwk)}}}'
    report_data = hashlib.sha384(jcs({"additional-evidence": additional, "nonce": nonce, "tee-pubkey": jwk})).digest()
    return {"svn": "1", "report_data": b64encode(report_data).decode()}, additional, None


def with_device(guest: Guest, **changes: Any) -> PlatformEvidence:
    """A simulated SNP guest with its GPUs, and a sample device in the same bound text."""
    made = guest.evidence()
    document = json.loads(made.additional or "{}")
    document["sampledevice"] = json.loads(sample_device(guest.nonce, guest.jwk, **changes))
    additional = json.dumps(document)
    primary = json.loads(guest.primary(guest.devices(), additional, {}))
    return replace(made, additional=additional, primary=primary)


def admin(kbs: Target, path: str, body: Any) -> None:
    assert kbs.admin("POST", f"/kbs/v0/{path}", body).status == 200


def upstreams_case(kbs: Target) -> RustClient:
    """As `device_not_contraindicated`, before any reference value for the device."""
    kbs.policy(BOTH_POLICY)
    for kind, name, value in (("cpu", "sample", "svn"), ("gpu", "sampledevice", "device_svn")):
        policy = b64u(SVN_POLICY.format(name=name, value=value).encode())
        admin(kbs, "attestation-policy", {"type": "rego", "policy_id": f"default_{kind}", "policy": policy})
    references(kbs, {"svn": ["1"]})
    return kbs.client(attester=attester)


def references(kbs: Target, values: dict[str, Any]) -> None:
    message = {"version": "0.1.0", "type": "sample", "payload": std_b64(json.dumps(values).encode())}
    admin(kbs, "reference-value", message)


def test_upstreams_policy_judges_it_and_everything_says_what_it_is(tmp_path: Path) -> None:
    with local_target(tmp_path) as kbs:
        client = upstreams_case(kbs)
        client.handshake()
        assert client.get("resource/default/test/secret").status == 403
        references(kbs, {"device_svn": ["2"]})
        token = client.handshake()
        assert client.get_resource("resource/default/test/secret") == b"shhhhhhh"
        assert kbs.local is not None
        world = kbs.local.broker.world
        record = world.attestations.get(verify_token(token, world.authority, now=NOW))
        entry = world.audit.about(claims_of(token)["jti"], "attested")[0]
        (lease,) = world.leases.live(NOW)
    claims = claims_of(token)
    submod = claims["submods"]["gpu0"]
    assert (claims["simulated"], claims["dbgstat"], submod["simulated"]) == (True, "enabled", True)
    assert submod["ear.veraison.annotated-evidence"]["sampledevice"] == {"svn": "2"}
    assert record is not None
    assert record.facts.devices == ()
    assert record.facts.sample_device is not None
    assert entry.body["simulated"] is True
    assert entry.body["devices"] == []
    assert entry.body["sample_device"] == record.facts.sample_device.to_json()
    assert lease.devices == ()


def test_what_a_policy_sees_of_it(tmp_path: Path) -> None:
    """As upstream: the claims under its name, the report data and what that binds beside them."""
    seen = 'input.submods.gpu0["ear.veraison.annotated-evidence"]'
    conditions = [
        f'{seen}.sampledevice == {{"svn": "2"}}',
        f"{seen}.runtime_data_claims.nonce",
        f"count({seen}.report_data) == 64",
        'input.submods.gpu0["ear.status"] == "contraindicated"',  # no policy of its class: it is no hardware
    ]
    rules = "\n".join(f"    {condition}" for condition in conditions)
    with local_target(tmp_path) as kbs:
        kbs.policy(f"package policy\nimport rego.v1\ndefault allow := false\nallow if {{\n{rules}\n}}\n")
        client = kbs.client(attester=attester)
        client.handshake()
        assert client.get("resource/default/test/secret").status == 200


def visit(kbs: Broker, **guest: Any) -> Visit:
    return kbs.handshake(Guest(init_data=INIT_DATA, **guest), evidence=with_device)


def test_the_device_alone_makes_evidence_forgeable() -> None:
    """Whatever the flags of the broker that reads the record later."""
    production = Usage(releases=0, test_key=False)
    for evidence, code in ((Guest().evidence(), ""), (with_device(Guest()), "forgeable-evidence")):
        facts = PlatformFacts.of(verify(evidence, roots=UNSAFE))
        assert check_origin(facts, production, simulated=False).code == code


@pytest.mark.parametrize(("gpus", "codes"), [pytest.param(0, "gpu-count-wrong", id="0"), pytest.param(1, "", id="1")])
def test_it_is_no_gpu(tmp_path: Path, gpus: int, codes: str) -> None:
    """Neither counted nor judged by conditions on GPUs, which hold or fail for what is there."""
    with ready_broker(tmp_path, sample=True) as kbs:
        kbs.put(TEST_PATH, policy=GPU_POLICY, labels=("test",))
        guest = visit(kbs, gpus=gpus)
        if not codes:
            assert guest.get(TEST_PATH) == b"k" * 32
            (lease,) = kbs.world.leases.live(NOW)
            assert len(lease.devices) == 1
            return
        with pytest.raises(Denied) as caught:
            guest.get(TEST_PATH)
        assert caught.value.got == codes


def test_its_submodule_comes_after_the_gpus() -> None:
    platform = verify(with_device(Guest(gpus=2)), roots=UNSAFE)
    facts = PlatformFacts.of(platform)
    assert [name for name, _ in facts.submods()] == ["cpu0", "gpu0", "gpu1", "gpu2"]
    assert isinstance(facts.submods()[-1][1], SampleDeviceFacts)
    assert len(platform.gpus) == platform.binding["device_count"] == 2
    assert [f.code for f in platform.findings if f.subject == "sampledevice"] == ["sample-device"]
    assert PlatformFacts.from_json(facts.to_json()) == facts
    last = appraise_platform(facts, references=lambda *_: None, now=NOW)[-1]
    assert (last.submod, last.vector.to_json(), last.findings[0].code) == ("gpu2", {"hardware": 97}, "sample-device")


_OTHER = binding.trustee_device_digest(b64encode(bytes(32)).decode(), Guest().jwk)
_REFUSED: list[tuple[str, PlatformTrust, BindingProfile, dict[str, Any], str]] = [
    ("without-the-flag", trust(), BindingProfile.TRUSTEE_RCAR, {}, "device-kind-unknown"),
    ("native-profile", UNSAFE, BindingProfile.CGPU_V1, {}, "sample-device-profile"),
    ("another-nonce", UNSAFE, BindingProfile.TRUSTEE_RCAR, {"report_data": b64encode(_OTHER).decode()},
     "sample-device-nonce"),
    ("no-report-data", UNSAFE, BindingProfile.TRUSTEE_RCAR, {"report_data": None}, "json-type"),
    ("empty-report-data", UNSAFE, BindingProfile.TRUSTEE_RCAR, {"report_data": ""}, "sample-device-nonce"),
    ("not-base64", UNSAFE, BindingProfile.TRUSTEE_RCAR, {"report_data": "%"}, "sample-base64"),
    ("no-svn", UNSAFE, BindingProfile.TRUSTEE_RCAR, {"svn": None}, "json-type"),
    ("long-svn", UNSAFE, BindingProfile.TRUSTEE_RCAR, {"svn": "1" * 65}, "sample-svn"),
    ("surrogate-svn", UNSAFE, BindingProfile.TRUSTEE_RCAR, {"svn": "\ud800"}, "sample-svn"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("roots", "profile", "changes", "code"), [pytest.param(*case[1:], id=case[0]) for case in _REFUSED]
)
def test_refused(roots: PlatformTrust, profile: BindingProfile, changes: dict[str, Any], code: str) -> None:
    evidence = with_device(Guest(profile=profile), **changes)
    assert code_of(lambda: verify(evidence, roots=roots)) == code
