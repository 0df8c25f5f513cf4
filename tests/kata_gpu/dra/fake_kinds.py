"""The resources that the driver and the installer use, and a Status answer."""

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


class ApiError(Exception):
    """A Status answer."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(f"{code} {reason}: {message}")
        self.code = code
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


@dataclass(frozen=True, slots=True)
class Kind:
    """One resource."""

    api: str  # "v1" or "group/version"
    resource: str
    kind: str
    namespaced: bool = False
    status: bool = False


_ADMISSION = "admissionregistration.k8s.io/v1"
_DRA = "resource.k8s.io/v1"
KINDS = {
    (k.api, k.resource): k
    for k in (
        Kind("v1", "namespaces", "Namespace"),
        Kind("v1", "nodes", "Node", status=True),
        Kind("v1", "pods", "Pod", namespaced=True, status=True),
        Kind("v1", "events", "Event", namespaced=True),
        Kind("v1", "serviceaccounts", "ServiceAccount", namespaced=True),
        Kind("v1", "configmaps", "ConfigMap", namespaced=True),
        Kind("v1", "services", "Service", namespaced=True, status=True),
        Kind("v1", "persistentvolumeclaims", "PersistentVolumeClaim", namespaced=True, status=True),
        Kind("apps/v1", "daemonsets", "DaemonSet", namespaced=True, status=True),
        Kind("apps/v1", "deployments", "Deployment", namespaced=True, status=True),
        Kind("batch/v1", "jobs", "Job", namespaced=True, status=True),
        Kind("scheduling.k8s.io/v1", "priorityclasses", "PriorityClass"),
        Kind("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy", namespaced=True),
        Kind("rbac.authorization.k8s.io/v1", "clusterroles", "ClusterRole"),
        Kind("rbac.authorization.k8s.io/v1", "clusterrolebindings", "ClusterRoleBinding"),
        Kind("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", namespaced=True, status=True),
        Kind(_DRA, "resourceslices", "ResourceSlice"),
        Kind(_DRA, "deviceclasses", "DeviceClass"),
        Kind(_DRA, "resourceclaims", "ResourceClaim", namespaced=True, status=True),
        Kind(_DRA, "resourceclaimtemplates", "ResourceClaimTemplate", namespaced=True),
        Kind("resource.k8s.io/v1beta2", "devicetaintrules", "DeviceTaintRule", status=True),
        Kind(_ADMISSION, "validatingadmissionpolicies", "ValidatingAdmissionPolicy", status=True),
        Kind(_ADMISSION, "validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
        Kind(_ADMISSION, "mutatingadmissionpolicies", "MutatingAdmissionPolicy"),
        Kind(_ADMISSION, "mutatingadmissionpolicybindings", "MutatingAdmissionPolicyBinding"),
        Kind("node.k8s.io/v1", "runtimeclasses", "RuntimeClass"),
        Kind("config.kata-gpu.dev/v1alpha1", "nodepolicies", "NodePolicy", status=True),
    )
}
