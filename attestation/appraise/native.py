"""The native appraisal policy: proven facts and reference values to trust vectors. The default; upstream's Rego
policies can replace it per class (`appraise/rego.py`). Signatures, freshness, binding and debug were judged before.
"""

from collections.abc import Sequence
from datetime import datetime

from attestation.appraise.ear import (
    APPROVED_BOOT,
    APPROVED_CONFIG,
    GENUINE_HARDWARE,
    NO_CONFIG,
    SAFE_CONFIG,
    UNRECOGNISED_HARDWARE,
    UNRECOGNISED_RUNTIME,
    UNSAFE_HARDWARE,
    UNSUPPORTABLE_CONFIG,
    Appraisal,
    Status,
    TrustVector,
    tier,
)
from attestation.appraise.facts import CpuFacts, DeviceFacts, PlatformFacts, SampleDeviceFacts
from attestation.appraise.rules import References, check_reference
from attestation.findings import Finding, Result, failed, passed
from attestation.values import DeviceKind, GpuMode, JsonValue, Level, Tee
from attestation.verify.device_claims import SWITCH_LOCKED

POLICY_ID = "native-1"
# Reference value names of upstream's default policy, so that one set of values serves both engines.
_MEASUREMENT_NAME = {Tee.SNP: "snp_launch_measurement", Tee.TDX: "mr_td", Tee.SAMPLE: "launch_digest"}
# TDX launches with the firmware in MRTD; kernel and command line are in these registers (tee.md 2.5).
_RTMRS = ("rtmr_1", "rtmr_2")


def appraise_cpu(cpu: CpuFacts, *, references: References, now: datetime) -> Appraisal:
    """`cpu0`: executables from reference values, hardware from TCB status, configuration from debug and migration."""
    findings = list(_executables(cpu, references, now))
    boot = UNRECOGNISED_RUNTIME if any(f.result is Result.FAIL for f in findings) else APPROVED_BOOT
    hardware, configuration = _hardware(cpu), _configuration(cpu)
    findings += [hardware, configuration]
    vector = TrustVector(
        {
            "hardware": GENUINE_HARDWARE if hardware.result is Result.PASS else UNSAFE_HARDWARE,
            "configuration": SAFE_CONFIG if configuration.result is Result.PASS else UNSUPPORTABLE_CONFIG,
            "executables": boot,
        }
    )
    return Appraisal(submod="cpu0", vector=vector, policy_id=POLICY_ID, findings=tuple(findings))


def appraise_device(submod: str, device: DeviceFacts | SampleDeviceFacts, *, cpu_status: Status) -> Appraisal:
    """A GPU or switch: vendor reference values decided its level. Without an affirmed CPU nothing is claimed.

    Who asks a device is the measured guest, so a device says nothing where the guest is not known (tee.md 4.5, P0).
    A sample device is no hardware that anybody knows; only a policy of the operator's may say otherwise.
    """
    if isinstance(device, SampleDeviceFacts):
        finding = failed("device", "sample-device", expected="a device that signs", got="sampledevice", subject=submod)
        vector = TrustVector({"hardware": UNRECOGNISED_HARDWARE})
        return Appraisal(submod=submod, vector=vector, policy_id=POLICY_ID, findings=(finding,))
    if cpu_status is not Status.AFFIRMING:
        finding = failed(
            "cpu-affirmed", "cpu-not-affirmed", expected="an affirmed CPU TEE", got=cpu_status, subject=submod
        )
        return Appraisal(submod=submod, vector=TrustVector({"hardware": 0}), policy_id=POLICY_ID, findings=(finding,))
    known, mode = device.level is Level.TRUSTED, _device_mode(submod, device)
    findings = (
        passed("firmware-known", device.level, expected="trusted", subject=submod)
        if known
        else device.untrusted("firmware-known", submod),
        mode,
    )
    vector = TrustVector(
        {
            "hardware": GENUINE_HARDWARE,
            "executables": APPROVED_BOOT if known else UNRECOGNISED_RUNTIME,
            "configuration": APPROVED_CONFIG if mode.result is Result.PASS else NO_CONFIG,
        }
    )
    return Appraisal(submod=submod, vector=vector, policy_id=POLICY_ID, findings=findings)


def _device_mode(submod: str, device: DeviceFacts) -> Finding:
    """A GPU is in a confidential mode; a switch has none, but is locked: its routing cannot be changed any more."""
    if device.kind is DeviceKind.NVSWITCH:
        if device.claims.get(SWITCH_LOCKED) is True:
            return passed("switch-lock", "locked", subject=submod)
        return failed("switch-lock", "switch-unlocked", expected="locked", got="not locked", subject=submod)
    if device.mode in (GpuMode.ON, GpuMode.PPCIE):
        return passed("confidential-mode", device.mode, expected="on|ppcie", subject=submod)
    return failed("confidential-mode", "mode-not-proven", expected="on|ppcie", got=device.mode, subject=submod)


def appraise_platform(facts: PlatformFacts, *, references: References, now: datetime) -> tuple[Appraisal, ...]:
    """One appraisal per submodule, CPU first."""
    cpu = appraise_cpu(facts.cpu, references=references, now=now)
    devices = (
        appraise_device(name, device, cpu_status=cpu.status)
        for name, device in facts.submods()
        if not isinstance(device, CpuFacts)
    )
    return (cpu, *devices)


def guest_measured(appraisals: Sequence[Appraisal]) -> bool:
    """Whether a policy affirmed what the CPU TEE launched: reference values know this guest."""
    return any(
        a.submod == "cpu0" and tier(a.vector.values.get("executables", 0)) is Status.AFFIRMING for a in appraisals
    )


def claim(claims: JsonValue, *path: str) -> JsonValue:
    """A nested claim, None where any step is absent."""
    for name in path:
        claims = claims.get(name) if isinstance(claims, dict) else None
    return claims


def tee_claim(cpu: CpuFacts, *path: str) -> JsonValue:
    """A claim of this TEE; verifiers nest them under the TEE's name as upstream does, or give them bare."""
    nested = cpu.claims.get(str(cpu.tee))
    return claim(nested if isinstance(nested, dict) else dict(cpu.claims), *path)


def _executables(cpu: CpuFacts, references: References, now: datetime) -> tuple[Finding, ...]:
    def check(name: str, got: str, label: str) -> Finding:
        return check_reference(name, got, check=label, subject="cpu0", references=references, now=now)

    first = check(_MEASUREMENT_NAME[cpu.tee], cpu.measurement, "measurement")
    if cpu.tee is not Tee.TDX:
        return (first,)
    return (first, *(check(name, str(tee_claim(cpu, "quote", "body", name) or ""), name) for name in _RTMRS))


def _hardware(cpu: CpuFacts) -> Finding:
    if cpu.tee is Tee.TDX:
        status = tee_claim(cpu, "tcb_status")
        if status != "UpToDate":
            return failed("tcb-status", "tcb-not-up-to-date", expected="UpToDate", got=status, subject="cpu0")
        if (expired := tee_claim(cpu, "collateral_expiration_status")) not in (None, "0"):
            return failed("tcb-collateral", "collateral-expired", expected="0", got=expired, subject="cpu0")
    return passed("tcb-status", "current", subject="cpu0")


def _configuration(cpu: CpuFacts) -> Finding:
    if cpu.tee is Tee.SNP and tee_claim(cpu, "policy_migrate_ma") is True:
        return failed("migration", "migration-agent", expected="no migration agent", got="allowed", subject="cpu0")
    debug = tee_claim(cpu, "policy_debug_allowed"), tee_claim(cpu, "td_attributes", "debug"), tee_claim(cpu, "debug")
    if True in debug:  # the hard gate refuses it too
        return failed("debug", "debug-enabled", expected="off", got="on", subject="cpu0")
    return passed("debug", "off", expected="off", subject="cpu0")
