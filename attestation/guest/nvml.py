"""GPUs of this VM through NVML (gpu-attestation.md 5.1). One GPU that cannot attest fails the whole collection."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

from attestation.errors import Denied, Malformed, Unavailable
from attestation.guest.evidence import DeviceEvidence
from attestation.values import Architecture, Nonce

_ARCHITECTURES = {
    pynvml.NVML_DEVICE_ARCH_HOPPER: Architecture.HOPPER,
    pynvml.NVML_DEVICE_ARCH_BLACKWELL: Architecture.BLACKWELL,
}
_ENVIRONMENTS = {0: "unavailable", 1: "simulation", 2: "production"}
_MULTI_GPU = {0: "none", 1: "protected-pcie", 2: "nvlink-encryption"}
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidentialState:
    """What the driver says about confidential computing. Unsigned: it steers this client and proves nothing."""

    enabled: bool
    devtools: bool
    environment: str
    multi_gpu: str

    def to_json(self) -> dict[str, bool | str]:
        """Plain mapping."""
        return {
            "enabled": self.enabled,
            "devtools": self.devtools,
            "environment": self.environment,
            "multi_gpu": self.multi_gpu,
        }

    def require_production(self) -> None:
        """Denied unless confidential mode is on, and not in its development variant."""
        if not self.enabled:
            raise Denied(
                "cc-mode-off",
                "confidential mode is off: this GPU cannot attest (on its host: kata-gpu node setup --cc-mode on)",
                where="nvml",
                expected="on",
                got="off",
            )
        if self.devtools:
            raise Denied("cc-mode-devtools", "the GPU is in devtools mode: memory is open to the host", where="nvml")


class NvmlGpus:
    """All GPUs that NVML lists, opened for as long as the context lasts."""

    def state(self) -> ConfidentialState:
        """Confidential computing state of the system. A driver that does not know the question has it off.

        Raises Unavailable.
        """
        settings = pynvml.c_nvmlSystemConfComputeSettings_v1_t()
        try:
            status = pynvml.nvmlSystemGetConfComputeSettings(pynvml.byref(settings))
        except pynvml.NVMLError_FunctionNotFound:
            status = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
        if status == pynvml.NVML_SUCCESS:
            state, multi = settings, _MULTI_GPU.get(settings.multiGpuMode, str(settings.multiGpuMode))
        else:
            try:
                state, multi = pynvml.nvmlSystemGetConfComputeState(), "unknown"
            except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
                return ConfidentialState(enabled=False, devtools=False, environment="unavailable", multi_gpu="none")
            except pynvml.NVMLError as exc:
                raise Unavailable("nvml", f"nvmlSystemGetConfComputeState failed: {exc}", where="nvml state") from exc
        return ConfidentialState(
            enabled=bool(state.ccFeature),
            devtools=bool(state.devToolsMode),
            environment=_ENVIRONMENTS.get(state.environment, str(state.environment)),
            multi_gpu=multi,
        )

    def uuids(self) -> tuple[str, ...]:
        """UUIDs of every GPU, sorted. Unsigned; used to notice that the set changed."""
        return tuple(sorted(_text(_call("uuid", pynvml.nvmlDeviceGetUUID, h)) for h in self._handles()))

    def collect(self, nonce: Nonce) -> tuple[DeviceEvidence, ...]:
        """Report and chain of every GPU over this nonce, in NVML's order."""
        self.state().require_production()
        return tuple(self._device(handle, nonce) for handle in self._handles())

    def ready(self) -> bool:
        """Whether the GPUs accept work."""
        return bool(_call("ready state", pynvml.nvmlSystemGetConfComputeGpusReadyState))

    def set_ready(self, ready: bool) -> None:
        """Let the GPUs accept work, or stop that. Needs root."""
        _call("ready state", pynvml.nvmlSystemSetConfComputeGpusReadyState, int(ready))

    def _handles(self) -> list[Any]:
        count = _call("device count", pynvml.nvmlDeviceGetCount)
        return [_call(f"gpu {index}", pynvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]

    def _device(self, handle: Any, nonce: Nonce) -> DeviceEvidence:
        uuid = _text(_call("uuid", pynvml.nvmlDeviceGetUUID, handle))
        number = _call(uuid, pynvml.nvmlDeviceGetArchitecture, handle)
        arch = _ARCHITECTURES.get(number)
        if arch is None:
            raise Denied(
                "gpu-architecture", "this GPU cannot attest", where=uuid, expected="Hopper or Blackwell", got=number
            )
        report = _call(uuid, pynvml.nvmlDeviceGetConfComputeGpuAttestationReport, handle, nonce.raw)
        chain = _call(uuid, pynvml.nvmlDeviceGetConfComputeGpuCertificate, handle)
        return DeviceEvidence(
            arch=arch,
            uuid=uuid,
            report=_sized(report.attestationReport, report.attestationReportSize, f"{uuid} report"),
            chain=_sized(chain.attestationCertChain, chain.attestationCertChainSize, f"{uuid} certificates"),
        )


@contextmanager
def open_nvml() -> Iterator[NvmlGpus]:
    """Load and initialise NVML; Unavailable where there is no driver."""
    _call("initialisation", pynvml.nvmlInit)
    try:
        yield NvmlGpus()
    finally:
        pynvml.nvmlShutdown()


def _call(where: str, function: Callable[..., T], *args: Any) -> T:
    try:
        return function(*args)
    except pynvml.NVMLError as exc:
        name = getattr(function, "__name__", "nvml")
        raise Unavailable("nvml", f"{name} failed: {exc}", where=f"nvml {where}") from exc


def _sized(buffer: Any, size: int, where: str) -> bytes:
    """The filled part of a fixed buffer. A size beyond the buffer is a broken driver, not an invitation to read on."""
    if not 0 < size <= len(buffer):
        raise Malformed("nvml-size", "impossible size", where=where, expected=f"1 to {len(buffer)}", got=size)
    return bytes(buffer[:size])


def _text(value: str | bytes) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
