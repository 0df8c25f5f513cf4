"""Whose GPU it becomes: a device node of VFIO is for a VM, and a pod without one would get it into its container.

No admission policy sees a pod together with its claim and the claim's allocation; kubelet asks the driver before the
sandbox exists, so it is refused here (docs/threat-model.md). One GET per claim, one more where only the handler tells.
"""

from kata_gpu.core.claim import Claim, require_name
from kata_gpu.core.kata.runtime_class import starts_gpu_vm
from kata_gpu.errors import Misconfigured
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ports import JsonObject, Kube

GET_S = 5.0  # each of two GETs; the rest of kubelet's 45 s belongs to the host
HINT = "give the pod a runtimeClassName such as kata-nvidia-gpu-snp"


def require_vm(claim: Claim, kube: Kube, deadline: Deadline) -> None:
    """The pod that the claim is reserved for runs in a VM that takes GPUs: its RuntimeClass says so, or its handler.

    Raises Misconfigured where neither does, where the pod is another one by now and where the claim is no pod's; and
    what the API answers: a pod that cannot be read gets nothing. Admin access hands no device node out.
    """
    if all(d.admin for d in claim.devices):
        return
    consumer, where = claim.consumer, f"pod {claim.ref.namespace}/{claim.consumer.name}"
    if consumer.resource != "pods":
        raise Misconfigured(
            "consumer-not-a-pod", "one VM gets a GPU, so its claim is one pod's", where=f"claim {claim.ref}",
            expected="reserved for a pod", got=f"{consumer.resource} {consumer.name}",
        )  # fmt: skip
    pod = kube.get(
        f"/api/v1/namespaces/{claim.ref.namespace}/pods/{consumer.name}",
        timeout_s=deadline.remaining("pod lookup", at_most=GET_S),
    )
    if (uid := _field(pod, "metadata", "uid")) != consumer.uid:
        raise Misconfigured("pod-replaced", "another pod took this name", where=where, expected=consumer.uid, got=uid)
    name = _field(pod, "spec", "runtimeClassName")
    if starts_gpu_vm(name):
        return
    handler = _handler(kube, name, where, deadline) if name else ""
    if not starts_gpu_vm(handler):
        raise Misconfigured(
            "pod-without-vm", "the pod claims a GPU for a VM and runs in none", where=where,
            expected="a RuntimeClass or handler of Kata for GPUs",
            got=f"runtimeClassName {name} with handler {handler}" if name else "no runtimeClassName", hint=HINT,
        )  # fmt: skip


def _handler(kube: Kube, name: str, where: str, deadline: Deadline) -> str:
    require_name("runtime-class-name", name, where=where)
    path = f"/apis/node.k8s.io/v1/runtimeclasses/{name}"
    found = kube.get(path, timeout_s=deadline.remaining("RuntimeClass lookup", at_most=GET_S))
    return str(found.get("handler", ""))


def _field(obj: JsonObject, part: str, field: str) -> str:
    """Text, empty where there is none."""
    inner = obj.get(part)
    value = inner.get(field) if isinstance(inner, dict) else None
    return value if isinstance(value, str) else ""
