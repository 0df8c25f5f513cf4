"""How the result for a CPU TEE or a whole platform is shown, and when it reaches a level."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from attestation.cli.verification import Asked, Basis
from attestation.clock import time_text
from attestation.errors import AttestationError, ExitCode
from attestation.findings import Finding, Result, failed, passed
from attestation.values import JsonObject, Level
from attestation.verify.verified import VerifiedCpu

_MARKS = {Result.PASS: "ok  ", Result.FAIL: "FAIL", Result.WARN: "warn", Result.SKIPPED: "-   "}
_LONGEST = 72
# Skipped checks without which evidence is authentic at most: it may be old, or of any guest.
_NEEDED = frozenset({"report-data-unchecked", "measurement-unchecked"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A result: what it is about, in one line, its findings and its claims."""

    title: str
    findings: Sequence[Finding]
    claims: JsonObject
    devices: Sequence[JsonObject] = ()
    best: Level = Level.TRUSTED  # what the parts allow, before the findings

    @property
    def level(self) -> Level:
        """Trusted where nothing failed and nothing that matters was left out; else authentic: no error was raised."""
        short = any(f.result is Result.FAIL or f.code in _NEEDED for f in self.findings)
        return Level.AUTHENTIC if short else self.best


def refused(error: AttestationError) -> Page:
    """Evidence that cannot be believed at all."""
    finding = Finding(
        check="evidence",
        result=Result.FAIL,
        code=error.code,
        expected=error.expected,
        got=error.got or error.what,
        hint=str(error),
        subject=error.where,
    )
    return Page(title="Evidence refused", findings=(finding,), claims={}, best=Level.NONE)


def check_measurement(cpu: VerifiedCpu, allowed: Sequence[str]) -> Finding:
    """Which guest it is: the one question that signatures do not answer."""
    if not allowed:
        return Finding(
            check="measurement",
            result=Result.SKIPPED,
            code="measurement-unchecked",
            expected="a launch measurement that you know",
            got=cpu.measurement,
            hint="a genuine CPU may run any guest: compare with --measurement",
        )
    if cpu.measurement in {text.lower() for text in allowed}:
        return passed("measurement", cpu.measurement)
    return failed("measurement", "measurement-unknown", expected="|".join(allowed), got=cpu.measurement)


def judged(asked: Asked, make: Callable[[], Page], now: datetime, basis: Basis) -> tuple[str, int]:
    """The page that `make` verifies, or the one of evidence that it refuses: text or JSON, and the exit code."""
    try:
        page = make()
    except AttestationError as exc:
        return show(refused(exc), Level(asked.require), asked.output, now, basis)[0], exc.exit_code
    return show(page, Level(asked.require), asked.output, now, basis)


def show(page: Page, required: Level, output: str, now: datetime, basis: Basis) -> tuple[str, int]:
    """Text or JSON, and the exit code."""
    level = Level.NONE if page.best is Level.NONE else page.level
    reached = level.at_least(required)
    code = ExitCode.OK if reached else ExitCode.NEGATIVE
    if output == "json":
        return _render_json(page, level, required, basis.to_json(now)), code
    lines = [f"Verified as of {time_text(now)}, offline.", *basis.lines(now), "", page.title, *_lines(page.findings)]
    lines += ["", f"level: {level} ({'reaches' if reached else 'does NOT reach'} the required `{required}`)"]
    return "\n".join(lines), code


def _render_json(page: Page, level: Level, required: Level, basis: Mapping[str, object]) -> str:
    return json.dumps(
        {
            "level": str(level),
            "required": str(required),
            "findings": [finding.to_json() for finding in page.findings],
            "claims": page.claims,
            "devices": list(page.devices),
            **basis,
        },
        indent=2,
    )


def _lines(findings: Sequence[Finding]) -> Iterator[str]:
    """One line per finding that says something; rules that ask nothing are left to the JSON."""
    for finding in findings:
        if finding.result is Result.PASS and finding.expected == "any":
            continue
        code = f"[{finding.code}] " if finding.code else ""
        wanted = f" (wanted {_shorten(finding.expected)})" if finding.result is Result.FAIL else ""
        yield f"  {_MARKS[finding.result]} {finding.check:<26} {code}{_shorten(finding.got)}{wanted}"
        if finding.hint and finding.result is not Result.PASS:
            yield f"       {'':<26} {_shorten(finding.hint)}"


def _shorten(text: str) -> str:
    """Long digests keep their head; evidence cannot move the cursor of a terminal."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
