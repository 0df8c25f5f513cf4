"""Reads from the API server what the conformance report judges. Reads only."""

from kata_gpu.core.api_errors import NotFound
from kata_gpu.core.conformance import GANG_GROUPS, Observed
from kata_gpu.ports import JsonObject, Kube

REQUEST_S = 30.0  # a page of 500 objects
_DRA = "/apis/resource.k8s.io/v1"


def observe(kube: Kube) -> Observed:
    """One look at the cluster. What is not served counts as absent. Raises Unavailable and Refused."""
    served = {r["name"] for r in _get(kube, _DRA).get("resources") or [] if "/" not in r["name"]}

    def listed(path: str, *, there: bool = True) -> list[JsonObject]:
        return kube.list(path, timeout_s=REQUEST_S)[0] if there else []

    return Observed(
        version=str(kube.get("/version", timeout_s=REQUEST_S).get("gitVersion", "")),
        groups=frozenset(group for group in GANG_GROUPS if _get(kube, f"/apis/{group}")),
        dra_v1=frozenset(served),
        slices=listed(f"{_DRA}/resourceslices", there="resourceslices" in served),
        claims=listed(f"{_DRA}/resourceclaims", there="resourceclaims" in served),
        device_classes=listed(f"{_DRA}/deviceclasses", there="deviceclasses" in served),
        runtime_classes=listed("/apis/node.k8s.io/v1/runtimeclasses"),
        nodes=listed("/api/v1/nodes"),
        pods=listed("/api/v1/pods"),
        daemon_sets=listed("/apis/apps/v1/daemonsets"),
        policies=frozenset(
            str(p["metadata"]["name"])
            for p in listed("/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies")
        ),
    )


def _get(kube: Kube, path: str) -> JsonObject:
    try:
        return kube.get(path, timeout_s=REQUEST_S)
    except NotFound:
        return {}
