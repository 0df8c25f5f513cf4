"""Objects for GPUs that NVIDIA's DRA driver owns: class, admission, taints and companion devices (dra.md 6.3).

Its slices are never edited and its name never used. A class carries the configuration that Kata needs, because that
driver's webhook refuses it in claims; admission is plain CEL, because it needs no server of ours.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kata_gpu.core.gpu import CcMode
from kata_gpu.core.inventory import Inventory, Tee
from runtimeclass.model import table

JsonObject = dict[str, Any]
NVIDIA = "gpu.nvidia.com"
NVIDIA_SOCKET = "plugins/gpu.nvidia.com/dra.sock"  # below kubelet's root
COMPANION = "cc.kata-gpu.dev"  # driver of the companion devices
CLASS = "kata-passthrough-gpu-nvidia"
PREFIX = "cgpu-"  # names of claims and templates of our classes: what lets a pod be checked without a lookup
BUS_ID = "resource.kubernetes.io/pciBusID"
TAINT_API = "resource.k8s.io/v1beta2"  # DeviceTaintRule: v1alpha3 to 1.35, v1beta2 in 1.36
TAINT_KEY = "kata-gpu.dev/unfit"
MANAGED_BY = {"app.kubernetes.io/managed-by": "kata-gpu"}
UPSTREAM_CLASSES = ("kata-qemu-nvidia-gpu", "kata-qemu-nvidia-gpu-snp", "kata-qemu-nvidia-gpu-tdx")
KATA_CLASSES = (*UPSTREAM_CLASSES, *(row.name for row in table()))
OUR_CLASSES = ("confidential-gpu", "confidential-gpu-devtools", "confidential-gpu-ppcie", "passthrough-gpu", CLASS)


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaDevice:
    """A VFIO device in NVIDIA's slices: its name there changes with enumeration, its address does not."""

    name: str
    pool: str
    address: str


def parse_nvidia_slices(slices: Iterable[JsonObject], node: str) -> tuple[NvidiaDevice, ...]:
    """VFIO devices of a node by their `pciBusID`; whatever lacks one cannot be referred to and is left out."""
    found = []
    for obj in slices:
        spec = obj.get("spec") or {}
        if spec.get("driver") != NVIDIA or spec.get("nodeName") != node:
            continue
        for device in spec.get("devices") or []:
            attributes = device.get("attributes") or {}
            kind = (attributes.get("type") or attributes.get(f"{NVIDIA}/type") or {}).get("string")
            address = (attributes.get(BUS_ID) or {}).get("string")
            if kind == "vfio" and address:
                found.append(NvidiaDevice(name=device["name"], pool=spec["pool"]["name"], address=address))
    return tuple(sorted(found, key=lambda d: d.address))


def render_taint_rule(device: NvidiaDevice, node: str, reason: str) -> JsonObject:
    """Keep new allocations off a device of theirs. The name is stable for the address, not for their index."""
    digest = hashlib.sha256(f"{node}/{device.address}".encode()).hexdigest()[:12]
    return {
        "apiVersion": TAINT_API,
        "kind": "DeviceTaintRule",
        "metadata": {"name": f"kata-gpu-{digest}", "labels": MANAGED_BY | {"kata-gpu.dev/node": node}},
        "spec": {
            "deviceSelector": {"driver": NVIDIA, "pool": device.pool, "device": device.name},
            "taint": {"key": TAINT_KEY, "value": reason, "effect": "NoSchedule"},
        },
    }


def render_nvidia_class() -> JsonObject:
    """A class over their VFIO devices that forces iommufd; it is for non-CC passthrough only."""
    own = f"device.attributes['{NVIDIA}']"
    parameters = {
        "apiVersion": "resource.nvidia.com/v1beta1",
        "kind": "VfioDeviceConfig",
        "iommu": {"backendPolicy": "PreferIommuFD", "enableAPIDevice": False},
    }
    expression = f"device.driver == '{NVIDIA}' && {own}.type == 'vfio' && {own}.iommuFDEnabled"
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": CLASS, "labels": MANAGED_BY},
        "spec": {
            "selectors": [{"cel": {"expression": expression}}],
            "config": [{"opaque": {"driver": NVIDIA, "parameters": parameters}}],
        },
    }


def render_companions(inventory: Inventory, devices: Sequence[NvidiaDevice], node: str) -> list[JsonObject]:
    """One device of no cost per GPU of theirs, with the facts that their slices lack. A claim asks for one of each
    with `matchAttribute: resource.kubernetes.io/pciBusID`.
    """
    known = {str(d.function.address): d for d in inventory.devices}
    rows = []
    for device in devices:
        gpu = known.get(device.address)
        if gpu is None:
            continue
        mode = str(gpu.cc_mode) if gpu.cc_mode is not None else ("unknown" if gpu.modes else str(CcMode.OFF))
        rows.append(
            {
                "name": gpu.name,
                "attributes": {
                    "type": {"string": "companion"},
                    "ccMode": {"string": mode},
                    "ccCapable": {"bool": gpu.cc_capable},
                    "teeType": {"string": str(inventory.facts.tee)},
                    "teeReady": {"bool": inventory.facts.tee is not Tee.NONE},
                    "iommufd": {"bool": inventory.iommufd},
                    BUS_ID: {"string": device.address},
                },
            }
        )
    return [{"driver": COMPANION, "nodeName": node, "devices": rows}]


def render_admission(*, runtime_classes: Sequence[str] = KATA_CLASSES) -> list[JsonObject]:
    """Two ValidatingAdmissionPolicies and their bindings. Objects that use none of our classes pass untouched."""
    classes = _cel_list(OUR_CLASSES)
    claims = _policy(
        "kata-gpu-nvidia-claims",
        [("resource.k8s.io", "v1", "resourceclaims"), ("resource.k8s.io", "v1", "resourceclaimtemplates")],
        {
            "spec": "has(object.spec.spec) ? object.spec.spec : object.spec",
            # A claim without requests has a null here.
            "requests": "has(variables.spec.devices.requests) && type(variables.spec.devices.requests) == list ? "
            "variables.spec.devices.requests : []",
            "ours": "variables.requests.filter(r, (has(r.exactly) && r.exactly.deviceClassName in " + classes + ") || "
            "(has(r.firstAvailable) && r.firstAvailable.exists(s, s.deviceClassName in " + classes + ")))",
            "configs": "has(variables.spec.devices.config) ? variables.spec.devices.config : []",
            # Of a template, or of an extended resource: it is named by its pod. An annotation says so as well, but that
            # can be anybody's.
            "generated": "request.userInfo.username.startsWith('system:serviceaccount:kube-system:') || "
            "request.userInfo.username in ['system:kube-controller-manager', 'system:kube-scheduler']",
            "name": "has(object.metadata.name) ? object.metadata.name : "
            "(has(object.metadata.generateName) ? object.metadata.generateName : '')",
        },
        [
            (
                (
                    "size(variables.ours) == 0 || "
                    "!variables.ours.exists(r, has(r.exactly) && has(r.exactly.adminAccess) && r.exactly.adminAccess)"
                ),
                "adminAccess gives no device to a VM: remove it",
            ),
            (
                (
                    "size(variables.ours) == 0 || !variables.configs.exists(c, has(c.opaque) && "
                    f"c.opaque.driver == '{NVIDIA}' && !(has(c.opaque.parameters.iommu) && "
                    "has(c.opaque.parameters.iommu.backendPolicy) && "
                    "c.opaque.parameters.iommu.backendPolicy == 'PreferIommuFD'))"
                ),
                "Kata needs iommufd: leave the configuration to the DeviceClass, or set backendPolicy PreferIommuFD",
            ),
            (
                (
                    "size(variables.ours) == 0 || request.operation == 'UPDATE' || variables.generated || "
                    f"variables.name.startsWith('{PREFIX}')"
                ),
                f"claims and templates of GPU classes are named {PREFIX}..., so that pods can be checked",
            ),
        ],
    )
    pods = _policy(
        "kata-gpu-nvidia-pods",
        [("", "v1", "pods")],
        {
            "claims": "has(object.spec.resourceClaims) ? object.spec.resourceClaims : []",
            "ours": "variables.claims.filter(c, "
            f"(has(c.resourceClaimTemplateName) && c.resourceClaimTemplateName.startsWith('{PREFIX}')) || "
            f"(has(c.resourceClaimName) && c.resourceClaimName.startsWith('{PREFIX}')))",
        },
        [
            (
                (
                    "size(variables.ours) == 0 || (has(object.spec.runtimeClassName) && "
                    f"object.spec.runtimeClassName in {_cel_list(runtime_classes)})"
                ),
                "a GPU claim needs a Kata GPU RuntimeClass: " + ", ".join(runtime_classes),
            ),
            ("size(variables.ours) <= 1", "one GPU claim per pod: ask for several devices in one claim"),
        ],
    )
    return [*claims, *pods]


def _policy(
    name: str,
    resources: Sequence[tuple[str, str, str]],
    variables: Mapping[str, str],
    validations: Sequence[tuple[str, str]],
) -> list[JsonObject]:
    rules = [
        {"apiGroups": [g], "apiVersions": [v], "resources": [r], "operations": ["CREATE", "UPDATE"]}
        for g, v, r in resources
    ]
    api = "admissionregistration.k8s.io/v1"
    policy = {
        "apiVersion": api,
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name, "labels": MANAGED_BY},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": rules},
            "variables": [{"name": n, "expression": e} for n, e in variables.items()],
            "validations": [{"expression": e, "message": m, "reason": "Invalid"} for e, m in validations],
        },
    }
    binding = {
        "apiVersion": api,
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name, "labels": MANAGED_BY},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    }
    return [policy, binding]


def _cel_list(values: Iterable[str]) -> str:
    return "[" + ", ".join(f"'{v}'" for v in values) + "]"
