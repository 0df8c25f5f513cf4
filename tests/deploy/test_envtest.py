"""What `install` applies, in an API server: every object is accepted, and admission gives the linter's verdict."""

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import celpy
import pytest
from celpy.adapter import json_to_cel

from kata_gpu.core.lint.lint import lint
from kata_gpu.core.manifests.install import Verb, plan_install, plan_uninstall, wanted
from kata_gpu.core.manifests.values import VALUES
from kata_gpu.errors import Unavailable
from kata_gpu.host.kube import KubeApi
from kata_gpu.ops.install import install, observe, uninstall
from runtimeclass.model import Tee
from tests.kata_gpu.dra.fake_rules import ADMIN_ACCESS
from tests.kata_gpu.dra.fake_store import KINDS, ApiError, Kind, Object, Store
from tests.kata_gpu.kata.test_lint import BAD_CLAIMS, BAD_PODS, CLAIM, POD, bad_pod, changed

API = "admissionregistration.k8s.io/v1"
POLICIES, BINDINGS = (KINDS[API, f"validatingadmissionpolic{e}"] for e in ("ies", "ybindings"))
CLASSES = KINDS["node.k8s.io/v1", "runtimeclasses"]
NAMESPACES = KINDS["v1", "namespaces"]
PODS, TEMPLATES = KINDS["v1", "pods"], KINDS["resource.k8s.io/v1", "resourceclaimtemplates"]


def admission(store: Store) -> Callable[[Kind, Object, str], str | None]:
    """ValidatingAdmissionPolicies with variables and RuntimeClass parameters, as the API server evaluates them."""
    environment = celpy.Environment()
    programs: dict[str, Any] = {}

    def true(expression: str, activation: dict[str, Any]) -> Any:
        if expression not in programs:
            programs[expression] = environment.program(environment.compile(expression))
        return programs[expression].evaluate(activation)

    def admit(kind: Kind, obj: Object, _user: str) -> str | None:
        for binding in list(store.objects[BINDINGS].values()):
            policy = store.objects[POLICIES]["", binding["spec"]["policyName"]]
            rules = policy["spec"]["matchConstraints"]["resourceRules"]
            if "matchConditions" in policy["spec"] or not any(kind.resource in r["resources"] for r in rules):
                continue  # the own-node policy is about the agent's account only
            wanted_labels = binding["spec"].get("paramRef", {}).get("selector", {}).get("matchLabels")
            params = [c for c in store.objects[CLASSES].values()
                      if wanted_labels and wanted_labels.items() <= c["metadata"].get("labels", {}).items()]  # fmt: skip
            for param in params if wanted_labels else [{}]:
                activation: dict[str, Any] = {"object": json_to_cel(obj), "params": json_to_cel(param)}
                variables = celpy.celtypes.MapType()
                for v in policy["spec"].get("variables", []):
                    variables[celpy.celtypes.StringType(v["name"])] = true(v["expression"], activation)
                activation["variables"] = variables
                for rule in policy["spec"]["validations"]:
                    if not true(rule["expression"], activation):
                        return f"ValidatingAdmissionPolicy '{policy['metadata']['name']}' denied: {rule['message']}"
        return None

    return admit


@pytest.fixture
def cluster(api: Any) -> Any:
    """A server after `install`, with its admission at work."""
    objects = wanted(VALUES, default_tee=Tee.NONE, with_broker=True)
    kube = KubeApi.connect(server=api.url)
    install(kube, objects, say=lambda _: None)
    api.store.admit = admission(api.store)
    return api


def whole(obj: Object) -> Object:
    """The corpus object with what a real API server also demands."""
    obj = copy.deepcopy(obj)
    for c in obj["spec"].get("initContainers", []) + obj["spec"].get("containers", []):
        c.setdefault("image", "i")
    return obj


@pytest.mark.envtest
def test_the_server_keeps_every_field_that_install_sets(cluster: Any) -> None:
    objects = wanted(VALUES, default_tee=Tee.NONE, with_broker=True)
    kube = KubeApi.connect(server=cluster.url)
    assert plan_install(objects, observe(kube, objects)) == ()


@pytest.mark.envtest
def test_uninstall_says_what_only_a_controller_manager_can_end(cluster: Any) -> None:
    cluster.store.controllers = False  # the real server has none anyway
    objects = wanted(VALUES, default_tee=Tee.NONE, with_broker=True)
    kube = KubeApi.connect(server=cluster.url)
    with pytest.raises(Unavailable) as caught:
        uninstall(kube, objects, say=lambda _: None, wait_s=0)
    assert caught.value.code == "install-deleting"
    left = plan_uninstall(objects, observe(kube, objects))
    assert {s.verb for s in left} == {Verb.WAIT}
    assert [s.path.rsplit("/", 2)[1] for s in left] == ["persistentvolumeclaims", "namespaces"]
    cluster.store.finish_deletions()
    assert plan_uninstall(objects, observe(kube, objects)) == ()
    assert len(install(kube, objects, say=lambda _: None)) == len(objects)


@pytest.mark.envtest
def test_policies_compile_without_a_warning(cluster: Any) -> None:
    """The server compiles every expression before it accepts a policy. Warnings of schemas need a controller manager."""
    for policy in cluster.store.list(POLICIES)[0]:
        checked = policy.get("status", {}).get("typeChecking", {})
        assert checked.get("expressionWarnings", []) == [], policy["metadata"]["name"]


@pytest.mark.envtest
def test_admission_gives_the_verdict_of_the_linter(cluster: Any) -> None:
    """One server for the whole corpus: starting one costs more than all of it."""
    store = cluster.store
    refused, differ = set(), []
    for name in {"runc", *(p.values[1] for p in BAD_PODS if p.values[0] == "spec/runtimeClassName")}:
        with suppress(ApiError):  # ours exist
            store.create(CLASSES, "", {"metadata": {"name": name}, "handler": "runc"})
    # In other namespaces the server itself refuses adminAccess.
    store.create(NAMESPACES, "", {"metadata": {"name": "admin", "labels": {ADMIN_ACCESS: "true"}}})
    rows = [(PODS, bad_pod(*p.values[:3]), str(p.values[3]), p.id) for p in BAD_PODS]  # type: ignore[arg-type]
    rows += [(TEMPLATES, changed(CLAIM, str(p.values[0]), p.values[1]), str(p.values[2]), p.id) for p in BAD_CLAIMS]
    for number, (kind, obj, rule, name) in enumerate(rows):
        body = changed(whole(obj) if kind is PODS else obj, "metadata/name", f"bad-{number}")
        says = "accepted"
        try:
            store.create(kind, "admin", body)
        except ApiError as denied:
            says = str(denied)
        if f"[{rule}]" in says:
            refused.add(rule)
        else:
            differ.append((name, says))
    assert differ == [("zero", "accepted")], "the server makes a count of 0 a 1 before admission sees it"
    assert len(refused) > 15
    for number, (kind, obj) in enumerate([(PODS, whole(POD)), (TEMPLATES, CLAIM)]):
        assert lint([obj]) == ()
        assert store.create(kind, "default", changed(obj, "metadata/name", f"good-{number}"))["metadata"]["uid"]


@pytest.mark.envtest
def test_admission_refuses_init_data_on_a_default_class_without_a_tee(cluster: Any) -> None:
    pod = whole(changed(changed(POD, "spec/runtimeClassName", "kata-nvidia-gpu"), "metadata/name", "plain"))
    assert lint([pod]) == (), "the name does not tell: only the cluster's RuntimeClass does"
    with pytest.raises(ApiError, match="class-not-confidential"):
        cluster.store.create(PODS, "default", pod)
