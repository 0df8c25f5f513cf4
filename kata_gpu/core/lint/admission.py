"""The object rules as ValidatingAdmissionPolicies: CEL in the API server, no webhook of ours.

`failurePolicy: Fail`: a policy that cannot be evaluated refuses. Bindings deny; `render` writes both.
"""

from collections.abc import Sequence
from typing import Any

from kata_gpu.core.claim import DRIVER
from kata_gpu.core.kata.initdata import ANNOTATION
from kata_gpu.core.lint import claim, pod
from kata_gpu.core.lint.rule import Rule

API_VERSION = "admissionregistration.k8s.io/v1"  # GA since Kubernetes 1.30


def _policy(name: str, group: str, version: str, resources: list[str], rules: Sequence[Rule],
            variables: list[dict[str, str]], *operations: str) -> dict[str, Any]:  # fmt: skip
    return {
        "apiVersion": API_VERSION,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "kata-gpu"}},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [group], "apiVersions": [version],
                     "operations": list(operations or ("CREATE", "UPDATE")), "resources": resources}
                ]
            },
            **({"variables": variables} if variables else {}),
            "validations": [
                {"expression": rule.cel, "message": f"[{rule.id}] {rule.message}", "reason": "Invalid"}
                for rule in rules
            ],
        },
    }  # fmt: skip


def _binding(name: str, **extra: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "kata-gpu"}},
        "spec": {"policyName": name, "validationActions": ["Deny"], **extra},
    }


CLASS_POLICY = "kata-gpu-class"
_MEASURED = (
    "!(has(object.spec.runtimeClassName) && object.spec.runtimeClassName == params.metadata.name) || "
    "params.metadata.labels['kata-gpu.dev/confidential'] == 'true' || "
    f"!(has(object.metadata.annotations) && '{ANNOTATION}' in object.metadata.annotations)"
)


def _class_policy() -> tuple[dict[str, Any], dict[str, Any]]:
    """Init-data on a RuntimeClass that says of itself that nothing measures it.

    `kata-nvidia-gpu` stands for the cluster's own TEE or for none, so its name does not tell: the policy is evaluated
    with every RuntimeClass of ours as parameter. The claim's class is another object: that half is `lint --live`.
    """
    policy = _policy(CLASS_POLICY, "", "v1", ["pods"], [], [])
    policy["spec"] |= {
        "paramKind": {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass"},
        "validations": [
            {"expression": _MEASURED, "reason": "Invalid",
             "message": "[class-not-confidential] the RuntimeClass has no TEE but the pod brings init-data"}
        ],
    }  # fmt: skip
    ours = {"matchLabels": {"app.kubernetes.io/part-of": "kata-gpu"}}
    return policy, _binding(CLASS_POLICY, paramRef={"selector": ours, "parameterNotFoundAction": "Allow"})


ONE_POD_POLICY = "kata-gpu-one-pod"
_RESULTS = "object.status.allocation.devices.results"
_GIVES_NODES = (
    "has(object.status.allocation) && has(object.status.allocation.devices) && "
    f"has({_RESULTS}) && "
    f"{_RESULTS}.exists(r, r.driver == '{DRIVER}' && !(has(r.adminAccess) && r.adminAccess))"
)
_NOBODY_JOINS = (
    "!has(object.status.reservedFor) || size(object.status.reservedFor) <= 1 || (has(oldObject.status.reservedFor) && "
    "object.status.reservedFor.all(c, oldObject.status.reservedFor.exists(o, o.uid == c.uid)))"
)


def one_pod_policy() -> tuple[dict[str, Any], dict[str, Any]]:
    """A claim with a GPU of ours is reserved for one pod at a time: kubelet prepares a claim once and hands its device
    nodes to every pod that it is reserved for, without asking the driver whether each of them is a VM (dra.md 1.6).
    """
    policy = _policy(ONE_POD_POLICY, "resource.k8s.io", "v1", ["resourceclaims/status"], [], [], "UPDATE")
    policy["spec"]["validations"] = [
        {"expression": f"!({_GIVES_NODES}) || {_NOBODY_JOINS}", "reason": "Invalid",
         "message": "[claim-shared] a VFIO device belongs to one VM: give each pod a claim of its own, by a template"}
    ]  # fmt: skip
    return policy, _binding(ONE_POD_POLICY)


def policies() -> tuple[dict[str, Any], ...]:
    """Four policies with their bindings, in apply order."""
    requests = [{"name": "requests", "expression": claim.REQUESTS_CEL}]
    return (
        # `kubectl debug` adds containers to a running pod through a resource of its own.
        _policy("kata-gpu-pods", "", "v1", ["pods", "pods/ephemeralcontainers"], pod.RULES, []),
        _binding("kata-gpu-pods"),
        _policy("kata-gpu-claims", "resource.k8s.io", "v1", ["resourceclaims", "resourceclaimtemplates"], claim.RULES,
                requests),
        _binding("kata-gpu-claims"),
        *_class_policy(),
        *one_pod_policy(),
    )  # fmt: skip
