"""Rules that need the cluster: classes, nodes and claims beside the pod."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kata_gpu.core.kata.initdata import ANNOTATION
from kata_gpu.core.kata.runtime_class import is_confidential, starts_gpu_vm
from kata_gpu.core.lint.claim import CLASSES, CONFIDENTIAL_CLASSES, classes
from kata_gpu.core.lint.pod import annotations, runtime_class
from kata_gpu.core.lint.rule import Json, Scope, Violation, items, mapping

_MODE_OF_CLASS = {
    "confidential-gpu": "on",
    "confidential-gpu-devtools": "devtools",
    "confidential-gpu-ppcie": "ppcie",
    "passthrough-gpu": "off",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the linter looks up: objects by name, as plain mappings. Claims and templates are those of the namespace."""

    runtime_classes: Mapping[str, Json]
    device_classes: Mapping[str, Json]
    claims: Mapping[str, Json]
    claim_templates: Mapping[str, Json]
    nodes: Sequence[Json]


def appraise_cluster(pod: Json, cluster: Cluster, subject: str) -> tuple[Violation, ...]:
    """Every cluster rule that the pod breaks."""
    found: list[Violation] = []

    def say(rule: str, message: str, symptom: str) -> None:
        found.append(Violation(rule=rule, scope=Scope.CLUSTER, subject=subject, message=message, symptom=symptom))

    name = runtime_class(pod)
    claimed = _claims(pod, cluster)
    # A RuntimeClass of another name may still stand for Kata's handler.
    handler = cluster.runtime_classes.get(name)
    starts = name if handler is None else str(handler.get("handler", ""))
    if not starts_gpu_vm(name) and not starts_gpu_vm(starts):
        for kind, ref, claim in claimed:
            if claim is not None and classes(claim) & set(CLASSES):
                say("claim-without-class", f"{kind} {ref} asks for a GPU for a VM, the pod starts none",
                    "the driver refuses the claim (pod-without-vm), the pod stays pending")  # fmt: skip
    if not name:
        return tuple(found)
    if handler is None:
        say("class-missing", f"RuntimeClass {name} does not exist", "the pod is rejected")
        return tuple(found)
    labels = mapping(handler, "metadata", "labels")
    # Upstream's RuntimeClasses carry no label of ours: their handler tells.
    confidential = labels.get("kata-gpu.dev/confidential") == "true" or is_confidential(starts)
    mode = labels.get("kata-gpu.dev/cc-mode")
    wanted = set()
    for kind, ref, claim in claimed:
        if claim is None:
            say("claim-missing", f"{kind} {ref} does not exist", "the pod stays pending")
            continue
        wanted |= classes(claim)
    for device_class in sorted(wanted):
        if device_class in _MODE_OF_CLASS and device_class not in cluster.device_classes:
            say("device-class-missing", f"DeviceClass {device_class} does not exist", "the claim stays pending")
        if _MODE_OF_CLASS.get(device_class, mode) != mode and mode is not None:
            say("mode-differs", f"DeviceClass {device_class} gives GPUs in mode {_MODE_OF_CLASS[device_class]}, "
                f"RuntimeClass {name} runs on nodes in mode {mode}", "no node satisfies both")  # fmt: skip
    if not confidential and wanted & set(CONFIDENTIAL_CLASSES):
        say("class-not-confidential", f"RuntimeClass {name} has no TEE but the claim asks for a confidential GPU",
            "the GPU encrypts to a VM that the host can read")  # fmt: skip
    if not confidential and ANNOTATION in annotations(pod) and "kata-nvidia-gpu" in name:
        say("class-not-confidential", f"RuntimeClass {name} has no TEE but the pod brings init-data",
            "nothing measures the init-data; the broker denies every key")  # fmt: skip
    selector = mapping(handler, "scheduling", "nodeSelector")
    if selector and not any(_matches(selector, node) for node in cluster.nodes):
        missing = ", ".join(f"{k}={v}" for k, v in sorted(selector.items()))
        say("no-node", f"no node has the labels of RuntimeClass {name}: {missing}", "the pod stays pending")
    return tuple(found)


def _claims(pod: Json, cluster: Cluster) -> list[tuple[str, str, Json | None]]:
    found: list[tuple[str, str, Json | None]] = []
    for ref in items(mapping(pod, "spec"), "resourceClaims"):
        if isinstance(name := ref.get("resourceClaimName"), str):
            found.append(("ResourceClaim", name, cluster.claims.get(name)))
        elif isinstance(name := ref.get("resourceClaimTemplateName"), str):
            found.append(("ResourceClaimTemplate", name, cluster.claim_templates.get(name)))
    return found


def _matches(selector: Json, node: Json) -> bool:
    labels = mapping(node, "metadata", "labels")
    return all(labels.get(k) == v for k, v in selector.items())
