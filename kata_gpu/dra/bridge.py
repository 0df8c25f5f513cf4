"""The PodResources bridge: kubelet's answer, with the CDI ids of DRA claims where unmodified Kata looks for devices.

Kata asks this socket before it starts a VM (dra.md 4.5). The rule is: never an answer without a device that the pod was
given, nor with one that another pod was given. When kubelet cannot be asked, or lists less than our driver prepared for
the pod or a device that it prepared for another one, the call fails and the sandbox with it; kubelet tries again. A
process of its own, so that restarts of the driver do not stop pods from starting. On the way out the socket file stays:
without it Kata would start the VM and no GPU.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import structlog

from kata_gpu.core.podresources import ClaimDevice, container_devices, require_promised
from kata_gpu.dra._pb import podresources_v1_pb2 as pb
from kata_gpu.dra._pb import podresources_v1_pb2_grpc as rpc
from kata_gpu.errors import KataGpuError

KUBELET_S = 5.0  # Kata's Rust runtime waits 10 s for the whole call, the Go one has no bound
MAX_MESSAGE = 16 << 20  # Kata's own receive limit
WORKERS = 8
_CHANNEL = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),  # a restarted kubelet is found again at once
)
Promises = Callable[[], Mapping[str, str]]


class Bridge(rpc.PodResourcesListerServicer):
    """`promises()` gives what our driver prepared, from its checkpoint: CDI id -> `namespace/pod`."""

    def __init__(self, kubelet: Path, allowed: frozenset[str], promises: Promises) -> None:
        self._channel = grpc.insecure_channel(f"unix:{kubelet}", options=_CHANNEL)
        self._kubelet = rpc.PodResourcesListerStub(self._channel)
        self._allowed = allowed
        self._promises = promises
        self._log = structlog.get_logger("bridge")

    def register(self, server: grpc.Server) -> None:
        """Serve."""
        rpc.add_PodResourcesListerServicer_to_server(self, server)

    def close(self) -> None:
        """Drop the connection to kubelet."""
        self._channel.close()

    def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Kata's question: one pod, translated, or an error and no VM."""
        response = self._ask(self._kubelet.Get, request, context)
        pod = f"{request.pod_namespace}/{request.pod_name}"
        added: set[str] = set()
        try:
            added = translate(response.pod_resources, self._allowed)
            require_promised(added, self._promises(), pod=pod)
        except KataGpuError as exc:
            self._log.error("refused", pod=pod, code=exc.code, error=str(exc))
            context.abort(grpc.StatusCode.UNAVAILABLE, f"{exc.code}: {exc}")
        self._log.info("answered", pod=pod, devices=sorted(added))
        return response

    def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        """As kubelet answers it."""
        return self._ask(self._kubelet.List, request, context)

    def GetAllocatableResources(self, request: Any, context: Any) -> Any:  # noqa: N802
        """As kubelet answers it."""
        return self._ask(self._kubelet.GetAllocatableResources, request, context)

    def _ask(self, call: Any, request: Any, context: Any) -> Any:
        left: float | None = context.time_remaining()
        try:
            return call(request, timeout=KUBELET_S if left is None else min(KUBELET_S, left))
        except grpc.RpcError as exc:
            self._log.warning("kubelet-error", code=str(exc.code()), error=exc.details())
            context.abort(exc.code(), exc.details())


def translate(pod: pb.PodResources, allowed: frozenset[str]) -> set[str]:
    """Add the claims' devices to the containers of `pod`; the CDI ids added or already there, each once per pod.

    A claim of several containers is one device of one VM, so it is listed in the first only.
    """
    seen = {
        f"{d.resource_name}={i}"
        for c in pod.containers
        for d in c.devices
        for i in d.device_ids
        if "/" in d.resource_name
    }
    for container in pod.containers:
        claimed = (
            ClaimDevice(driver=r.driver_name, cdi_ids=tuple(d.name for d in r.cdi_devices))
            for claim in container.dynamic_resources
            for r in claim.claim_resources
        )
        for kind, ids in container_devices(claimed, allowed, seen).items():
            container.devices.add(resource_name=kind, device_ids=ids)
    return seen


def promised_by(load: Callable[[], Any]) -> Promises:
    """The driver's promises, read from its checkpoint at every question; atomic renames make that safe.

    A checkpoint that cannot be read refuses: the driver sets it aside and rebuilds it within seconds.
    """

    def promises() -> Mapping[str, str]:
        return {
            device.cdi_id: f"{entry.ref.namespace}/{entry.pod}"
            for entry in load().claims
            if entry.state == "prepared" and entry.pod
            for device in entry.devices
            if device.cdi_id
        }

    return promises
