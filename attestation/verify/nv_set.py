"""A set of devices against an expectation: one immutable outcome per expected device, one verdict over all of them.

How many devices there must be comes from policy or from the operator, never from the evidence: a collector that drops
a device would otherwise pass (gpu-attestation.md 5.3, 6.1).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from attestation.errors import AttestationError, Malformed, Misconfigured, Untrusted
from attestation.findings import Finding, Result, failed, passed
from attestation.formats.nv_evidence import MAX_DEVICES, NvEvidence
from attestation.values import DeviceKind, Level, Nonce
from attestation.verify.nv_gpu import Collateral, DeviceProof, prove_device
from attestation.verify.topology import check_set


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How many of each kind there must be; at least one device."""

    gpus: int
    switches: int = 0

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.switches < 0 or not 1 <= self.gpus + self.switches <= MAX_DEVICES:
            raise Misconfigured(
                "expected-devices", "number of expected devices", expected=f"1 to {MAX_DEVICES}", got=str(self)
            )

    def __str__(self) -> str:
        return f"gpus={self.gpus},switches={self.switches}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceOutcome:
    """What became of one device: a proof, or the error that refused it. `position` is its place in the evidence."""

    position: int
    proof: DeviceProof | None
    refusal: AttestationError | None

    @property
    def level(self) -> Level:
        """The level that this device reached."""
        return self.proof.device.level if self.proof is not None else Level.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class SetResult:
    """Outcomes in the order of the evidence, and findings about the set. Ask `.level`; there is no truth value."""

    outcomes: tuple[DeviceOutcome, ...]
    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        if not self.outcomes or not self.findings:
            raise Misconfigured("set-empty", "a result over nothing")

    @property
    def level(self) -> Level:
        """`none` where any device or any check over the set failed, else the lowest level of all devices."""
        if any(f.result is Result.FAIL for f in self.findings):
            return Level.NONE
        reached = {outcome.level for outcome in self.outcomes}
        return next(level for level in (Level.NONE, Level.AUTHENTIC, Level.TRUSTED) if level in reached)

    @property
    def proofs(self) -> tuple[DeviceProof, ...]:
        """Verified devices, in the order of the evidence."""
        return tuple(o.proof for o in self.outcomes if o.proof is not None)

    def __bool__(self) -> bool:
        raise TypeError("ask .level")


def verify_set(
    evidence: Sequence[NvEvidence], *, expected: Expected, nonce: Nonce | None, collateral: Collateral
) -> SetResult:
    """Verify every device, then the set. A refused device is an outcome; it cannot change another one's.

    Raises Malformed for an empty set. Anything that is not an error of ours propagates: no verdict is better than a
    wrong one.
    """
    if not 1 <= len(evidence) <= MAX_DEVICES:
        raise Malformed("evidence-empty", "number of devices", expected=f"1 to {MAX_DEVICES}", got=len(evidence))
    outcomes = tuple(_outcome(position, one, nonce, collateral) for position, one in enumerate(evidence))
    findings = [_counts(outcomes, expected)]
    findings += [
        failed(
            "device", o.refusal.code, expected=o.refusal.expected, got=o.refusal.got or o.refusal.what,
            hint=str(o.refusal), subject=f"device {o.position}",
        )
        for o in outcomes
        if o.refusal is not None
    ]  # fmt: skip
    missing = max(expected.gpus + expected.switches - len(outcomes), 0)
    absent = tuple(
        DeviceOutcome(
            position=len(outcomes) + n, proof=None, refusal=Untrusted("device-missing", "an expected device is missing")
        )
        for n in range(missing)
    )
    proofs = tuple(o.proof for o in outcomes if o.proof is not None)
    return SetResult(outcomes=outcomes + absent, findings=(*findings, *check_set(proofs)))


def _outcome(position: int, one: NvEvidence, nonce: Nonce | None, collateral: Collateral) -> DeviceOutcome:
    try:
        proof = prove_device(one.report, one.chain, collateral, nonce=nonce, arch=one.arch)
    except AttestationError as exc:
        return DeviceOutcome(position=position, proof=None, refusal=exc)
    return DeviceOutcome(position=position, proof=proof, refusal=None)


def _counts(outcomes: Sequence[DeviceOutcome], expected: Expected) -> Finding:
    kinds = [o.proof.device.kind for o in outcomes if o.proof is not None]
    gpus, switches = kinds.count(DeviceKind.GPU), kinds.count(DeviceKind.NVSWITCH)
    got = f"gpus={gpus},switches={switches}"
    if (gpus, switches) != (expected.gpus, expected.switches):
        return failed("device-count", "device-count", expected=expected, got=got)
    return passed("device-count", got, expected=expected)
