"""What is checked in is what is rendered; Helm and kustomize say the same; every workload obeys our invariants."""

import json
import re
import shutil
import subprocess
from typing import Any

import celpy
import pytest
from celpy.adapter import json_to_cel
from celpy.evaluation import CELEvalError

from deploy.render import ALL, BASES, DEPLOY, render
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.manifests import broker, node
from kata_gpu.core.manifests.template import Document, applies, fill, lookup, render_helm
from kata_gpu.core.manifests.values import VALUES
from kata_gpu.core.node_policy import Drain, parse_policy
from kata_gpu.core.yaml12 import load, load_all
from kata_gpu.errors import Misconfigured

HELM = shutil.which("helm")
Object = dict[str, Any]


def test_checked_in_files_are_the_rendered_ones() -> None:
    on_disk = {
        str(p.relative_to(DEPLOY)): p.read_text()
        for folder in ("base", "chart")
        for p in (DEPLOY / folder).rglob("*")
        if p.is_file()
    }
    assert on_disk == render()


def objects(base: str) -> list[Object]:
    return [fill(d.obj, VALUES) for d in BASES[base]]


@pytest.mark.parametrize("base", BASES)
def test_every_file_of_a_base_is_listed_and_parses(base: str) -> None:
    folder = DEPLOY / "base" / base
    listed = load_all((folder / "kustomization.yaml").read_text(), where=base)[0]["resources"]
    assert sorted(listed) == sorted(p.name for p in folder.iterdir() if p.name != "kustomization.yaml")
    parsed = [o for name in listed for o in load_all((folder / name).read_text(), where=name)]
    key = lambda o: (o["kind"], o["metadata"]["name"])
    assert sorted(parsed, key=key) == sorted(objects(base), key=key)


def go_template(text: str) -> str:
    """The little of Go's template language that the chart uses, evaluated with the default values."""

    def condition(match: re.Match[str]) -> str:
        equal = r'\(eq \.Values\.([A-Za-z0-9.]+) "([a-z]+)"\)'
        names = re.findall(r"\.Values\.([A-Za-z0-9.]+)", re.sub(equal, "", match.group(1)))
        holds = all(lookup(VALUES, n) for n in names)
        holds = holds and all(lookup(VALUES, n) == text for n, text in re.findall(equal, match.group(1)))
        return match.group(2) if holds else ""

    text = re.sub(r"\{\{- if and ([^}]*) true \}\}\n(.*?)\{\{- end \}\}\n", condition, text, flags=re.DOTALL)
    text = re.sub(r"\{\{ \.Values\.([A-Za-z0-9.]+) \| toJson \}\}", lambda m: json.dumps(lookup(VALUES, m[1])), text)
    text = re.sub(r"\{\{ \.Release\.Namespace \| toJson \}\}", json.dumps(VALUES["namespace"]), text)
    text = re.sub(r"\{\{ \.Values\.([A-Za-z0-9.]+) \}\}", lambda m: str(lookup(VALUES, m[1])), text)
    text = text.replace("{{ .Release.Namespace }}", VALUES["namespace"])
    assert "{{" not in text
    return text


def enabled() -> list[Object]:
    return [fill(d.obj, VALUES) for d in ALL if applies(d, VALUES)]


def sorted_objects(found: list[Object]) -> list[str]:
    return sorted(json.dumps(o, sort_keys=True) for o in found)


def test_chart_with_defaults_is_what_kustomize_applies() -> None:
    rendered: list[Object] = []
    for path in sorted((DEPLOY / "chart/kata-gpu/templates").glob("*.yaml")):
        rendered += [o for o in load_all(go_template(path.read_text()), where=path.name) if o]
    assert sorted_objects(rendered) == sorted_objects(enabled())
    kustomized = [o for base in ("classes", "node", "broker") for o in objects(base) if o["kind"] != "Namespace"]
    assert sorted_objects(rendered) == sorted_objects(kustomized)


@pytest.mark.skipif(HELM is None, reason="helm: not installed")
@pytest.mark.parametrize("settings", [
    pytest.param([], id="defaults"),
    pytest.param(["broker.sqlite=false", "broker.postgres=true", "monitoring.enabled=true", "node.policy.drain=evict"],
                 id="postgres"),
])  # fmt: skip
def test_helm_itself_renders_the_same(settings: list[str]) -> None:
    argv = [str(HELM), "template", "t", str(DEPLOY / "chart/kata-gpu"), "-n", "kata-gpu", "--kube-version", "1.36.0"]
    text = subprocess.run([*argv, *(f"--set={s}" for s in settings)], check=True, capture_output=True, text=True).stdout
    found = [o for o in load_all(text, where="helm") if o]
    if not settings:
        assert sorted_objects(found) == sorted_objects(enabled())
    else:
        kinds = {(o["kind"], o["metadata"]["name"]) for o in found}
        assert {("PodDisruptionBudget", "kata-gpu-kbs"), ("ServiceMonitor", "kata-gpu-kbs"),
                ("ClusterRole", "kata-gpu-node-evict")} <= kinds  # fmt: skip
        assert ("PersistentVolumeClaim", "kata-gpu-kbs-data") not in kinds


def test_braces_of_the_content_survive_helm() -> None:
    text = render_helm(Document(file="f", obj={"a": "{{ x }} ${node.image}"}), VALUES)
    assert '{{ "{{" }} x {{ "}}" }} {{ .Values.node.image }}' in text


def test_unknown_values_are_refused() -> None:
    for render_with in (lambda d: render_helm(d, VALUES), lambda d: fill(d.obj, VALUES)):
        with pytest.raises(Misconfigured):
            render_with(Document(file="f", obj={"a": "${node.imagge}"}))


def pods() -> list[tuple[str, Object]]:
    return [
        (f"{o['kind']}/{o['metadata']['name']}", o["spec"]["template"]["spec"])
        for base in BASES
        for o in objects(base)
        if o["kind"] in ("DaemonSet", "Deployment")
    ]


def containers(pod: Object) -> list[Object]:
    return [*pod["containers"], *pod.get("initContainers", [])]


@pytest.mark.parametrize(("name", "pod"), pods())
def test_every_container_is_bounded_and_hardened(name: str, pod: Object) -> None:
    for c in containers(pod):
        security = c["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, name
        assert {"requests", "limits"} <= set(c["resources"]), name
        assert "memory" in c["resources"]["limits"], name
        if security.get("privileged"):
            assert (name, c["name"]) == ("DaemonSet/kata-gpu-node", "agent")
        else:
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["allowPrivilegeEscalation"] is False
    mounted = {m["name"] for c in containers(pod) for m in c.get("volumeMounts", [])}
    assert mounted == {v["name"] for v in pod["volumes"]}, name


@pytest.mark.parametrize(("name", "pod"), [p for p in pods() if p[0] == "Deployment/kata-gpu-kbs"])
def test_broker_is_unprivileged_and_knows_no_api_server(name: str, pod: Object) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert not any("hostPath" in v for v in pod["volumes"])
    args = pod["containers"][0]["args"]
    assert not [a for a in args if "unsafe" in a or "compat" in a], name
    assert args[args.index("--listen") + 1] != args[args.index("--admin-listen") + 1]


@pytest.mark.parametrize("base", ["broker", "broker-postgres"])
def test_every_claimed_volume_of_the_broker_is_made(base: str) -> None:
    claimed = {v["persistentVolumeClaim"]["claimName"] for o in objects(base) if o["kind"] == "Deployment"
               for v in o["spec"]["template"]["spec"]["volumes"] if "persistentVolumeClaim" in v}  # fmt: skip
    assert claimed == {o["metadata"]["name"] for o in objects(base) if o["kind"] == "PersistentVolumeClaim"}


def test_guests_cannot_reach_the_admin_listener() -> None:
    policy = next(o for o in objects("broker") if o["kind"] == "NetworkPolicy")
    rules = policy["spec"]["ingress"]
    for rule in rules:
        if {"port": broker.ADMIN_PORT, "protocol": "TCP"} in rule["ports"]:
            assert rule["from"] == [{"podSelector": {}}]
    assert {p["port"] for r in rules for p in r["ports"]} == {broker.GUEST_PORT, broker.ADMIN_PORT}


def test_nobody_but_kubelet_and_prometheus_reaches_the_agent() -> None:
    (policy,) = (o for o in objects("node") if o["kind"] == "NetworkPolicy")
    (daemonset,) = (o for o in objects("node") if o["kind"] == "DaemonSet")
    assert policy["metadata"]["namespace"] == daemonset["metadata"]["namespace"]
    labels = daemonset["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    (rule,) = policy["spec"]["ingress"]
    ports = [
        p["containerPort"] for c in daemonset["spec"]["template"]["spec"]["containers"] for p in c.get("ports", [])
    ]
    assert [p["port"] for p in rule["ports"]] == ports
    assert rule["from"] == [{"podSelector": {}}, {"namespaceSelector": VALUES["monitoring"]["namespaceSelector"]}]


def granted(base: str) -> dict[str, set[str]]:
    """Resource to verbs, of every role that is bound to the agent."""
    roles = {o["metadata"]["name"]: o for o in objects(base) if o["kind"] == "ClusterRole"}
    bound = [roles[o["roleRef"]["name"]] for o in objects(base) if o["kind"] == "ClusterRoleBinding"]
    assert len(bound) == len(roles)
    return {r: set(rule["verbs"]) for role in bound for rule in role["rules"] for r in rule["resources"]}


def test_containers_that_are_added_later_are_admitted_by_the_same_rules() -> None:
    policy = next(o for o in objects("classes") if o["metadata"]["name"] == "kata-gpu-pods")
    assert policy["spec"]["matchConstraints"]["resourceRules"][0]["resources"] == ["pods", "pods/ephemeralcontainers"]


def test_the_agent_may_do_what_it_does_and_nothing_else() -> None:
    assert granted("node") == {
        "resourceslices": {"list", "watch", "create", "update", "delete"},  # ops/publish.py, dra/watch.py
        "resourceclaims": {"get", "list"},  # ops/prepare.py, recover_claims.py
        "resourceclaims/status": {"patch"},  # ops/claim_status.py
        "resourceclaims/driver": {"associated-node:patch"},
        "pods": {"get"},  # ops/consumer.py
        "runtimeclasses": {"get"},  # ops/consumer.py
        "nodes": {"get", "patch"},  # ops/report.py, modes.py
        "nodes/status": {"patch"},  # ops/report.py
        "events": {"create"},  # ops/report.py
        "devicetaintrules": {"list", "create", "delete"},  # ops/owners.py
    }


def test_pods_are_read_and_evicted_by_roles_of_their_own() -> None:
    """The one can be bound in tenants' namespaces alone, the other is there only where the policy says `evict`."""
    (reading,) = (o for o in objects("node") if o["kind"] == "ClusterRole" and "pods" in str(o["rules"]))
    assert reading["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]
    assert granted("node-evict") == {"pods/eviction": {"create"}}
    evict = {**VALUES, "node": VALUES["node"] | {"policy": VALUES["node"]["policy"] | {"drain": "evict"}}}
    assert [applies(d, v) for d in node.EVICTION for v in (VALUES, evict)] == [False, True] * 2
    text = fill(node.POLICY.obj, evict)["data"]["node-policy.yaml"]
    assert parse_policy(load(text, where="rendered"), where="rendered").drain is Drain.EVICT


def taint_rule(pool: str, driver: str = "gpu.nvidia.com") -> Object:
    return {"kind": "DeviceTaintRule", "spec": {"deviceSelector": {"driver": driver, "pool": pool, "device": "d"}}}


def claim(pool: str, driver: str = DRIVER) -> Object:
    results = [{"request": "gpu", "driver": driver, "pool": pool, "device": "gpu-0"}]
    pods = [{"resource": "pods", "name": "p", "uid": "u"}]
    return {"kind": "ResourceClaim", "status": {"allocation": {"devices": {"results": results}}, "reservedFor": pods}}


def event(kind: str, name: str) -> Object:
    return {"kind": "Event", "metadata": {"generateName": "e."}, "involvedObject": {"kind": kind, "name": name}}


@pytest.mark.parametrize(("user", "obj", "allowed"), [
    pytest.param("n1", {"kind": "ResourceSlice", "spec": {"nodeName": "n1", "driver": DRIVER}}, True, id="own-slice"),
    pytest.param("n1", {"kind": "ResourceSlice", "spec": {"nodeName": "n2", "driver": DRIVER}}, False, id="other-node"),
    pytest.param("n1", {"kind": "ResourceSlice", "spec": {"allNodes": True, "driver": DRIVER}}, False, id="all-nodes"),
    pytest.param("n1", {"kind": "ResourceSlice", "spec": {"nodeName": "n1", "driver": "gpu.nvidia.com"}}, False, id="driver"),
    pytest.param("", {"kind": "ResourceSlice", "spec": {"nodeName": "n1", "driver": DRIVER}}, False, id="no-node"),
    pytest.param("n1", {"kind": "Node", "metadata": {"name": "n1"}, "spec": {}}, True, id="own-node-object"),
    pytest.param("n1", {"kind": "Node", "metadata": {"name": "n2"}, "spec": {}}, False, id="other-node-object"),
    pytest.param("n1", event("Node", "n1"), True, id="event-own"),
    pytest.param("n1", event("Node", "n2"), False, id="event-other-node"),
    pytest.param("n1", event("Pod", "n1"), False, id="event-of-a-pod"),
    pytest.param("n1", taint_rule("n1"), True, id="taint-own"),
    pytest.param("n1", taint_rule("n2"), False, id="taint-other-node"),
    pytest.param("n1", {"kind": "DeviceTaintRule", "spec": {"taint": {"effect": "NoExecute"}}}, False, id="taint-all"),
    pytest.param("n1", taint_rule("n1", driver="nic.example.com"), False, id="taint-other-driver"),
    pytest.param("n1", claim("n1"), True, id="claim-own"),
    pytest.param("n1", claim("n2"), False, id="claim-other-node"),
    pytest.param("n1", claim("n1", driver="nic.example.com"), False, id="claim-other-driver"),
    pytest.param("n1", {"kind": "ResourceClaim", "status": {}}, False, id="claim-unallocated"),
    pytest.param("n1", {"kind": "Secret", "metadata": {"name": "n1"}}, False, id="another-kind"),
])  # fmt: skip
def test_admission_keeps_an_agent_to_its_node(user: str, obj: Object, allowed: bool) -> None:
    assert own_node(user, obj, obj) == allowed
    assert own_node(user, obj, obj, "DELETE") == allowed


@pytest.mark.parametrize("field", ["allocation", "reservedFor"])
@pytest.mark.parametrize("value", [None, "other"])
def test_an_agent_changes_no_allocation(field: str, value: str | None) -> None:
    """It would give one GPU to two pods, or take one away from a claim that has it."""
    old, new = claim("n1"), claim("n1")
    if value is None:
        del new["status"][field]
    else:
        new["status"][field] = (
            claim("n1")["status"][field] + [{"name": "q"}]
            if field == "reservedFor"
            else {
                "devices": {
                    "results": [*old["status"]["allocation"]["devices"]["results"], {"driver": "d", "pool": "p"}]
                }
            }
        )
    assert not own_node("n1", new, old)
    new = claim("n1")
    new["status"]["devices"] = [{"driver": DRIVER, "pool": "n1", "device": "gpu-0"}]
    assert own_node("n1", new, old)


def own_node(user: str, obj: Object, old: Object, operation: str = "UPDATE") -> bool:
    """Whether the policy lets the agent of a node do it."""
    spec = fill(node.OWN_NODE_POLICY.obj, VALUES)["spec"]
    extra = {"authentication.kubernetes.io/node-name": [user]} if user else {}
    account = "system:serviceaccount:kata-gpu:kata-gpu-node"
    request = {"operation": operation, "userInfo": {"username": account, "extra": extra}}
    context: Object = {"object": json_to_cel(obj), "oldObject": json_to_cel(old), "request": json_to_cel(request)}
    environment = celpy.Environment()

    def evaluate(expression: str) -> bool:
        try:
            return bool(environment.program(environment.compile(expression)).evaluate(context))
        except CELEvalError:
            return False  # failurePolicy: Fail

    def value(expression: str) -> Any:
        return environment.program(environment.compile(expression)).evaluate(context)

    assert spec["failurePolicy"] == "Fail"
    assert evaluate(spec["matchConditions"][0]["expression"])
    variables = {v["name"]: value(v["expression"]) for v in spec["variables"]}
    context["variables"] = celpy.celtypes.MapType({celpy.celtypes.StringType(k): v for k, v in variables.items()})
    # The API server evaluates all and refuses on the first false one.
    return all(evaluate(v["expression"]) for v in spec["validations"])
