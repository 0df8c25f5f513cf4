"""DRAPlugin v1 and v1beta1 over one implementation. Every claim of a request gets its own answer (dra.md 1.3)."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import grpc
import structlog

from kata_gpu.core.checkpoint import HeldDevice
from kata_gpu.core.claim import ClaimRef
from kata_gpu.dra._pb import dra_v1_pb2, dra_v1_pb2_grpc, dra_v1beta1_pb2, dra_v1beta1_pb2_grpc
from kata_gpu.errors import KataGpuError, Malformed
from kata_gpu.ops.deadline import Deadline

KUBELET_S = 45.0  # kubelet's deadline of a call, where the client set none
MARGIN_S = 2.0  # the answer must still reach kubelet
MAX_CLAIMS = 1024  # of one request; a pod has at most 256 claims


class Claims(Protocol):
    """The use case behind the service."""

    def prepare(self, ref: ClaimRef, deadline: Deadline) -> tuple[HeldDevice, ...]:
        """Devices of the claim."""
        ...

    def unprepare(self, uid: str, deadline: Deadline) -> None:
        """Nothing left of the claim."""
        ...


class Observer(Protocol):
    """Told about each call of kubelet, for metrics and status."""

    def claim_call(self, call: str, code: str, seconds: float) -> None:
        """`code` is `ok` or the code of the error."""
        ...


class DraService:
    """Turns requests of either version into calls of the use case and errors into the claim's `error`."""

    def __init__(self, claims: Claims, observer: Observer, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._claims = claims
        self._observer = observer
        self._clock = clock
        self._log = structlog.get_logger("dra")

    def register(self, server: grpc.Server) -> None:
        """Serve both versions."""
        dra_v1_pb2_grpc.add_DRAPluginServicer_to_server(_V1(self), server)
        dra_v1beta1_pb2_grpc.add_DRAPluginServicer_to_server(_V1Beta1(self), server)

    def prepare(self, request: Any, context: Any, pb: Any) -> Any:
        """One entry per claim UID of the request; an error of one claim does not hide the others."""
        deadline = self._deadline(context)
        response = pb.NodePrepareResourcesResponse()
        for claim in self._bounded(request.claims):
            entry = response.claims[claim.uid]

            def work(claim: Any = claim) -> tuple[HeldDevice, ...]:
                return self._claims.prepare(_ref(claim), deadline)

            devices, entry.error = self._call("prepare", claim, work)
            for device in devices or ():
                row = entry.devices.add(
                    request_names=[device.request] if device.request else [],
                    pool_name=device.pool,
                    device_name=device.device,
                    cdi_device_ids=[device.cdi_id] if device.cdi_id else [],
                )
                if device.share_id is not None and pb is dra_v1_pb2:
                    row.share_id = device.share_id
        return response

    def unprepare(self, request: Any, context: Any, pb: Any) -> Any:
        """One entry per claim UID of the request."""
        deadline = self._deadline(context)
        response = pb.NodeUnprepareResourcesResponse()
        for claim in self._bounded(request.claims):

            def work(uid: str = claim.uid) -> None:
                self._claims.unprepare(uid, deadline)

            response.claims[claim.uid].error = self._call("unprepare", claim, work)[1]
        return response

    def _call(
        self, call: str, claim: Any, work: Callable[[], tuple[HeldDevice, ...] | None]
    ) -> tuple[tuple[HeldDevice, ...] | None, str]:
        started = self._clock()
        result, code, error = None, "ok", ""
        try:
            result = work()
        except KataGpuError as exc:
            code, error = exc.code, f"{exc.code}: {exc}" + (f" ({exc.hint})" if exc.hint else "")
            self._log.warning("claim-failed", call=call, uid=claim.uid, code=code, error=error)
        except Exception:  # noqa: BLE001 - outermost shell: one claim must not fail the batch
            code, error = "internal", "internal: unexpected error, see the log of the driver"
            self._log.exception("claim-crashed", call=call, uid=claim.uid)
        seconds = self._clock() - started
        self._observer.claim_call(call, code, seconds)
        self._log.info("claim", call=call, uid=claim.uid, code=code, seconds=round(seconds, 4))
        return result, error

    def _deadline(self, context: Any) -> Deadline:
        left: float | None = context.time_remaining()  # None where the client set no deadline
        return Deadline.after(min(KUBELET_S, KUBELET_S if left is None else left) - MARGIN_S, self._clock)

    @staticmethod
    def _bounded(claims: Any) -> Iterable[Any]:
        if len(claims) > MAX_CLAIMS:
            raise Malformed("too-many-claims", "request holds too many claims", expected=MAX_CLAIMS, got=len(claims))
        rows: Iterable[Any] = claims
        return rows


def _ref(claim: Any) -> ClaimRef:
    return ClaimRef(namespace=claim.namespace, name=claim.name, uid=claim.uid)


class _V1(dra_v1_pb2_grpc.DRAPluginServicer):
    def __init__(self, service: DraService) -> None:
        self._service = service

    def NodePrepareResources(self, request: Any, context: Any) -> Any:  # noqa: N802
        """`k8s.io.kubelet.pkg.apis.dra.v1`."""
        return self._service.prepare(request, context, dra_v1_pb2)

    def NodeUnprepareResources(self, request: Any, context: Any) -> Any:  # noqa: N802
        """`k8s.io.kubelet.pkg.apis.dra.v1`."""
        return self._service.unprepare(request, context, dra_v1_pb2)


class _V1Beta1(dra_v1beta1_pb2_grpc.DRAPluginServicer):
    def __init__(self, service: DraService) -> None:
        self._service = service

    def NodePrepareResources(self, request: Any, context: Any) -> Any:  # noqa: N802
        """`k8s.io.kubelet.pkg.apis.dra.v1beta1`: no share ids."""
        return self._service.prepare(request, context, dra_v1beta1_pb2)

    def NodeUnprepareResources(self, request: Any, context: Any) -> Any:  # noqa: N802
        """`k8s.io.kubelet.pkg.apis.dra.v1beta1`."""
        return self._service.unprepare(request, context, dra_v1beta1_pb2)
