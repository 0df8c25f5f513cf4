"""How the result for a set of devices is shown: a page for people, JSON for machines."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from textwrap import wrap

from attestation.cli.verification import Basis
from attestation.clock import time_text
from attestation.errors import AttestationError
from attestation.findings import Finding, Result
from attestation.values import JsonObject, Level
from attestation.verify.nv_set import DeviceOutcome, SetResult
from attestation.verify.verified import VerifiedDevice

_MARKS = {Result.PASS: "ok  ", Result.FAIL: "FAIL", Result.WARN: "warn", Result.SKIPPED: "-   "}
_WIDTH, _LONGEST = 116, 72
_INDENT = " " * 28


def render_json(result: SetResult, required: Level, now: datetime, basis: Basis) -> str:
    """`level`, `findings` and `claims`; `devices` repeats them per device. `claims` are those of a single device."""
    devices = [_device_json(outcome) for outcome in result.outcomes]
    findings = [*(f for o in result.outcomes if o.proof for f in o.proof.device.findings), *result.findings]
    single = result.outcomes[0].proof if len(result.outcomes) == 1 else None
    return _dump(
        {
            "level": str(result.level),
            "required": str(required),
            "findings": [f.to_json() for f in findings],
            "claims": single.device.claims if single is not None else {},
            "devices": devices,
            **basis.to_json(now),
        }
    )


def render_refusal(error: AttestationError, output: str, now: datetime, basis: Basis) -> str:
    """Evidence that could not even be read."""
    finding = _refusal(error)
    if output == "json":
        refused = {"level": str(Level.NONE), "findings": [finding.to_json()], "claims": {}, "devices": []}
        return _dump({**refused, **basis.to_json(now)})
    return "\n".join([*basis.lines(now), "level: none", *_lines([finding])])


def render_page(result: SetResult, required: Level, now: datetime, basis: Basis) -> str:
    """One section per device, one for the set, and the verdict with everything that stands in its way."""
    lines = [f"Verified as of {time_text(now)}, offline.", *basis.lines(now)]
    for outcome in result.outcomes:
        lines += ["", *_section(outcome)]
    if len(result.outcomes) > 1:
        lines += ["", "Set of devices", *_lines(result.findings)]
    reached = result.level.at_least(required)
    lines += ["", f"level: {result.level} ({'reaches' if reached else 'does NOT reach'} the required `{required}`)"]
    if result.level is not Level.TRUSTED:
        lines += [f"  because {reason}" for reason in dict.fromkeys(_reasons(result))]
    return "\n".join(lines)


def _section(outcome: DeviceOutcome) -> list[str]:
    if outcome.proof is None:
        assert outcome.refusal is not None
        return [f"Device {outcome.position}: refused", *_lines([_refusal(outcome.refusal)])]
    device = outcome.proof.device
    driver = f"driver {device.driver_version}, VBIOS" if device.driver_version else "BIOS"
    head = f"Device {outcome.position}: {device.arch} {device.kind} {device.identity}, {driver} {device.vbios_version}"
    return [f"{head}, mode {device.mode}", *_lines(device.findings), f"  level: {device.level}"]


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    """One line per finding, a wrapped hint below; equal ones share a line, which counts and names their subjects."""
    groups: dict[Finding, list[str]] = {}
    for finding in findings:
        groups.setdefault(replace(finding, subject=""), []).append(finding.subject)
    for finding, subjects in groups.items():
        yield f"  {_MARKS[finding.result]} {finding.check:<20} {_shown(finding)}{_about(subjects)}"
        if finding.hint and finding.result is not Result.PASS:
            yield from wrap(_printable(finding.hint), _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT)


def _about(subjects: Sequence[str]) -> str:
    """Nothing about a single subject, which the section names; else how many and which."""
    if len(subjects) == 1:
        return ""
    names = ", ".join(dict.fromkeys(_shorten(subject) for subject in subjects if subject))
    return f" (x{len(subjects)}: {names})" if names else f" (x{len(subjects)})"


def _shown(finding: Finding) -> str:
    code = f"[{finding.code}] " if finding.code else ""
    wanted = f" (wanted {_shorten(finding.expected)})" if finding.result is not Result.PASS and finding.expected else ""
    return f"{code}{_shorten(finding.got)}{wanted}"


def _reasons(result: SetResult) -> Iterator[str]:
    for outcome in result.outcomes:
        if outcome.refusal is not None:
            yield f"{outcome.refusal.code}: {_printable(str(outcome.refusal))}"
        for finding in outcome.proof.device.findings if outcome.proof is not None else ():
            if finding.result is Result.FAIL or (finding.result is Result.SKIPPED and finding.code):
                yield f"{finding.code}: {_reason(finding)}"
    for finding in result.findings:
        if finding.result is Result.FAIL and finding.check != "device":
            yield f"{finding.code}: {_reason(finding)}"


def _reason(finding: Finding) -> str:
    return f"{finding.check} is {_shorten(finding.got)}, wanted {_shorten(finding.expected)}"


def _refusal(error: AttestationError) -> Finding:
    return Finding(
        check="evidence", result=Result.FAIL, code=error.code, expected=error.expected, got=error.got or error.what,
        hint=str(error), subject=error.where,
    )  # fmt: skip


def _device_json(outcome: DeviceOutcome) -> JsonObject:
    if outcome.proof is None:
        assert outcome.refusal is not None
        return {"level": str(Level.NONE), "findings": [_refusal(outcome.refusal).to_json()], "claims": {}}
    return device_json(outcome.proof.device)


def device_json(device: VerifiedDevice) -> JsonObject:
    """One verified device, as every result has it."""
    return {
        "level": str(device.level),
        "kind": str(device.kind),
        "arch": str(device.arch),
        "chip_id": device.identity.chip_id,
        "mode": str(device.mode),
        "findings": [f.to_json() for f in device.findings],
        "claims": device.claims,
    }


def _shorten(text: str) -> str:
    """Long digests keep their head; evidence cannot move the cursor of a terminal."""
    text = _printable(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _dump(value: Mapping[str, object]) -> str:
    return json.dumps(value, indent=2)
