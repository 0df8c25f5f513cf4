"""Rules for pods that ask for a GPU in a Kata VM. Each decides from the pod object alone."""

import re

from kata_gpu.core.cdi import KINDS
from kata_gpu.core.kata.initdata import ANNOTATION
from kata_gpu.core.kata.runtime_class import CONFIDENTIAL_CLASS, GPU_CLASS
from kata_gpu.core.lint.rule import Json, Rule, items, mapping

PGPU = "nvidia.com/pgpu"
# What reaches a VM: of NVIDIA's device plugin or as extended resource, and of ours.
PASSTHROUGH_RESOURCES = (PGPU, "nvidia.com/nvswitch", *KINDS.values())
PPCIE_CLASS = r"^kata-nvidia-gpu-ppcie-(snp|tdx)$"
UPSTREAM_PLAIN_CLASS = r"^kata-qemu-nvidia-gpu(-runtime-rs)?$"
PPCIE_GPUS = 8  # node.md 5.2: the guest accepts (4 switches, 8 GPUs) and no other set with switches
CONFIG_PREFIX = "io.katacontainers.config."


def runtime_class(pod: Json) -> str:
    """Name of the RuntimeClass, empty where there is none."""
    name = mapping(pod, "spec").get("runtimeClassName")
    return name if isinstance(name, str) else ""


def limits(pod: Json) -> list[Json]:
    """Limits of every container, init containers included."""
    both = items(pod, "spec", "containers") + items(pod, "spec", "initContainers")
    return [mapping(c, "resources", "limits") for c in both]


def annotations(pod: Json) -> Json:
    """The pod's annotations."""
    return mapping(pod, "metadata", "annotations")


def _is(pattern: str, pod: Json) -> bool:
    return re.search(pattern, runtime_class(pod)) is not None


def _gpu_class_or_no_pgpu(pod: Json) -> bool:
    return _is(GPU_CLASS, pod) or not any(k in lim for lim in limits(pod) for k in PASSTHROUGH_RESOURCES)


def _no_host_gpu(pod: Json) -> bool:
    return not _is(GPU_CLASS, pod) or not any("nvidia.com/gpu" in lim for lim in limits(pod))


def _no_sharing(pod: Json) -> bool:
    return not _is(GPU_CLASS, pod) or not any(
        k.startswith("nvidia.com/mig-") or k.endswith(".shared") for lim in limits(pod) for k in lim
    )


def _no_foreign(pod: Json) -> bool:
    known = ("nvidia.com/gpu", *PASSTHROUGH_RESOURCES)
    return not _is(GPU_CLASS, pod) or all(
        "/" not in k or k in known or k.startswith("nvidia.com/mig-") or k.endswith(".shared")
        for lim in limits(pod)
        for k in lim
    )


def _no_host_namespace(pod: Json) -> bool:
    spec = mapping(pod, "spec")
    return not _is(GPU_CLASS, pod) or not any(spec.get(k) is True for k in ("hostNetwork", "hostPID", "hostIPC"))


def _not_privileged(pod: Json) -> bool:
    every = [c for field in ("containers", "initContainers", "ephemeralContainers") for c in items(pod, "spec", field)]
    return not _is(GPU_CLASS, pod) or not any(mapping(c, "securityContext").get("privileged") is True for c in every)


def _no_host_path(pod: Json) -> bool:
    return not _is(CONFIDENTIAL_CLASS, pod) or not any("hostPath" in v for v in items(pod, "spec", "volumes"))


def _no_ignored_annotation(pod: Json) -> bool:
    return not _is(CONFIDENTIAL_CLASS, pod) or not any(
        k.startswith(CONFIG_PREFIX) and k != ANNOTATION for k in annotations(pod)
    )


def _has_init_data(pod: Json) -> bool:
    return not _is(CONFIDENTIAL_CLASS, pod) or bool(annotations(pod).get(ANNOTATION))


def _init_data_is_measured(pod: Json) -> bool:
    return not _is(UPSTREAM_PLAIN_CLASS, pod) or ANNOTATION not in annotations(pod)


def _no_key_for_devtools(pod: Json) -> bool:
    return runtime_class(pod) != "kata-nvidia-gpu-devtools" or ANNOTATION not in annotations(pod)


def _memory_sized(pod: Json) -> bool:
    return not _is(GPU_CLASS, pod) or all(
        "memory" in mapping(c, "resources", "limits")
        for c in items(pod, "spec", "containers")
        if any(k in mapping(c, "resources", "limits") for k in PASSTHROUGH_RESOURCES) or items(c, "resources", "claims")
    )


def _whole_ppcie_node(pod: Json) -> bool:
    return not _is(PPCIE_CLASS, pod) or all(str(lim[PGPU]) == str(PPCIE_GPUS) for lim in limits(pod) if PGPU in lim)


_CLASS = "has(object.spec.runtimeClassName) && object.spec.runtimeClassName"
_UNPRIVILEGED = "!(has(c.securityContext) && has(c.securityContext.privileged) && c.securityContext.privileged)"
_ALL = "(object.spec.containers + (has(object.spec.initContainers) ? object.spec.initContainers : []))"
_LIMITS = f"{_ALL}.filter(c, has(c.resources) && has(c.resources.limits))"
_PASSTHROUGH = "[" + ", ".join(f"'{name}'" for name in PASSTHROUGH_RESOURCES) + "]"
_ANNOTATIONS = "has(object.metadata.annotations) && object.metadata.annotations"
_INIT = f"has(object.metadata.annotations) && '{ANNOTATION}' in object.metadata.annotations"


def _for(pattern: str, holds: str) -> str:
    return f"!({_CLASS}.matches('{pattern}')) || ({holds})"


RULES: tuple[Rule, ...] = (
    Rule(id="gpu-without-class", holds=_gpu_class_or_no_pgpu,
         cel=f"({_CLASS}.matches('{GPU_CLASS}')) || "
             f"{_LIMITS}.all(c, !c.resources.limits.exists(k, k in {_PASSTHROUGH}))",
         message="asks for a passthrough GPU without a Kata GPU RuntimeClass",
         symptom="the container starts under runc with a VFIO node and no GPU"),
    Rule(id="host-gpu-resource", holds=_no_host_gpu,
         cel=_for(GPU_CLASS, f"{_LIMITS}.all(c, !('nvidia.com/gpu' in c.resources.limits))"),
         message=f"nvidia.com/gpu is a GPU of the host's driver; ask for a claim or {PGPU}",
         symptom="the sandbox fails: unresolvable CDI devices"),
    Rule(id="shared-gpu", holds=_no_sharing,
         cel=_for(GPU_CLASS, f"{_LIMITS}.all(c, c.resources.limits.all(k, !k.startsWith('nvidia.com/mig-') && "
                             "!k.endsWith('.shared')))"),
         message="MIG slices and shared GPUs cannot be given to confidential VMs: the whole GPU is attested",
         symptom="the sandbox fails: unresolvable CDI devices"),
    Rule(id="foreign-device", holds=_no_foreign,
         cel=_for(GPU_CLASS, f"{_LIMITS}.all(c, c.resources.limits.all(k, !k.contains('/') || k in "
                             f"(['nvidia.com/gpu'] + {_PASSTHROUGH}) || "
                             "k.startsWith('nvidia.com/mig-') || k.endsWith('.shared')))"),
         message="asks for a device-plugin resource that has no CDI specification for a VM",
         symptom="the sandbox fails: unresolvable CDI devices"),
    Rule(id="host-namespace", holds=_no_host_namespace,
         cel=_for(GPU_CLASS, "!(has(object.spec.hostNetwork) && object.spec.hostNetwork) && "
                             "!(has(object.spec.hostPID) && object.spec.hostPID) && "
                             "!(has(object.spec.hostIPC) && object.spec.hostIPC)"),
         message="host namespaces do not exist in a VM",
         symptom="the sandbox fails, or the pod silently gets its own namespace"),
    Rule(id="privileged", holds=_not_privileged,
         cel=_for(GPU_CLASS, f"{_ALL}.all(c, {_UNPRIVILEGED}) && (!has(object.spec.ephemeralContainers) || "
                             f"object.spec.ephemeralContainers.all(c, {_UNPRIVILEGED}))"),
         message="a privileged container makes kubelet hand over host devices",
         symptom="the sandbox fails: unresolvable CDI devices"),
    Rule(id="host-path", holds=_no_host_path,
         cel=_for(CONFIDENTIAL_CLASS, "!has(object.spec.volumes) || object.spec.volumes.all(v, !has(v.hostPath))"),
         message="a hostPath volume is the host's: it reads and changes what the pod sees",
         symptom="the mount fails, or model data leaves the VM"),
    Rule(id="ignored-annotation", holds=_no_ignored_annotation,
         cel=_for(CONFIDENTIAL_CLASS, f"!({_ANNOTATIONS}.exists(k, k.startsWith('{CONFIG_PREFIX}') && k != "
                                      f"'{ANNOTATION}'))"),
         message=f"confidential handlers ignore {CONFIG_PREFIX}* other than cc_init_data",
         symptom="the setting has no effect and nobody says so"),
    Rule(id="init-data-missing", holds=_has_init_data,
         cel=_for(CONFIDENTIAL_CLASS, f"{_INIT} && object.metadata.annotations['{ANNOTATION}'] != ''"),
         message=f"annotation {ANNOTATION} is missing",
         symptom="the guest has no broker and the image's default agent policy; GPU keys are denied"),
    Rule(id="init-data-unmeasured", holds=_init_data_is_measured,
         cel=_for(UPSTREAM_PLAIN_CLASS, f"!({_INIT})"),
         message="init-data on a class without a TEE is measured by nothing",
         symptom="the guest is not confidential although its configuration says so"),
    Rule(id="devtools-init-data", holds=_no_key_for_devtools,
         cel=f"!({_CLASS} == 'kata-nvidia-gpu-devtools') || !({_INIT})",
         message="a devtools GPU has its debug interfaces open; no key is released to it",
         symptom="attestation fails at measurement index 9"),
    Rule(id="memory-limit", holds=_memory_sized,
         cel=_for(GPU_CLASS, "object.spec.containers.all(c, !(has(c.resources) && ((has(c.resources.limits) && "
                             f"c.resources.limits.exists(k, k in {_PASSTHROUGH})) || "
                             "(has(c.resources.claims) && c.resources.claims.size() > 0))) || (has(c.resources.limits) "
                             "&& 'memory' in c.resources.limits))"),
         message="a container that uses the GPU has no memory limit; the VM is sized from limits",
         symptom="the VM gets its default 8 GiB and the model loader is killed"),
    Rule(id="ppcie-gpus", holds=_whole_ppcie_node,
         cel=_for(PPCIE_CLASS, f"{_LIMITS}.all(c, !('{PGPU}' in c.resources.limits) || "
                               f"string(c.resources.limits['{PGPU}']) == '{PPCIE_GPUS}')"),
         message=f"Protected PCIe takes the whole node: {PPCIE_GPUS} GPUs and 4 NVSwitches",
         symptom="the guest powers off: unknown device layout"),
)  # fmt: skip
