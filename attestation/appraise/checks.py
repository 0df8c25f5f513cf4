"""Release checks: one function per check, each giving a finding; `check_release` runs them all.

A verdict here has one finding per condition and per *expected* device, so that an operator sees every reason at once
and a missing device is a failure and not an absence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from attestation.appraise.devices import check_hosts
from attestation.appraise.ear import Appraisal, Status
from attestation.appraise.facts import DeviceFacts, PlatformFacts
from attestation.appraise.native import tee_claim
from attestation.appraise.policy import GpuConditions, KeyConditions, SwitchConditions
from attestation.appraise.rules import References, Unchecked, check_rule
from attestation.findings import Finding, Result, Verdict, failed, passed
from attestation.values import BindingProfile, DeviceKind, GpuMode, Level
from attestation.verify.topology import PPCIE_GPUS, PPCIE_SWITCHES

_MILAN = "milan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How often the key left so far, and whether it is labelled `test`."""

    releases: int
    test_key: bool


def check_release(
    facts: PlatformFacts,
    appraisals: Sequence[Appraisal],
    conditions: KeyConditions,
    usage: Usage,
    *,
    simulated: bool,
    references: References,
    now: datetime,
) -> Verdict:
    """Every condition of one key against one attested platform."""
    findings = [check_origin(facts, usage, simulated=simulated)]
    findings += _check_cpu(facts, appraisals, conditions, references, now)
    findings += [check_init_data(facts, conditions)]
    if conditions.binding_profile is not None:
        findings += [check_binding(facts, conditions.binding_profile)]
    if conditions.gpus:
        findings += _check_gpus(facts, appraisals, conditions.gpus, references, now)
    if conditions.switches:
        findings += _check_switches(facts, appraisals, conditions.switches, references, now)
    findings += [check_window(conditions, now), check_count(conditions, usage)]
    return Verdict.of(findings)


def check_origin(facts: PlatformFacts, usage: Usage, *, simulated: bool) -> Finding:
    """Forgeable evidence (sample TEE, sample device, simulated roots) releases nothing but keys labelled `test`."""
    forgeable = simulated or facts.forgeable
    if forgeable and not usage.test_key:
        return failed("origin", "forgeable-evidence", expected="hardware, or a key labelled test", got=facts.cpu.tee)
    return passed("origin", "simulated, test key" if forgeable else "hardware")


def _check_cpu(
    facts: PlatformFacts,
    appraisals: Sequence[Appraisal],
    conditions: KeyConditions,
    references: References,
    now: datetime,
) -> Iterator[Finding]:
    cpu, want = facts.cpu, conditions.cpu
    # Labelled test keys may go to the sample TEE; check_origin has already refused every other key.
    if cpu.tee in want.tees:
        yield passed("cpu-tee", cpu.tee, subject="cpu0")
    else:
        yield failed("cpu-tee", "cpu-tee-not-accepted", expected="|".join(want.tees), got=cpu.tee, subject="cpu0")
    yield _check_status(appraisals, "cpu0", want.affirming)
    yield check_rule(
        want.measurement, cpu.measurement, check="cpu-measurement", subject="cpu0", references=references, now=now
    )
    if want.product is not None:
        yield check_rule(want.product, cpu.product, check="cpu-product", subject="cpu0", references=references, now=now)
    elif cpu.product.lower() == _MILAN:
        yield failed(
            "cpu-product", "milan-not-opted-in", expected='product = "milan" in the policy', got="milan", subject="cpu0"
        )
    if want.chip_id is not None:
        yield check_rule(want.chip_id, cpu.chip_id, check="cpu-chip", subject="cpu0", references=references, now=now)
    for part, floor in want.tcb_minimum:
        got = tee_claim(cpu, f"reported_tcb_{part}")
        if type(got) is int and got >= floor:
            yield passed(f"cpu-tcb-{part}", got, expected=f"at least {floor}", subject="cpu0")
        else:
            yield failed(f"cpu-tcb-{part}", "cpu-tcb-too-old", expected=f"at least {floor}", got=got, subject="cpu0")


def _check_status(appraisals: Sequence[Appraisal], submod: str, affirming: bool | Unchecked = True) -> Finding:
    status = next((a.status for a in appraisals if a.submod == submod), Status.CONTRAINDICATED)
    if isinstance(affirming, Unchecked):
        return Finding(
            check="status",
            result=Result.WARN,
            expected="unchecked",
            got=status,
            hint=affirming.reason,
            subject=submod,
        )
    if status is Status.AFFIRMING:
        return passed("status", status, expected="affirming", subject=submod)
    reason = next((f for a in appraisals if a.submod == submod for f in a.findings if f.result is Result.FAIL), None)
    return failed(
        "status",
        reason.code if reason else "not-affirming",
        expected=reason.expected if reason else "affirming",
        got=reason.got if reason else status,
        hint=f"appraised {status}",
        subject=submod,
    )


def check_init_data(facts: PlatformFacts, conditions: KeyConditions) -> Finding:
    """Init-data comes from the host, so its digest must be one that the key names."""
    want, got = conditions.init_data, facts.init_data_digest
    if isinstance(want, Unchecked):
        return Finding(
            check="init-data", result=Result.WARN, expected="unchecked", got=str(got or "none"), hint=want.reason
        )
    if got is None:
        return failed("init-data", "init-data-absent", expected="init-data bound by the TEE", got="none")
    if got not in want:
        return failed("init-data", "init-data-unknown", expected="|".join(map(str, want[:3])), got=got)
    return passed("init-data", got)


def check_binding(facts: PlatformFacts, want: BindingProfile) -> Finding:
    """The profile of the session. Whoever cuts the offer out of a guest's request gains nothing for such a key."""
    got = str(facts.binding.get("profile"))
    if got != want:
        return failed("binding-profile", "binding-profile-too-weak", expected=want, got=got)
    return passed("binding-profile", got)


def _check_gpus(
    facts: PlatformFacts,
    appraisals: Sequence[Appraisal],
    want: GpuConditions,
    references: References,
    now: datetime,
) -> Iterator[Finding]:
    gpus = facts.of_kind(DeviceKind.GPU)
    yield _check_number("gpu-count", len(gpus), want.count, at_least=want.at_least)
    yield check_distinct("gpu-distinct", gpus)
    if any(gpu.mode is GpuMode.PPCIE for gpu in gpus):
        yield check_board(facts)
    if want.hosts is not None:
        yield from check_hosts(facts.cpu.chip_id, [gpu.chip_id for gpu in gpus], want.hosts)
    for index, gpu in enumerate(gpus):
        name = f"gpu{index}"
        if gpu.level.at_least(want.level):
            waived = Result.WARN if want.level_reason else Result.PASS
            yield Finding(
                check="gpu-level",
                result=waived,
                expected=want.level,
                got=gpu.level,
                hint=want.level_reason,
                subject=name,
            )
        else:
            yield gpu.untrusted("gpu-level", name)
        if not want.level_reason:
            yield _check_status(appraisals, name)
        yield _member("gpu-arch", gpu.arch, want.arch, name)
        yield _member("gpu-mode", gpu.mode, want.mode, name)
        yield check_rule(
            want.driver_version, gpu.driver_version, check="gpu-driver", subject=name, references=references, now=now
        )
        yield check_rule(
            want.vbios_version,
            gpu.vbios_version,
            check="gpu-vbios",
            subject=name,
            references=references,
            now=now,
            base=16,
        )
        if want.identity is not None:
            yield check_rule(
                want.identity, gpu.chip_id, check="gpu-identity", subject=name, references=references, now=now
            )


def _check_switches(
    facts: PlatformFacts,
    appraisals: Sequence[Appraisal],
    want: SwitchConditions,
    references: References,
    now: datetime,
) -> Iterator[Finding]:
    switches = facts.of_kind(DeviceKind.NVSWITCH)
    yield _check_number("switch-count", len(switches), want.count, at_least=False)
    yield check_distinct("switch-distinct", switches)
    for index, switch in enumerate(switches):
        yield _check_status(appraisals, f"switch{index}")
        if want.bios_version is not None:
            yield check_rule(
                want.bios_version,
                switch.vbios_version,
                check="switch-bios",
                subject=f"switch{index}",
                references=references,
                now=now,
                base=16,
            )


def check_board(facts: PlatformFacts) -> Finding:
    """Links between GPUs in Protected PCIe are not encrypted: the whole board attests, or no GPU of it counts.

    That the devices are wired to each other as one board was verified with the evidence (`verify.topology`).
    """
    gpus = sum(gpu.mode is GpuMode.PPCIE for gpu in facts.of_kind(DeviceKind.GPU))
    switches = facts.of_kind(DeviceKind.NVSWITCH)
    expected = f"{PPCIE_GPUS} GPUs and {PPCIE_SWITCHES} trusted switches"
    if (gpus, len(switches)) != (PPCIE_GPUS, PPCIE_SWITCHES):
        got = f"{gpus} GPUs and {len(switches)} switches"
        return failed("ppcie-board", "ppcie-incomplete", expected=expected, got=got)
    if doubtful := next((switch for switch in switches if switch.level is not Level.TRUSTED), None):
        return doubtful.untrusted("ppcie-board", f"switch {doubtful.chip_id}")
    return passed("ppcie-board", expected)


def check_distinct(check: str, devices: Sequence[DeviceFacts]) -> Finding:
    """Neither a chip, nor a certificate, nor a signed report counts twice."""
    for name in ("chip_id", "leaf_serial", "evidence"):
        if len({getattr(device, name) for device in devices}) != len(devices):
            return failed(check, "duplicate-device", expected="distinct devices", got=f"one {name} twice")
    return passed(check, len(devices))


def check_window(conditions: KeyConditions, now: datetime) -> Finding:
    """The key's time window."""
    start, end = conditions.limits.not_before, conditions.limits.not_after
    if (start and now < start) or (end and now > end):
        return failed("time-window", "outside-time-window", expected=f"{start or ''}..{end or ''}", got=now)
    return passed("time-window", "inside" if start or end else "none set")


def check_count(conditions: KeyConditions, usage: Usage) -> Finding:
    """The key's release limit; the store counts again, atomically, when the key leaves."""
    most = conditions.limits.max_releases
    if most is not None and usage.releases >= most:
        return failed("release-count", "releases-exhausted", expected=f"fewer than {most}", got=usage.releases)
    return passed("release-count", usage.releases)


def _check_number(check: str, got: int, want: int, *, at_least: bool) -> Finding:
    if got == want or (at_least and got >= want):
        return passed(check, got, expected=want)
    return failed(check, f"{check}-wrong", expected=f"at least {want}" if at_least else want, got=got)


def _member(check: str, got: str, want: Sequence[str], subject: str) -> Finding:
    if got in want:
        return passed(check, got, subject=subject)
    return failed(check, f"{check}-not-accepted", expected="|".join(want), got=got, subject=subject)
