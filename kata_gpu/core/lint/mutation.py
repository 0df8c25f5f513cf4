"""Optional: the API server adds init-data to confidential pods that bring none, from a ConfigMap of their namespace.

MutatingAdmissionPolicy: GA in Kubernetes 1.36, behind a feature gate before. The annotation is written by the host's
side either way; what the guest believes is the digest that its TEE reports, and the release policy names that.
"""

from typing import Any

from kata_gpu.core.kata.initdata import ANNOTATION
from kata_gpu.core.kata.runtime_class import CONFIDENTIAL_CLASS

API_VERSION = "admissionregistration.k8s.io/v1"
NAME = "kata-gpu-init-data"  # of policy, binding and ConfigMap
KEY = "annotation"  # in the ConfigMap: the value that `kata-gpu initdata build --annotation` prints
_LABELS = {"app.kubernetes.io/part-of": "kata-gpu"}

CONDITIONS = (
    {"name": "confidential-class",
     "expression": "has(object.spec.runtimeClassName) && "
                   f"object.spec.runtimeClassName.matches('{CONFIDENTIAL_CLASS}')"},
    {"name": "brings-none",
     "expression": "!has(object.metadata.annotations) || "
                   f"!('{ANNOTATION}' in object.metadata.annotations)"},
)  # fmt: skip
VALUE = f"has(params.data) && '{KEY}' in params.data ? params.data['{KEY}'] : ''"
# `Object` is the API server's own type: it exists nowhere else. Keys with dots need a map, not fields.
PATCH = f"Object{{metadata: Object.metadata{{annotations: {{'{ANNOTATION}': variables.value}}}}}}"


def mutation() -> tuple[dict[str, Any], dict[str, Any]]:
    """The policy and its binding. A namespace without the ConfigMap is left alone: `init-data-missing` then refuses."""
    policy = {
        "apiVersion": API_VERSION,
        "kind": "MutatingAdmissionPolicy",
        "metadata": {"name": NAME, "labels": dict(_LABELS)},
        "spec": {
            "failurePolicy": "Fail",
            "reinvocationPolicy": "Never",
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
                ]
            },
            "matchConditions": [dict(c) for c in CONDITIONS],
            "variables": [{"name": "value", "expression": VALUE}],
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": PATCH}}],
        },
    }
    binding = {
        "apiVersion": API_VERSION,
        "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": NAME, "labels": dict(_LABELS)},
        # A name without a namespace: looked up in the namespace of the pod.
        "spec": {"policyName": NAME, "paramRef": {"name": NAME, "parameterNotFoundAction": "Allow"}},
    }
    return policy, binding
