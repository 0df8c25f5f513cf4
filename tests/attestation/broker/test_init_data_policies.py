"""What upstream's policies and relying parties find of init-data: its field, its content, and who the workload is."""

import hashlib
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from attestation.appraise.identifiers import MAX_IDENTIFIERS_BYTES, validated_identifiers
from attestation.broker.roles import Principal, Role, Verb
from attestation.errors import Denied
from attestation.ops.administer import set_rego_policy
from attestation.ops.release import RESOURCE_POLICY
from attestation.sources.policy_store import PolicyKind
from tests.attestation.broker.broker import ADMIN, INIT_DATA, NOW, ready_broker
from tests.conformance.rust_client import Evidence, claims_of, sample_attester
from tests.conformance.target import local_target

IMAGE = "io.kubernetes.cri.image-name"
NGINX = {"OCI": {"Annotations": {IMAGE: "bitnami/nginx:latest"}, "Process": {"User": {"UID": 1001}}}}
PAUSE = {"OCI": {"Annotations": {}, "Process": {"User": {"UID": 65535}}}}
WORKLOAD = INIT_DATA + f"\"policy.rego\" = '''\npolicy_data := {json.dumps({'containers': [PAUSE, NGINX]})}'''\n"
EVIDENCE = 'input["submods"]["cpu0"]["ear.veraison.annotated-evidence"]'


def allow_if(condition: str) -> str:
    return f"package policy\nimport rego.v1\ndefault allow := false\nallow if {condition}\n"


def attester(nonce: str, jwk: dict[str, str]) -> Evidence:
    """The sample attester has no field for init-data, and sends the document all the same."""
    primary, additional, _ = sample_attester(nonce, jwk)
    return primary, additional, WORKLOAD


def test_upstreams_policies_over_the_sample_tee(tmp_path: Path) -> None:
    """The three conditions of upstream's init-data tests, and the identifiers in the token."""
    digest = b64encode(hashlib.sha256(WORKLOAD.encode()).digest()).decode()
    conditions = {
        f'{EVIDENCE}["init_data"] == "{digest}"': 200,
        f'{EVIDENCE}["init_data"] == "{digest[::-1]}"': 403,
        f'{EVIDENCE}["init_data_claims"]["aa.toml"]["token_configs"] == {{}}': 200,
        f'{EVIDENCE}["init_data_claims"]["agent_policy_claims"]["containers"][1]["OCI"]["Process"]["User"]["UID"] == 1001': 200,
    }
    with local_target(tmp_path) as kbs:
        client = kbs.client(attester=attester)
        token = client.handshake()
        for condition, status in conditions.items():
            kbs.policy(allow_if(condition))
            assert client.get("resource/default/test/secret").status == status, condition
    claims = claims_of(token)
    assert claims["simulated"] is True
    assert claims["submods"]["cpu0"]["ear.trustee.identifiers"] == {
        "validated": {"container_images": ["bitnami/nginx:latest"], "container_uids": [65535, 1001]}
    }


def test_the_field_of_a_real_tee(tmp_path: Path) -> None:
    """HOST_DATA in hexadecimal, as upstream has it; the identifiers are absent where no agent policy names any."""
    field = hashlib.sha256(INIT_DATA.encode()).hexdigest()
    with ready_broker(tmp_path) as kbs:
        visit = kbs.handshake()
        assert "ear.trustee.identifiers" not in claims_of(visit.token)["submods"]["cpu0"]
        for value in (field, field[::-1], f"sha256:{field}"):
            text = allow_if(f'{EVIDENCE}["init_data"] == "{value}"')
            set_rego_policy(kbs.world, ADMIN, PolicyKind.REGO_RESOURCE, RESOURCE_POLICY, text, now=NOW)
            if value == field:
                assert visit.get() == b"k" * 32
            else:
                with pytest.raises(Denied):
                    visit.get()


@pytest.mark.parametrize(
    "policy",
    [
        None,
        [],
        {},
        {"containers": None},
        {"containers": ["x", None, {"OCI": []}, {"OCI": {"Process": {"User": {"UID": None}}}}]},
        {"containers": [{"OCI": {"Annotations": {IMAGE: "x" * MAX_IDENTIFIERS_BYTES}}}, NGINX]},
        {"containers": [NGINX] * 100},
    ],
)
def test_no_identifiers_rather_than_some(policy: Any) -> None:
    """Of whatever shape the host wrote, and never more than a token has room for."""
    assert validated_identifiers({"agent_policy_claims": policy}) == {}
    assert validated_identifiers(None) == {}


def test_a_providers_role_is_refused_by_its_own_name() -> None:
    """Who reads the refusal knows the role that the provider gave."""
    who = Principal(name="issuer/x", role=Role.AUDITOR, title="tester")
    with pytest.raises(Denied, match="Role tester not allowed"):
        who.require(Verb.WRITE_POLICY)
    with pytest.raises(Denied, match="Role auditor not allowed"):
        Principal(name="x", role=Role.AUDITOR).require(Verb.WRITE_POLICY)
