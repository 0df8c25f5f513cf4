"""What `install` applies, in an API server: every object is accepted, and admission gives the linter's verdict."""

import copy
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import combinations
from typing import Any

import pytest

from deploy.render import BASES
from kata_gpu.cli.main import cli, run
from kata_gpu.core.beside_nvidia import OUR_CLASSES
from kata_gpu.core.kata.initdata import ANNOTATION
from kata_gpu.core.lint import claim, pod
from kata_gpu.core.lint.admission import CLASS_POLICY
from kata_gpu.core.lint.lint import lint
from kata_gpu.core.lint.mutation import KEY, NAME, mutation
from kata_gpu.core.manifests import node
from kata_gpu.core.manifests.install import Verb, plan_install, plan_uninstall, wanted
from kata_gpu.core.manifests.template import fill
from kata_gpu.core.manifests.values import VALUES
from kata_gpu.errors import ExitCode, Unavailable
from kata_gpu.host.kube import KubeApi
from kata_gpu.ops.install import install, observe, uninstall
from runtimeclass.model import Tee
from tests.kata_gpu.dra.fake_api import MERGE
from tests.kata_gpu.dra.fake_rules import ADMIN_ACCESS
from tests.kata_gpu.dra.fake_store import KINDS, ApiError, Kind, Object, Store
from tests.kata_gpu.dra.real_api import RealApi
from tests.kata_gpu.kata.cel import evaluate, mutate, variables
from tests.kata_gpu.kata.test_lint import BAD_CLAIMS, BAD_PODS, CLAIM, GOOD, POD, bad_pod, changed

API = "admissionregistration.k8s.io/v1"
POLICIES, BINDINGS = (KINDS[API, f"validatingadmissionpolic{e}"] for e in ("ies", "ybindings"))
MUTATIONS, MUTATION_BINDINGS = (KINDS[API, f"mutatingadmissionpolic{e}"] for e in ("ies", "ybindings"))
CLASSES = KINDS["node.k8s.io/v1", "runtimeclasses"]
NAMESPACES, CONFIG_MAPS = KINDS["v1", "namespaces"], KINDS["v1", "configmaps"]
PODS, TEMPLATES = KINDS["v1", "pods"], KINDS["resource.k8s.io/v1", "resourceclaimtemplates"]
CLAIMS = KINDS["resource.k8s.io/v1", "resourceclaims"]
OBJECTS = wanted(VALUES, default_tee=Tee.NONE, with_broker=True)
POLICY_S = 30.0  # the server compiles a new policy in the background


def admission(store: Store) -> Callable[[Kind, Object, str], str | None]:
    """Mutating, then validating policies with variables and parameters, as the API server evaluates them."""

    def admit(kind: Kind, obj: Object, user: str) -> str | None:
        request = {"operation": "CREATE", "userInfo": {"username": user}}
        if kind is PODS:
            for policy in store.objects[MUTATIONS].values():
                params = store.objects[CONFIG_MAPS].get((obj["metadata"]["namespace"], NAME))
                if params:
                    obj |= mutate(policy, obj, params)
        for binding in list(store.objects[BINDINGS].values()):
            policy = store.objects[POLICIES]["", binding["spec"]["policyName"]]
            rules = policy["spec"]["matchConstraints"]["resourceRules"]
            if "matchConditions" in policy["spec"] or not any(kind.resource in r["resources"] for r in rules):
                continue  # the own-node policy is about the agent's account only
            wanted_labels = binding["spec"].get("paramRef", {}).get("selector", {}).get("matchLabels")
            params_of = [c for c in store.objects[CLASSES].values()
                         if wanted_labels and wanted_labels.items() <= c["metadata"].get("labels", {}).items()]  # fmt: skip
            for param in params_of if wanted_labels else [{}]:
                named = variables(policy, object=obj, request=request)
                for rule in policy["spec"]["validations"]:
                    if not evaluate(rule["expression"], object=obj, request=request, params=param, variables=named):
                        return f"ValidatingAdmissionPolicy '{policy['metadata']['name']}' denied: {rule['message']}"
        return None

    return admit


@pytest.fixture
def cluster(api: Any) -> Any:
    """A server after `install`, with its admission at work."""
    install(KubeApi.connect(server=api.url), OBJECTS, say=lambda _: None)
    api.store.admit = admission(api.store)
    return api


def whole(obj: Object) -> Object:
    """The corpus object with what a real API server also demands."""
    obj = copy.deepcopy(obj)
    every = (c for f in ("initContainers", "containers", "ephemeralContainers") for c in obj["spec"].get(f, []))
    for container in every:
        container.setdefault("image", "i")
    return obj


@pytest.mark.envtest
@pytest.mark.parametrize("base", ["broker-postgres", "nvidia"])
def test_the_server_accepts_what_install_leaves_to_helm_and_kustomize(base: str, api: Any) -> None:
    objects = [fill(d.obj, VALUES) for d in (node.NAMESPACE, *BASES[base])]
    assert len(install(KubeApi.connect(server=api.url), objects, say=lambda _: None)) == len(objects)


@pytest.mark.envtest
def test_the_server_keeps_every_field_that_install_sets(cluster: Any) -> None:
    kube = KubeApi.connect(server=cluster.url)
    assert plan_install(OBJECTS, observe(kube, OBJECTS)) == ()


@pytest.mark.envtest
def test_the_commands_do_what_the_plan_says_and_leave_nothing(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    api.store.controllers = False  # the real server has none anyway

    def call(*args: str) -> tuple[int, list[str]]:
        code = run(cli, [*args, "--with-broker", "--wait", "0", "--server", api.url, "--output", "json"])
        out = capsys.readouterr().out
        return code, [step["path"] for step in json.loads(out)] if out else []

    assert call("uninstall", "--verify") == (ExitCode.OK, [])
    code, planned = call("install", "--dry-run")
    assert (code, len(planned)) == (ExitCode.OK, len(OBJECTS))
    assert call("uninstall", "--verify") == (ExitCode.OK, []), "a dry run changes nothing"
    assert call("install", "--apply") == (ExitCode.OK, planned)
    assert call("install", "--apply") == (ExitCode.OK, [])
    assert call("uninstall", "--verify") == (ExitCode.NEGATIVE, planned[::-1])
    assert call("uninstall") == (ExitCode.UNAVAILABLE, []), "without controllers nobody ends a namespace"
    api.store.finish_deletions()
    assert call("uninstall", "--verify") == (ExitCode.OK, [])


@pytest.mark.envtest
def test_uninstall_says_what_only_a_controller_manager_can_end(cluster: Any) -> None:
    cluster.store.controllers = False  # the real server has none anyway
    kube = KubeApi.connect(server=cluster.url)
    with pytest.raises(Unavailable) as caught:
        uninstall(kube, OBJECTS, say=lambda _: None, wait_s=0)
    assert caught.value.code == "install-deleting"
    left = plan_uninstall(OBJECTS, observe(kube, OBJECTS))
    assert {s.verb for s in left} == {Verb.WAIT}
    assert [s.path.rsplit("/", 2)[1] for s in left] == ["persistentvolumeclaims", "namespaces"]
    cluster.store.finish_deletions()
    assert plan_uninstall(OBJECTS, observe(kube, OBJECTS)) == ()
    assert len(install(kube, OBJECTS, say=lambda _: None)) == len(OBJECTS)


@pytest.mark.envtest
def test_policies_compile_without_a_warning(cluster: Any) -> None:
    """The server compiles every expression before it accepts a policy. Warnings of schemas need a controller manager."""
    for policy in cluster.store.list(POLICIES)[0]:
        checked = policy.get("status", {}).get("typeChecking", {})
        assert checked.get("expressionWarnings", []) == [], policy["metadata"]["name"]


def pairs() -> Iterator[tuple[str, Object]]:
    """Pods with two things wrong, where both can be wrong at once."""
    for first, second in combinations(BAD_PODS, 2):
        obj = bad_pod(*first.values[:3])  # type: ignore[arg-type]
        with suppress(KeyError):  # the first took away what the second changes
            for path, value in {second.values[0]: second.values[1], **second.values[2]}.items():  # type: ignore[dict-item]
                obj = changed(obj, str(path), value)
            yield f"{first.id}+{second.id}", obj


def refused(store: Any, kind: Kind, obj: Object, namespace: str = "admin") -> str:
    """The rule that the server names, or nothing where it takes the object; debug containers come to a pod later."""
    debug = obj["spec"].pop("ephemeralContainers", []) if kind is PODS else []
    try:
        store.create(kind, namespace, obj)
        if debug:
            store.debug(namespace, obj["metadata"]["name"], debug)
    except ApiError as denied:
        rule = re.search(r"\[([a-z-]+)\] ", str(denied))
        assert rule is not None, denied
        return rule[1]
    return ""


@pytest.mark.envtest
def test_admission_gives_the_verdict_of_the_linter(cluster: Any) -> None:
    """One server for the whole corpus: starting one costs more than all of it."""
    store = cluster.store
    # The server names one of several policies that refuse: this one needs the cluster, and has its own test.
    store.delete(BINDINGS, "", CLASS_POLICY)
    store.admit = admission(store)
    rows = [(f"good-{n}", obj) for n, obj in enumerate(GOOD)]
    rows += [(str(p.id), bad_pod(*p.values[:3])) for p in BAD_PODS]  # type: ignore[arg-type]
    rows += [(str(p.id), changed(CLAIM, str(p.values[0]), p.values[1])) for p in BAD_CLAIMS]
    rows += pairs()
    for name in {o["spec"].get("runtimeClassName", "runc") for _, o in rows}:
        with suppress(ApiError):  # ours exist
            store.create(CLASSES, "", {"metadata": {"name": name}, "handler": "runc"})
    # In other namespaces the server itself refuses adminAccess.
    store.create(NAMESPACES, "", {"metadata": {"name": "admin", "labels": {ADMIN_ACCESS: "true"}}})
    kinds = {k.kind: k for k in (PODS, TEMPLATES, CLAIMS)}
    seen, differ = set(), []
    for number, (name, obj) in enumerate(rows):
        expected = {v.rule for v in lint([obj]) if v.scope == "object"} or {""}
        kind = kinds[obj["kind"]]
        got = refused(store, kind, changed(whole(obj) if kind is PODS else obj, "metadata/name", f"n-{number}"))
        seen.add(got)
        if got not in expected:
            differ.append((name, got))
    assert differ == [("zero", "")], "the server makes a count of 0 a 1 before admission sees it"
    assert seen == {"", *(r.id for r in (*pod.RULES, *claim.RULES))}
    assert len(rows) > 150


@pytest.mark.envtest
def test_rules_beside_nvidias_driver_leave_other_claims_alone(api: Any) -> None:
    objects = wanted(VALUES, default_tee=Tee.NONE, with_broker=False, with_nvidia=True)
    install(KubeApi.connect(server=api.url), objects, say=lambda _: None)
    api.store.admit = admission(api.store)
    ours = {"devices": {"requests": [{"name": "g", "exactly": {"deviceClassName": OUR_CLASSES[0]}}]}}
    for name, spec in (("empty", {}), ("cgpu-one", ours)):
        assert refused(api.store, CLAIMS, {"metadata": {"name": name}, "spec": spec}, "default") == ""
    with pytest.raises(ApiError, match="named cgpu-"):
        api.store.create(CLAIMS, "default", {"metadata": {"name": "mine"}, "spec": ours})


@pytest.mark.envtest
def test_init_data_is_added_to_confidential_pods_that_bring_none(cluster: Any) -> None:
    store = cluster.store
    bare = whole(changed(POD, "metadata/annotations", None))
    plain = changed(bare, "spec/runtimeClassName", "kata-nvidia-gpu")
    until = time.monotonic() + POLICY_S
    # Not in OBJECTS: the real server reads ConfigMaps once for the first such policy of its life, then never again.
    policy, binding = mutation()
    store.create(NAMESPACES, "", {"metadata": {"name": "team"}})
    store.create(CONFIG_MAPS, "team", {"metadata": {"name": NAME}, "data": {KEY: "of-the-team"}})
    store.create(MUTATIONS, "", policy)
    store.create(MUTATION_BINDINGS, "", binding)
    while says := refused(store, PODS, bare, "team"):
        assert says == "init-data-missing"
        assert time.monotonic() < until, "the policy does not work"
        time.sleep(0.1)
    made = store.get(PODS, "team", POD["metadata"]["name"])
    assert made["metadata"]["annotations"] == {ANNOTATION: "of-the-team"}
    own = store.create(PODS, "team", changed(whole(POD), "metadata/name", "own"))
    assert own["metadata"]["annotations"] == POD["metadata"]["annotations"]
    assert "annotations" not in store.create(PODS, "team", changed(plain, "metadata/name", "plain"))["metadata"]
    with pytest.raises(ApiError, match="init-data-missing"):
        store.create(PODS, "default", changed(bare, "metadata/name", "elsewhere"))


@pytest.mark.envtest
def test_admission_refuses_init_data_on_a_default_class_without_a_tee(cluster: Any) -> None:
    pod = whole(changed(changed(POD, "spec/runtimeClassName", "kata-nvidia-gpu"), "metadata/name", "plain"))
    assert lint([pod]) == (), "the name does not tell: only the cluster's RuntimeClass does"
    with pytest.raises(ApiError, match="class-not-confidential"):
        cluster.store.create(PODS, "default", pod)


def event(node: str, kind: str = "Node") -> Object:
    about = {"apiVersion": "v1", "kind": kind, "name": node, "uid": node}
    return {"apiVersion": "v1", "kind": "Event", "metadata": {"generateName": "e."}, "involvedObject": about}


@pytest.mark.envtest
@pytest.mark.parametrize(("method", "path", "body", "denied"), [
    pytest.param("POST", "/api/v1/namespaces/default/events", event("node-a"), False, id="event"),
    pytest.param("POST", "/api/v1/namespaces/default/events", event("node-b"), True, id="event-of-another-node"),
    pytest.param("POST", "/api/v1/namespaces/default/events", event("node-a", "Pod"), True, id="event-of-a-pod"),
    pytest.param("PATCH", "/api/v1/nodes/node-a", {"metadata": {"labels": {"a": "b"}}}, False, id="node"),
    pytest.param("PATCH", "/api/v1/nodes/node-b", {"metadata": {"labels": {"a": "b"}}}, True, id="another-node"),
])  # fmt: skip
def test_an_agent_writes_about_its_own_node_alone(
    cluster: Any, method: str, path: str, body: Object, denied: bool
) -> None:
    """With every right that RBAC could give: only admission stands in the way."""
    if not isinstance(cluster, RealApi):
        pytest.skip("envtest: KUBEBUILDER_ASSETS is not set: the fake server knows no tokens")
    cluster.store.create(KINDS["v1", "nodes"], "", {"metadata": {"name": "node-b"}})
    agent = {
        "Impersonate-User": f"system:serviceaccount:{VALUES['namespace']}:{node.NAME}",
        "Impersonate-Group": "system:masters",
        "Impersonate-Extra-authentication.kubernetes.io%2Fnode-name": "node-a",
    }

    def said() -> str:
        try:
            cluster.ask(method, path, body, MERGE if method == "PATCH" else "application/json", agent)
        except ApiError as exc:
            return str(exc)
        return ""

    assert ("an agent writes only its own node's objects" in said()) if denied else said() == ""
