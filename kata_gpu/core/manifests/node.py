"""The node component: DaemonSet of agent and bridge, its rights, and what it may write."""

from collections.abc import Mapping
from typing import Any

from kata_gpu.core.beside_nvidia import COMPANION, NVIDIA
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.manifests.template import Document
from kata_gpu.core.podresources import BRIDGE_SOCKET

NAME = "kata-gpu-node"
LABELS = {"app.kubernetes.io/name": NAME, "app.kubernetes.io/part-of": "kata-gpu"}
HEALTH_PORT = 9440


def _meta(name: str = NAME, *, namespaced: bool = True, **extra: Any) -> dict[str, Any]:
    return {"name": name, **({"namespace": "${namespace}"} if namespaced else {}), "labels": dict(LABELS), **extra}


def _rule(groups: str, resources: list[str], verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": [groups], "resources": resources, "verbs": verbs}


NAMESPACE = Document(
    file="namespace",
    obj={
        "apiVersion": "v1",
        "kind": "Namespace",
        # The agent binds devices and writes sysfs: it cannot run under a stricter profile.
        "metadata": {"name": "${namespace}", "labels": {"pod-security.kubernetes.io/enforce": "privileged"}},
    },
)

ACCOUNT = Document(
    file="node-rbac",
    when="node.enabled",
    obj={"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta()},
)


def _granted(name: str, rules: list[dict[str, Any]], *, file: str = "node-rbac", when: str = "node.enabled") -> tuple[
    Document, Document
]:  # fmt: skip
    """A ClusterRole and its binding to the agent."""
    api = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{api}/v1", "kind": "ClusterRole", "metadata": _meta(name, namespaced=False), "rules": rules}
    binding = {
        "apiVersion": f"{api}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": _meta(name, namespaced=False),
        "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": "${namespace}"}],
    }
    return Document(file=file, when=when, obj=role), Document(file=file, when=when, obj=binding)


# Exactly the calls of `ops` and `dra`.
ROLE, BINDING = _granted(
    NAME,
    [
        _rule("resource.k8s.io", ["resourceslices"], ["list", "watch", "create", "update", "delete"]),
        _rule("resource.k8s.io", ["resourceclaims"], ["get", "list"]),
        _rule("resource.k8s.io", ["resourceclaims/status"], ["patch"]),
        # status.devices of claims allocated on the token's own node, and of no other driver's devices (1.36).
        _rule("resource.k8s.io", ["resourceclaims/driver"], ["associated-node:patch"]) | {"resourceNames": [DRIVER]},
        _rule("node.k8s.io", ["runtimeclasses"], ["get"]),
        # Labels, taints and conditions of its own node; the admission policy below keeps it to that node.
        _rule("", ["nodes"], ["get", "patch"]),
        _rule("", ["nodes/status"], ["patch"]),
        _rule("", ["events"], ["create"]),
        # Beside NVIDIA's driver: keep pods off its unfit devices.
        _rule("resource.k8s.io", ["devicetaintrules"], ["list", "create", "delete"]),
    ],
)
# Whether the one pod of a claim runs in a VM, before it gets a device: asked for by the name that the scheduler wrote
# into its claim, never listed. By itself, so that it can be bound in the namespaces of GPU tenants alone: a claim
# elsewhere is then refused.
POD_ROLE, POD_BINDING = _granted(f"{NAME}-pods", [_rule("", ["pods"], ["get"])])
# Neither RBAC nor admission can keep an eviction to the pods of one node: it is granted only where it is wanted.
EVICTION = _granted(
    f"{NAME}-evict",
    [_rule("", ["pods/eviction"], ["create"])],
    file="node-evict",
    when="node.enabled node.policy.drain=evict",
)

_OUR_ACCOUNT = f"request.userInfo.username == 'system:serviceaccount:${{namespace}}:{NAME}'"
_OWN_NODE = "authentication.kubernetes.io/node-name"  # bound service-account tokens carry the node's name

_NODE_OF_TOKEN = (
    f"has(request.userInfo.extra) && '{_OWN_NODE}' in request.userInfo.extra ? "
    f"request.userInfo.extra['{_OWN_NODE}'][0] : ''"
)
_OURS = f"['{DRIVER}', '{COMPANION}']"
_SELECTOR = "variables.target.spec.deviceSelector"
_RESULTS = "variables.target.status.allocation.devices.results"
_ABOUT = "variables.target.involvedObject"
# Kind -> whose node it is about: a Node itself, a slice of it, a rule about its pool, a claim with a device of it, and
# events of the node alone.
_OWN = {
    "Node": "variables.target.metadata.name == variables.node",
    "ResourceSlice": "has(variables.target.spec.nodeName) && variables.target.spec.nodeName == variables.node",
    "DeviceTaintRule": f"has({_SELECTOR}) && has({_SELECTOR}.pool) && {_SELECTOR}.pool == variables.node",
    "Event": f"{_ABOUT}.kind == 'Node' && has({_ABOUT}.name) && {_ABOUT}.name == variables.node",
    "ResourceClaim": "has(variables.target.status.allocation) && has(variables.target.status.allocation.devices) && "
                     f"{_RESULTS}.exists(r, r.driver in {_OURS} && r.pool == variables.node)",
}  # fmt: skip
_DRIVER = {
    "ResourceSlice": f"variables.target.spec.driver in {_OURS}",
    "DeviceTaintRule": f"has({_SELECTOR}.driver) && {_SELECTOR}.driver == '{NVIDIA}'",
}
# A claim's allocation and consumers are the scheduler's: an agent says only how its devices are.
_KEPT = " && ".join(
    f"(has(object.status.{field}) == has(oldObject.status.{field}) && "
    f"(!has(object.status.{field}) || object.status.{field} == oldObject.status.{field}))"
    for field in ("allocation", "reservedFor")
)


def _by_kind(rows: Mapping[str, str], otherwise: str) -> str:
    return " : ".join([*(f"variables.target.kind == '{kind}' ? ({rule})" for kind, rule in rows.items()), otherwise])


def _on(group: str, version: str, resources: list[str], *operations: str) -> dict[str, Any]:
    return {"apiGroups": [group], "apiVersions": [version], "resources": resources, "operations": list(operations)}


OWN_NODE_POLICY = Document(
    file="node-own-node",
    when="node.enabled",
    obj={
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": _meta("kata-gpu-own-node", namespaced=False),
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    _on("resource.k8s.io", "*", ["resourceslices", "devicetaintrules"], "CREATE", "UPDATE", "DELETE"),
                    _on("resource.k8s.io", "*", ["resourceclaims/status"], "UPDATE"),
                    _on("", "v1", ["nodes", "nodes/status"], "UPDATE"),
                    _on("", "v1", ["events"], "CREATE"),
                ]
            },
            "matchConditions": [{"name": "our-agent", "expression": _OUR_ACCOUNT}],
            "variables": [
                {"name": "node", "expression": _NODE_OF_TOKEN},
                {"name": "target", "expression": "request.operation == 'DELETE' ? oldObject : object"},
            ],
            "validations": [
                {"expression": "variables.node != ''",
                 "message": "the agent's token names no node", "reason": "Forbidden"},
                {"expression": _by_kind(_OWN, "false"),
                 "message": "an agent writes only its own node's objects", "reason": "Forbidden"},
                {"expression": _by_kind(_DRIVER, "true"),
                 "message": "an agent writes only about its own drivers' devices", "reason": "Forbidden"},
                {"expression": _by_kind({"ResourceClaim": _KEPT}, "true"),
                 "message": "an agent changes no allocation", "reason": "Forbidden"},
            ],
        },
    },
)  # fmt: skip

OWN_NODE_BINDING = Document(
    file="node-own-node",
    when="node.enabled",
    obj={
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": _meta("kata-gpu-own-node", namespaced=False),
        "spec": {"policyName": "kata-gpu-own-node", "validationActions": ["Deny"]},
    },
)

POLICY = Document(
    file="node-daemonset",
    when="node.enabled",
    obj={
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _meta("kata-gpu-node-policy"),
        "data": {
            "node-policy.yaml": "apiVersion: config.kata-gpu.dev/v1alpha1\nkind: NodePolicy\n"
            "bind: ${node.policy.bind}\nbackend: ${node.policy.backend}\ndrain: ${node.policy.drain}\n"
            "devices:\n  - select: all\n    mode: ${node.policy.mode}\n"
        },
    },
)  # fmt: skip


def _host(name: str, path: str, kind: str = "") -> dict[str, Any]:
    return {"name": name, "hostPath": {"path": path, **({"type": kind} if kind else {})}}


def _mount(name: str, path: str, *, read_only: bool = False) -> dict[str, Any]:
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


_AGENT = {
    "name": "agent",
    "image": "${node.image}",
    "args": [
        "agent", "run", "--policy", "/etc/kata-gpu/node-policy.yaml", "--listen", f"0.0.0.0:{HEALTH_PORT}",
        "--bridge", BRIDGE_SOCKET, "--kubelet-root", "${node.kubeletRoot}", "--mode", "${node.mode}",
    ],
    "env": [
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
    ],
    # Privileged: it writes sysfs, opens /dev/vfio and looks for holders in every process (docs/operations.md).
    "securityContext": {"privileged": True, "readOnlyRootFilesystem": True},
    "resources": "${node.resources}",
    "ports": [{"name": "health", "containerPort": HEALTH_PORT}],
    "livenessProbe": {
        "httpGet": {"path": "/healthz", "port": "health"},
        "initialDelaySeconds": 10,
        "periodSeconds": 10,
    },
    "readinessProbe": {"httpGet": {"path": "/readyz", "port": "health"}, "periodSeconds": 5},
    "volumeMounts": [
        _mount("sys", "/sys"),
        _mount("dev", "/dev"),
        _mount("modules", "/lib/modules", read_only=True),
        _mount("run", "/run/kata-gpu"),
        _mount("state", "/var/lib/kata-gpu"),
        _mount("cdi", "/var/run/cdi"),
        _mount("plugins", "${node.kubeletRoot}/plugins"),
        _mount("registry", "${node.kubeletRoot}/plugins_registry"),
        _mount("device-plugins", "${node.kubeletRoot}/device-plugins"),
        _mount("pod-resources", "${node.kubeletRoot}/pod-resources", read_only=True),
        _mount("policy", "/etc/kata-gpu", read_only=True),
    ],
}  # fmt: skip
_BRIDGE = {
    "name": "bridge",
    "image": "${node.image}",
    "args": ["bridge", "run", "--socket", BRIDGE_SOCKET, "--kubelet-root", "${node.kubeletRoot}"],
    # Root only because kubelet's socket belongs to root; it has no capability and sees no device.
    "securityContext": {
        "runAsUser": 0,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    },
    "resources": {"requests": {"cpu": "5m", "memory": "40Mi"}, "limits": {"memory": "100Mi"}},
    "volumeMounts": [
        _mount("run", "/run/kata-gpu"),
        _mount("pod-resources", "${node.kubeletRoot}/pod-resources", read_only=True),
        _mount("plugins", "${node.kubeletRoot}/plugins", read_only=True),  # the checkpoint: what claims were promised
    ],
}

DAEMONSET = Document(
    file="node-daemonset",
    when="node.enabled",
    obj={
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": _meta(),
        "spec": {
            "selector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": dict(LABELS)},
                "spec": {
                    "serviceAccountName": NAME,
                    "priorityClassName": "system-node-critical",
                    "hostPID": True,  # the in-use guard reads /proc of every process
                    "nodeSelector": "${node.nodeSelector}",
                    "tolerations": [{"operator": "Exists"}],
                    "terminationGracePeriodSeconds": 30,
                    "containers": [_AGENT, _BRIDGE],
                    "volumes": [
                        _host("sys", "/sys"),
                        _host("dev", "/dev"),
                        _host("modules", "/lib/modules"),
                        _host("run", "/run/kata-gpu", "DirectoryOrCreate"),
                        _host("state", "/var/lib/kata-gpu", "DirectoryOrCreate"),
                        _host("cdi", "/var/run/cdi", "DirectoryOrCreate"),
                        _host("plugins", "${node.kubeletRoot}/plugins", "Directory"),
                        _host("registry", "${node.kubeletRoot}/plugins_registry", "Directory"),
                        _host("device-plugins", "${node.kubeletRoot}/device-plugins", "Directory"),
                        _host("pod-resources", "${node.kubeletRoot}/pod-resources", "Directory"),
                        {"name": "policy", "configMap": {"name": "kata-gpu-node-policy"}},
                    ],
                },
            },
        },
    },
)

# Kubelet's probes come from the node itself, which no policy keeps out.
NETWORK = Document(
    file="node-network",
    when="node.enabled",
    obj={
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _meta(),
        "spec": {
            "podSelector": {"matchLabels": {"app.kubernetes.io/name": NAME}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {}}, {"namespaceSelector": "${monitoring.namespaceSelector}"}],
                    "ports": [{"port": HEALTH_PORT, "protocol": "TCP"}],
                }
            ],
        },
    },
)

DOCUMENTS = (
    ACCOUNT, ROLE, BINDING, POD_ROLE, POD_BINDING, OWN_NODE_POLICY, OWN_NODE_BINDING, NETWORK, POLICY, DAEMONSET,
)  # fmt: skip
