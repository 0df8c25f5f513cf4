"""Each bad pod and claim is refused for its own reason, good ones pass, and CEL gives the linter's verdict."""

import copy
import json
from typing import Any

import pytest

from kata_gpu.cli.main import cli, run
from kata_gpu.core.kata.agent_policy import parse_policy_data, vfio_counts, with_devices
from kata_gpu.core.kata.initdata import ANNOTATION, Algorithm, Contents, build_initdata
from kata_gpu.core.lint import claim as claims
from kata_gpu.core.lint import pod as pods
from kata_gpu.core.lint.admission import CLASS_POLICY, ONE_POD_POLICY, policies
from kata_gpu.core.lint.cluster import Cluster
from kata_gpu.core.lint.lint import lint
from kata_gpu.errors import Malformed, Misconfigured
from runtimeclass.model import Tee
from runtimeclass.render import objects as runtime_classes
from tests.kata_gpu.kata.cel import evaluate

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
POLICY = "package agent_policy\n\ndefault ExecProcessRequest := false\n\npolicy_data := " + json.dumps(
    {"containers": [{"devices": []}, {"devices": [{"container_path": "/dev/xvda"}], "runtime_anno_patterns": {}}]}
)


def init_data(policy: str) -> str:
    contents = Contents(kbs_url="https://kbs:8080", kbs_cert_pem=PEM, policy_rego=policy, extra={})
    return build_initdata(contents, Algorithm.SHA256).annotation


POD: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "llm", "annotations": {ANNOTATION: init_data(with_devices(POLICY, {1: 1}))}},
    "spec": {
        "runtimeClassName": "kata-nvidia-gpu-snp",
        "resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}],
        "containers": [
            {"name": "c", "image": "i", "resources": {"claims": [{"name": "gpu"}], "limits": {"memory": "64Gi"}}},
        ],
    },
}
CLAIM: dict[str, Any] = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "ResourceClaimTemplate",
    "metadata": {"name": "one-gpu"},
    "spec": {"spec": {"devices": {"requests": [{"name": "g", "exactly": {"deviceClassName": "confidential-gpu"}}]}}},
}


def changed(obj: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one thing changed; `path` is dotted, numbers index lists, a value of None deletes."""
    result = copy.deepcopy(obj)
    node: Any = result
    *way, last = path.split("/")
    for part in way:
        node = node[int(part)] if part.isdigit() else node.setdefault(part, {})
    if value is None:
        del node[int(last) if last.isdigit() else last]
    elif last.isdigit():
        node[int(last)] = value
    else:
        node[last] = value
    return result


LIMITS = "spec/containers/0/resources/limits"
BAD_PODS = [
    pytest.param("spec/runtimeClassName", "runc", {LIMITS: {"nvidia.com/pgpu": "1"}}, "gpu-without-class", id="runc"),
    pytest.param("spec/runtimeClassName", None, {LIMITS: {"nvidia.com/nvswitch": "4"}}, "gpu-without-class", id="no-class"),
    pytest.param("spec/runtimeClassName", None, {LIMITS: {"cgpu.kata-gpu.dev/gpu": "1"}}, "gpu-without-class",
                 id="no-class-of-our-device-plugin"),
    pytest.param(LIMITS, {"cgpu.kata-gpu.dev/nvswitch": "4"}, {}, "memory-limit", id="no-memory-of-our-device-plugin"),
    pytest.param(LIMITS, {"memory": "1Gi", "nvidia.com/gpu": "1"}, {}, "host-gpu-resource", id="host-gpu"),
    pytest.param(LIMITS, {"memory": "1Gi", "nvidia.com/mig-1g.10gb": "1"}, {}, "shared-gpu", id="mig"),
    pytest.param(LIMITS, {"memory": "1Gi", "nvidia.com/gpu.shared": "1"}, {}, "shared-gpu", id="mps"),
    pytest.param(LIMITS, {"memory": "1Gi", "rdma/hca": "1"}, {}, "foreign-device", id="rdma"),
    pytest.param("spec/hostNetwork", True, {}, "host-namespace", id="host-network"),
    pytest.param("spec/hostPID", True, {}, "host-namespace", id="host-pid"),
    pytest.param("spec/hostIPC", True, {}, "host-namespace", id="host-ipc"),
    pytest.param("spec/containers/0/securityContext", {"privileged": True}, {}, "privileged", id="privileged"),
    pytest.param("spec/initContainers", [{"name": "i", "securityContext": {"privileged": True}}], {}, "privileged",
                 id="privileged-init"),
    pytest.param("spec/ephemeralContainers", [{"name": "e", "securityContext": {"privileged": True}}], {}, "privileged",
                 id="privileged-debug"),
    pytest.param("spec/volumes", [{"name": "v", "hostPath": {"path": "/"}}], {}, "host-path", id="host-path"),
    pytest.param("metadata/annotations/io.katacontainers.config.hypervisor.kernel_params", "quiet", {},
                 "ignored-annotation", id="kernel-params"),
    pytest.param(f"metadata/annotations/{ANNOTATION}", None, {}, "init-data-missing", id="no-init-data"),
    pytest.param("metadata/annotations", None, {}, "init-data-missing", id="no-annotations"),
    pytest.param("spec/runtimeClassName", "kata-qemu-nvidia-gpu", {}, "init-data-unmeasured", id="unmeasured"),
    pytest.param("spec/runtimeClassName", "kata-nvidia-gpu-devtools", {}, "devtools-init-data", id="devtools"),
    pytest.param(LIMITS, {"cpu": "1"}, {}, "memory-limit", id="no-memory"),
    pytest.param("spec/runtimeClassName", "kata-nvidia-gpu-ppcie-snp",
                 {LIMITS: {"memory": "1Ti", "nvidia.com/pgpu": "4"}}, "ppcie-gpus", id="half-a-node"),
]  # fmt: skip


def bad_pod(path: str, value: Any, also: dict[str, Any]) -> dict[str, Any]:
    pod = changed(POD, path, value)
    for other, setting in also.items():
        pod = changed(pod, other, setting)
    return pod


@pytest.mark.parametrize(("path", "value", "also", "rule"), BAD_PODS)
def test_bad_pods_are_refused_for_their_own_reason(path: str, value: Any, also: dict[str, Any], rule: str) -> None:
    assert {v.rule for v in lint([bad_pod(path, value, also)]) if v.scope == "object"} == {rule}


REQUEST = "spec/spec/devices/requests/0/exactly"
BAD_CLAIMS = [
    pytest.param(f"{REQUEST}/adminAccess", True, "admin-access", id="admin"),
    pytest.param(f"{REQUEST}/count", 9, "exact-count", id="nine"),
    pytest.param(f"{REQUEST}/count", 0, "exact-count", id="zero"),
    pytest.param(f"{REQUEST}/allocationMode", "All", "exact-count", id="all"),
    pytest.param(REQUEST, {"deviceClassName": "confidential-gpu-ppcie", "count": 2}, "one-ppcie", id="two-nodes"),
    pytest.param("spec/spec/devices/requests", [
        {"name": "a", "exactly": {"deviceClassName": "confidential-gpu"}},
        {"name": "b", "exactly": {"deviceClassName": "passthrough-gpu"}}], "one-mode", id="mixed"),
    pytest.param("spec/spec/devices/requests", [
        {"name": "a", "firstAvailable": [{"name": "x", "deviceClassName": "confidential-gpu"},
                                         {"name": "y", "deviceClassName": "confidential-gpu-devtools"}]}],
                 "one-mode", id="mixed-alternatives"),
    pytest.param("spec/spec/devices/requests", [
        {"name": "a", "exactly": {"deviceClassName": "confidential-gpu"}},
        {"name": "b", "exactly": {"deviceClassName": "compute-domain-default-channel.nvidia.com"}}],
                 "multi-node-nvlink", id="compute-domain"),
    pytest.param("spec/spec/devices/requests", [
        {"name": "a", "exactly": {"deviceClassName": "confidential-gpu"}},
        {"name": "b", "exactly": {"deviceClassName": "mig.nvidia.com"}}], "mig-device", id="mig"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "rule"), BAD_CLAIMS)
def test_bad_claims_are_refused_for_their_own_reason(path: str, value: Any, rule: str) -> None:
    assert {v.rule for v in lint([changed(CLAIM, path, value)])} == {rule}


GOOD = [
    POD,
    CLAIM,
    {**CLAIM, "kind": "ResourceClaim", "spec": CLAIM["spec"]["spec"]},
    changed(POD, "spec/runtimeClassName", "kata-qemu-nvidia-gpu-snp-runtime-rs"),
    {"kind": "Pod", "metadata": {"name": "web"}, "spec": {"containers": [{"name": "c"}], "hostNetwork": True}},
    changed(bad_pod("spec/runtimeClassName", "kata-nvidia-gpu-ppcie-tdx", {}), LIMITS,
            {"memory": "1Ti", "nvidia.com/pgpu": "8", "nvidia.com/nvswitch": "4"}),
    changed(POD, LIMITS, {"memory": "64Gi", "cgpu.kata-gpu.dev/gpu": "1"}),
    {"kind": "ResourceClaim", "metadata": {"name": "other"},
     "spec": {"devices": {"requests": [{"name": "a", "exactly": {"deviceClassName": "x", "adminAccess": True}}]}}},
    {"kind": "ResourceClaim", "metadata": {"name": "empty"}, "spec": {}},
    {"kind": "ResourceClaim", "metadata": {"name": "null"}, "spec": {"devices": {"requests": None}}},
]  # fmt: skip


@pytest.mark.parametrize("obj", GOOD)
def test_good_objects_pass(obj: dict[str, Any]) -> None:
    assert lint([obj]) == ()


def test_workloads_are_seen_through_their_template() -> None:
    template = {k: v for k, v in changed(POD, "spec/hostPID", True).items() if k in ("metadata", "spec")}
    workloads: tuple[dict[str, Any], ...] = (
        {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": template}},
        {"kind": "CronJob", "metadata": {"name": "j"}, "spec": {"jobTemplate": {"spec": {"template": template}}}},
    )
    for obj in workloads:
        subject = f"{obj['kind']}/{obj['metadata']['name']}"
        assert [(v.rule, v.subject) for v in lint([obj])] == [("host-namespace", subject)]


def cel(expression: str, obj: dict[str, Any], requests: str | None = None) -> bool:
    named = {} if requests is None else {"variables": {"requests": evaluate(requests, object=obj)}}
    return bool(evaluate(expression, object=obj, **named))


def corpus(bad: list[Any], base: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for param in bad:
        if base is POD:
            path, value, also, _ = param.values
            out.append(bad_pod(path, value, also))
        else:
            path, value, _ = param.values
            out.append(changed(base, path, value))
    return out


@pytest.mark.parametrize("rule", pods.RULES, ids=lambda r: r.id)
def test_cel_of_pod_rules_agrees_with_the_linter(rule: Any) -> None:
    verdicts = set()
    for obj in [o for o in GOOD if o["kind"] == "Pod"] + corpus(BAD_PODS, POD):
        assert cel(rule.cel, obj) == rule.holds(obj), obj
        verdicts.add(rule.holds(obj))
    assert verdicts == {True, False}


@pytest.mark.parametrize("rule", claims.RULES, ids=lambda r: r.id)
def test_cel_of_claim_rules_agrees_with_the_linter(rule: Any) -> None:
    verdicts = set()
    for obj in [o for o in GOOD if o["kind"] != "Pod"] + corpus(BAD_CLAIMS, CLAIM):
        assert cel(rule.cel, obj, claims.REQUESTS_CEL) == rule.holds(obj), obj
        verdicts.add(rule.holds(obj))
    assert verdicts == {True, False}


def test_admission_policies_hold_every_object_rule() -> None:
    elsewhere = {CLASS_POLICY, ONE_POD_POLICY}  # test_lint_live.py, test_consumer.py
    rendered = [p for p in policies() if p["metadata"]["name"] not in elsewhere]
    expressions = [v["expression"] for p in rendered for v in p["spec"].get("validations", [])]
    assert expressions == [r.cel for r in (*pods.RULES, *claims.RULES)]
    assert {p["spec"]["failurePolicy"] for p in rendered if p["kind"] == "ValidatingAdmissionPolicy"} == {"Fail"}


@pytest.mark.parametrize(("annotation", "rule"), [
    pytest.param("!!", "init-data-malformed", id="not-base64"),
    pytest.param(init_data(POLICY), "policy-allows-no-gpu", id="claim-only-pod-and-policy-without-devices"),
    pytest.param(init_data("default ExecProcessRequest := true"), "init-data-permissive-policy", id="permissive"),
])  # fmt: skip
def test_init_data_is_unpacked(annotation: str, rule: str) -> None:
    assert [v.rule for v in lint([changed(POD, f"metadata/annotations/{ANNOTATION}", annotation)])] == [rule]


def test_policy_with_devices_is_what_genpolicy_would_have_written() -> None:
    text = with_devices(POLICY, {1: 2})
    data = parse_policy_data(text)
    assert data is not None
    assert vfio_counts(data) == (0, 2)
    assert data["containers"][1]["devices"][0] == {"container_path": "/dev/xvda"}
    assert data["containers"][1]["runtime_anno_patterns"] == {r"^cdi\.k8s\.io/vfio[0-9]+$": r"^nvidia\.com/gpu=[0-9]+$"}
    assert with_devices(text, {1: 2}) == text
    assert parse_policy_data(with_devices(text, {1: 0})) == parse_policy_data(POLICY)


@pytest.mark.parametrize(("policy", "counts", "error"), [
    pytest.param("package p", {0: 1}, Misconfigured, id="not-genpolicy"),
    pytest.param(POLICY, {2: 1}, Misconfigured, id="no-such-container"),
    pytest.param(POLICY, {1: 33}, Misconfigured, id="too-many"),
    pytest.param(POLICY + "x", {1: 1}, Malformed, id="not-json"),
    pytest.param('policy_data := {"containers": 1}', {}, Malformed, id="no-list"),
])  # fmt: skip
def test_impossible_policies_are_refused(policy: str, counts: dict[int, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        with_devices(policy, counts)


def cluster(**changes: Any) -> Cluster:
    classes = {o["metadata"]["name"]: o for o in runtime_classes(Tee.NONE)}
    labels = {"katacontainers.io/kata-runtime": "true", "kata-gpu.dev/cc-mode": "on", "kata-gpu.dev/tee": "snp"}
    fields: dict[str, Any] = {
        "runtime_classes": classes,
        "device_classes": {name: {} for name in claims.CLASSES},
        "claims": {},
        "claim_templates": {"one-gpu": CLAIM},
        "nodes": [{"metadata": {"labels": labels}}],
    }
    return Cluster(**(fields | changes))


def test_cluster_with_everything_in_place() -> None:
    assert lint([POD], cluster()) == ()


@pytest.mark.parametrize(("pod", "changes", "rules"), [
    pytest.param(POD, {"runtime_classes": {}}, {"class-missing"}, id="no-class"),
    pytest.param(POD, {"device_classes": {}}, {"device-class-missing"}, id="no-device-class"),
    pytest.param(POD, {"claim_templates": {}}, {"claim-missing"}, id="no-template"),
    pytest.param(POD, {"nodes": []}, {"no-node"}, id="no-node"),
    pytest.param(changed(POD, "spec/runtimeClassName", None), {}, {"claim-without-class"}, id="claim-under-runc"),
    pytest.param(changed(changed(POD, "spec/runtimeClassName", None), "spec/resourceClaims", []), {}, set(), id="runc"),
    pytest.param(changed(changed(POD, "spec/runtimeClassName", "mine"), "metadata/annotations", None),
                 {"runtime_classes": {"mine": {"handler": "kata-qemu-nvidia-gpu-snp", "metadata": {}}}},
                 set(), id="own-class-of-the-handler"),
    pytest.param(changed(changed(POD, "spec/runtimeClassName", "mine"), "metadata/annotations", None),
                 {"runtime_classes": {"mine": {"handler": "runsc", "metadata": {}}}},
                 {"claim-without-class", "class-not-confidential"}, id="other-sandbox"),
    pytest.param(POD, {"claim_templates": {"one-gpu": changed(CLAIM, f"{REQUEST}/deviceClassName", "passthrough-gpu")}},
                 {"mode-differs"}, id="other-mode"),
    pytest.param(changed(POD, "spec/runtimeClassName", "kata-nvidia-gpu"), {},
                 {"class-not-confidential", "mode-differs", "no-node"}, id="default-class-without-tee"),
])  # fmt: skip
def test_cluster_rules(pod: dict[str, Any], changes: dict[str, Any], rules: set[str]) -> None:
    assert {v.rule for v in lint([pod], cluster(**changes))} == rules


def test_cli(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(json.dumps(POD))
    bad.write_text(json.dumps({"kind": "List", "items": [changed(POD, "spec/hostPID", True)]}))
    assert run(cli, ["lint", str(good)]) == 0
    assert run(cli, ["lint", str(good), str(bad), "--output", "json"]) == 1
    assert '"host-namespace"' in capsys.readouterr().out
    assert run(cli, ["lint", str(tmp_path / "absent")]) == 2
    bad.write_text("a: [")
    assert run(cli, ["lint", str(bad)]) == 2
