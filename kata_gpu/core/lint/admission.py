"""The object rules as ValidatingAdmissionPolicies: CEL in the API server, no webhook of ours.

`failurePolicy: Fail`: a policy that cannot be evaluated refuses. Bindings deny; `render` writes both.
"""

from collections.abc import Sequence
from typing import Any

from kata_gpu.core.kata.initdata import ANNOTATION
from kata_gpu.core.lint import claim, pod
from kata_gpu.core.lint.rule import Rule

API_VERSION = "admissionregistration.k8s.io/v1"  # GA since Kubernetes 1.30


def _policy(name: str, group: str, version: str, resources: list[str], rules: Sequence[Rule],
            variables: list[dict[str, str]]) -> dict[str, Any]:  # fmt: skip
    return {
        "apiVersion": API_VERSION,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "kata-gpu"}},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [group], "apiVersions": [version], "operations": ["CREATE", "UPDATE"],
                     "resources": resources}
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


def policies() -> tuple[dict[str, Any], ...]:
    """Three policies with their bindings, in apply order."""
    requests = [{"name": "requests", "expression": claim.REQUESTS_CEL}]
    return (
        # `kubectl debug` adds containers to a running pod through a resource of its own.
        _policy("kata-gpu-pods", "", "v1", ["pods", "pods/ephemeralcontainers"], pod.RULES, []),
        _binding("kata-gpu-pods"),
        _policy("kata-gpu-claims", "resource.k8s.io", "v1", ["resourceclaims", "resourceclaimtemplates"], claim.RULES,
                requests),
        _binding("kata-gpu-claims"),
        *_class_policy(),
    )  # fmt: skip
