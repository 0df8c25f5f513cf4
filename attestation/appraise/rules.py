"""The four ways a policy field can be written: a value or set, a minimum, a reference, or `unchecked` with a reason.

In TOML: `"x"`, `["x", "y"]`, `{ at_least = "550.54" }`, `{ reference = "name" }`, `{ unchecked = "why" }`.
Leaving a required field out is an error: permissiveness is always written down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from attestation.errors import Malformed, Misconfigured
from attestation.findings import Finding, Result, failed, passed

MAX_VALUES = 4096  # a fleet's worth of chip ids; bounds a policy document
MIN_REASON = 8  # `unchecked = "x"` is not a reason


@dataclass(frozen=True, slots=True)
class OneOf:
    """Equal to one of these (lower case)."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A dotted version, compared number by number."""

    version: str


@dataclass(frozen=True, slots=True)
class Reference:
    """Equal to one of the current reference values of this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Unchecked:
    """Not checked, because somebody wrote down why."""

    reason: str


Rule = OneOf | AtLeast | Reference | Unchecked


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceValue:
    """What a name stands for, until when, and who said so."""

    name: str
    values: tuple[str, ...]
    expires: datetime
    provenance: str


References = Callable[[str], ReferenceValue | None]


def parse_rule(value: object, where: str) -> Rule:
    """TOML value to rule, or Misconfigured."""
    if isinstance(value, str):
        return OneOf((value.lower(),))
    if isinstance(value, list) and 0 < len(value) <= MAX_VALUES and all(isinstance(v, str) for v in value):
        return OneOf(tuple(v.lower() for v in value))
    if isinstance(value, dict) and len(value) == 1:
        (word, text), *_ = value.items()
        if isinstance(text, str) and text:
            if word == "at_least":
                return AtLeast(text)
            if word == "reference":
                return Reference(text)
            if word == "unchecked" and len(text) >= MIN_REASON:
                return Unchecked(text)
    raise Misconfigured(
        "policy-rule",
        "not a rule",
        where=where,
        expected='"value", ["a", "b"], {at_least = "1.2"}, {reference = "name"} or {unchecked = "a reason"}',
        got=repr(value)[:80],
    )


def check_rule(
    rule: Rule, got: str, *, check: str, subject: str, references: References, now: datetime, base: int = 10
) -> Finding:
    """One rule against one proven value. `base` is 16 where versions are hexadecimal (VBIOS)."""
    code = f"{check}-not-accepted"
    if isinstance(rule, Unchecked):
        return Finding(
            check=check, result=Result.WARN, expected="unchecked", got=got, hint=rule.reason, subject=subject
        )
    if isinstance(rule, AtLeast):
        holds = _at_least(got, rule.version, base)
        expected = f"at least {rule.version}"
    elif isinstance(rule, Reference):
        return check_reference(rule.name, got, check=check, subject=subject, references=references, now=now)
    else:
        holds = got.lower() in rule.values
        expected = "|".join(rule.values[:4]) + ("|..." if len(rule.values) > 4 else "")
    if holds:
        return passed(check, got, expected=expected, subject=subject)
    return failed(check, code, expected=expected, got=got, subject=subject)


def check_reference(name: str, got: str, *, check: str, subject: str, references: References, now: datetime) -> Finding:
    """Equality with a stored reference value that has not expired."""
    reference = references(name)
    if reference is None:
        return failed(
            check,
            "reference-value-missing",
            expected=f"reference value {name}",
            got="none stored",
            hint=f"kata-gpu-kbs reference set {name} VALUE",
            subject=subject,
        )
    if reference.expires <= now:
        return failed(
            check,
            "reference-value-expired",
            expected=f"{name} valid at {now:%Y-%m-%dT%H:%MZ}",
            got=f"expired {reference.expires:%Y-%m-%dT%H:%MZ}",
            subject=subject,
        )
    if got.lower() in reference.values:
        return passed(check, got, expected=f"in {name}", subject=subject)
    return failed(check, f"{check}-unknown", expected=f"in {name}", got=got or "nothing", subject=subject)


def version_key(text: str, base: int = 10) -> tuple[int, ...]:
    """`550.90.07` as numbers; Malformed where a part is not one."""
    try:
        return tuple(int(part, base) for part in text.split("."))
    except ValueError as exc:
        raise Malformed("version-text", "not a dotted version", expected="1.2.3", got=repr(text[:60])) from exc


def _at_least(got: str, floor: str, base: int) -> bool:
    try:
        return version_key(got, base) >= version_key(floor, base)
    except Malformed:
        return False  # what cannot be compared does not satisfy a minimum
