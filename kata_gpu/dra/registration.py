"""Plugin registration: who we are and where, in far less than kubelet's one second, whatever else goes on."""

import threading
from dataclasses import dataclass
from typing import Any

import grpc
import structlog

from kata_gpu.dra._pb import registration_v1_pb2 as pb
from kata_gpu.dra._pb import registration_v1_pb2_grpc as rpc

PLUGIN_TYPE = "DRAPlugin"
VERSIONS = ("v1.DRAPlugin", "v1beta1.DRAPlugin", "v1alpha1.DRAResourceHealth")  # kubelet takes its first match


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What kubelet last said. `asked` is False until it called GetInfo."""

    asked: bool = False
    ok: bool = False
    error: str = ""


class Registration(rpc.RegistrationServicer):
    """Answers from memory only: no file, no lock of others, no hardware."""

    def __init__(self, driver: str, endpoint: str) -> None:
        self._info = pb.PluginInfo(type=PLUGIN_TYPE, name=driver, endpoint=endpoint, supported_versions=VERSIONS)
        self._lock = threading.Lock()
        self._state = Registered()
        self._log = structlog.get_logger("registration")

    @property
    def state(self) -> Registered:
        """For readiness and metrics."""
        with self._lock:
            return self._state

    def GetInfo(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.PluginInfo:  # noqa: ARG002, N802
        """Kubelet's question, also its liveness probe."""
        with self._lock:
            self._state = Registered(asked=True, ok=self._state.ok, error=self._state.error)
        return self._info

    def NotifyRegistrationStatus(  # noqa: N802
        self,
        request: pb.RegistrationStatus,
        context: Any,  # noqa: ARG002
    ) -> pb.RegistrationStatusResponse:
        """Kubelet's verdict. A refusal is shown and we keep serving: kubelet tries again."""
        with self._lock:
            self._state = Registered(asked=True, ok=request.plugin_registered, error=request.error)
        if request.plugin_registered:
            self._log.info("registered")
        else:
            self._log.error("registration-refused", error=request.error)
        return pb.RegistrationStatusResponse()
