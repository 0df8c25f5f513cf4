"""Where the API server keeps each kind that we install: object to URL path."""

from collections.abc import Mapping
from typing import Any

from kata_gpu.errors import Misconfigured

_PLURAL = {
    "Namespace": "namespaces",
    "ServiceAccount": "serviceaccounts",
    "ConfigMap": "configmaps",
    "Service": "services",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "DaemonSet": "daemonsets",
    "Deployment": "deployments",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "DeviceClass": "deviceclasses",
    "RuntimeClass": "runtimeclasses",
    "NetworkPolicy": "networkpolicies",
    "PodDisruptionBudget": "poddisruptionbudgets",
    "ServiceMonitor": "servicemonitors",
    "MutatingAdmissionPolicy": "mutatingadmissionpolicies",
    "MutatingAdmissionPolicyBinding": "mutatingadmissionpolicybindings",
    "ValidatingAdmissionPolicy": "validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}


def object_path(obj: Mapping[str, Any]) -> str:
    """Absolute API path of one object. Raises Misconfigured for a kind that this toolkit does not install."""
    plural = _PLURAL.get(str(obj.get("kind")))
    if plural is None:
        raise Misconfigured("install-kind", "not a kind of this toolkit", got=obj.get("kind"))
    version = str(obj["apiVersion"])
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    namespace = obj["metadata"].get("namespace")
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{scope}/{plural}/{obj['metadata']['name']}"
