"""The ready gate: GPUs take work only after what was attested equals what is there (gpu-attestation.md 5.4).

The state is one bit for the whole system, set by root, and the driver does not tie it to any report. So the gate looks
twice: the devices whose evidence the broker accepted, and the devices that are there at the moment of setting. Guest
images whose init sets the bit at boot (`nvrc.smi.srs`) leave nothing to gate: the result says so.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from attestation.errors import AttestationError, Untrusted
from attestation.guest.evidence import DeviceEvidence
from attestation.guest.nvml import ConfidentialState
from attestation.values import DeviceKind


class Gate(StrEnum):
    """What the gate did."""

    SET = "set"
    NOT_ENFORCED = "not-enforced"  # the GPUs were ready before anything was attested


class GpuSystem(Protocol):
    """What the gate needs of NVML."""

    def state(self) -> ConfidentialState:
        """Confidential computing state."""

    def uuids(self) -> tuple[str, ...]:
        """GPUs that are there."""

    def ready(self) -> bool:
        """Whether they accept work."""

    def set_ready(self, ready: bool) -> None:
        """Change that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """Outcome, for the report and for the exit code."""

    gate: Gate
    gpus: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Plain mapping."""
        return {"ready-gate": str(self.gate), "gpus": list(self.gpus)}


def gated(gpus: GpuSystem, attest: Callable[[], Sequence[DeviceEvidence]]) -> GateResult:
    """Attest, then open the gate. Whatever goes wrong on the way, the GPUs do not stay ready."""
    try:
        gpus.state().require_production()
        ready_before = gpus.ready()  # before evidence is collected: such a system is not gated by us
        return open_gate(gpus, attest(), ready_before=ready_before)
    except BaseException:
        close_gate(gpus)
        raise


def open_gate(gpus: GpuSystem, attested: Sequence[DeviceEvidence], *, ready_before: bool) -> GateResult:
    """Set the ready state for exactly the attested GPUs; `gated` clears it when this raises.

    Raises Denied in devtools or with confidential mode off, Untrusted when the set of GPUs changed since they attested.
    """
    wanted = tuple(sorted(d.uuid for d in attested if d.kind is DeviceKind.GPU))
    gpus.state().require_production()
    _require_same(gpus, wanted)
    if ready_before:
        return GateResult(gate=Gate.NOT_ENFORCED, gpus=wanted)
    gpus.set_ready(True)
    _require_same(gpus, wanted)  # nothing was plugged in between looking and setting
    if not gpus.ready():
        raise Untrusted("ready-not-set", "the driver did not take the ready state", where="nvml", expected="ready")
    return GateResult(gate=Gate.SET, gpus=wanted)


def close_gate(gpus: GpuSystem) -> None:
    """Clear the ready state, as well as the driver lets us: the error that brought us here matters more."""
    with suppress(AttestationError):
        gpus.set_ready(False)


def _require_same(gpus: GpuSystem, wanted: tuple[str, ...]) -> None:
    present = gpus.uuids()
    if not wanted or present != wanted:
        raise Untrusted(
            "gpu-set-changed",
            "the GPUs that are there are not the ones that attested",
            where="nvml",
            expected=", ".join(wanted) or "at least one GPU",
            got=", ".join(present) or "none",
        )
