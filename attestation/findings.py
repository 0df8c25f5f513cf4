"""Findings and verdicts: results as data. A verdict cannot be empty, partial or mistaken for a boolean."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import NoReturn

from attestation.errors import Denied


class Result(StrEnum):
    """Outcome of one check. `warn` and `skipped` are visible and never count as failure by themselves."""

    PASS = "pass"  # noqa: S105 - not a password
    FAIL = "fail"
    WARN = "warn"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check on one subject. `code` is stable, kebab-case, and set when the check did not pass."""

    check: str
    result: Result
    code: str = ""
    expected: str = ""
    got: str = ""
    hint: str = ""
    subject: str = ""

    def to_json(self) -> dict[str, str]:
        """Plain mapping; empty optional members are left out, `expected` and `got` are always there."""
        out = {"check": self.check, "result": str(self.result), "expected": self.expected, "got": self.got}
        out |= {k: v for k in ("code", "hint", "subject") if (v := getattr(self, k))}
        return out


def passed(check: str, got: object = "", *, expected: object = "", subject: str = "") -> Finding:
    """A finding for a check that held."""
    return _interned(check, Result.PASS, "", str(expected), str(got), "", subject)


def warned(check: str, code: str, *, expected: object, got: object, hint: str = "", subject: str = "") -> Finding:
    """A finding that somebody should see and that refuses nothing."""
    return _interned(check, Result.WARN, code, str(expected), str(got), hint, subject)


@lru_cache(maxsize=1024)  # a platform that attests again is told mostly the same, in the same words
def _interned(check: str, result: Result, code: str, expected: str, got: str, hint: str, subject: str) -> Finding:
    return Finding(check=check, result=result, code=code, expected=expected, got=got, hint=hint, subject=subject)


def failed(check: str, code: str, *, expected: object, got: object, hint: str = "", subject: str = "") -> Finding:
    """A finding for a check that did not hold."""
    return Finding(
        check=check, result=Result.FAIL, code=code, expected=str(expected), got=str(got), hint=hint, subject=subject
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """All findings about all *expected* subjects. Empty is an error; there is no truth value."""

    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        if not self.findings:
            raise ValueError("a verdict needs at least one finding")

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> "Verdict":
        """Build from any iterable."""
        return cls(tuple(findings))

    @property
    def trusted(self) -> bool:
        """Whether no check failed."""
        return all(f.result is not Result.FAIL for f in self.findings)

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(f for f in self.findings if f.result is Result.FAIL)

    def require_trusted(self) -> "TrustedVerdict":
        """Proof that every check passed, or Denied naming the first failure."""
        if not self.trusted:
            first = self.failures[0]
            raise Denied(
                first.code or "denied",
                f"{len(self.failures)} of {len(self.findings)} checks failed",
                where=f"{first.subject} {first.check}".strip(),
                expected=first.expected,
                got=first.got,
            )
        return TrustedVerdict(self)

    def __bool__(self) -> NoReturn:
        raise TypeError("ask .trusted")


@dataclass(frozen=True, slots=True)
class TrustedVerdict:
    """Proof that a verdict held. What releases keys takes this type and no other."""

    verdict: Verdict

    def __post_init__(self) -> None:
        if not self.verdict.trusted:
            raise ValueError("a verdict with failures proves nothing")
