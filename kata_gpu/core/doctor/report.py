"""The report: every check on one host, root causes named, failures first."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from kata_gpu.core.doctor.check import Check, Finding, Profile, Profiles, Severity, Status
from kata_gpu.core.doctor.facts import HostFacts
from kata_gpu.core.doctor.redact import redact
from kata_gpu.core.gpu import Kind

_BAD = {Status.FAIL, Status.WARN}


def profiles_of(facts: HostFacts) -> Profiles:
    """Profiles that fit this host: GPU, the TEE of its processor vendor, PPCIe where it has NVSwitches."""
    found = {Profile.GPU}
    if facts.cpu.vendor == "AuthenticAMD":
        found.add(Profile.SNP)
    elif facts.cpu.vendor == "GenuineIntel":
        found.add(Profile.TDX)
    if any(d.kind is Kind.NVSWITCH for d in facts.pci):
        found.add(Profile.PPCIE)
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings in table order. `profiles` are those that were asked for."""

    profiles: Profiles
    findings: tuple[Finding, ...]

    def count(self, status: Status) -> int:
        """How many findings have this status."""
        return sum(f.status is status for f in self.findings)

    def negative(self, *, strict: bool) -> bool:
        """Whether the host is not ready. `strict` also counts warnings and fatal checks that could not tell."""
        return any(
            f.status is Status.FAIL
            or (strict and (f.status is Status.WARN or (f.status is Status.UNKNOWN and _fatal(f.check))))
            for f in self.findings
        )

    def to_json(self) -> dict[str, object]:
        """Stable form: one member a check, in table order."""
        return {
            "schema": "kata-gpu.doctor/1",
            "profiles": sorted(self.profiles),
            "summary": {str(s): self.count(s) for s in Status},
            "findings": [
                {
                    "id": f.check.id,
                    "title": f.check.title,
                    "severity": f.check.severity,
                    "status": f.status,
                    "found": f.found,
                    "expected": f.check.expected,
                    **({"symptom": f.check.symptom, "fix": f.check.fix, "reboot": f.check.reboot} if f.broken else {}),
                    **({"causes": list(f.causes)} if f.causes else {}),
                }
                for f in self.findings
            ],
        }


def _fatal(check: Check) -> bool:
    return check.severity is Severity.FATAL


def examine(checks: Iterable[Check], facts: HostFacts, profiles: Profiles) -> Report:
    """Run every check. What was found is redacted here, so that a report may be pasted anywhere."""
    findings = [replace(f, found=redact(f.found)) for f in (c.run(facts, profiles) for c in checks)]
    broken = {f.check.id for f in findings if f.status in _BAD}
    return Report(
        profiles=profiles,
        findings=tuple(
            replace(f, causes=tuple(c for c in f.check.after if c in broken)) if f.check.id in broken else f
            for f in findings
        ),
    )
