"""What an operator demands of NVIDIA devices beyond the mandatory checks, field by field.

Every field is a value, a set, an ordered minimum or `Unchecked` with a reason, so that permissiveness is written down
and can be searched for. Nothing here can replace a mandatory check: signature, chain, nonce, identity and the
comparison of measurements have no switch. Defaults: gpu-attestation.md 10, "reference values for a first policy".
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Generic, TypeVar

from attestation.errors import Misconfigured
from attestation.findings import Finding, Result, failed, passed
from attestation.verify.identity import FwidMatch
from attestation.verify.revocation import RevocationPolicy

T = TypeVar("T")

MIN_DRIVER = "550.90.07"  # first production driver whose reports carry a FWID
MAX_TRAILING_ZEROS = 64  # one seen; a collector that adds more is broken
_FWID_MATCH = FwidMatch.MATCH


@dataclass(frozen=True, slots=True)
class Exactly(Generic[T]):
    """Equal to this value."""

    value: T

    def accepts(self, got: T) -> bool:
        """Whether the rule holds."""
        return got == self.value

    def __str__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True)
class OneOf(Generic[T]):
    """Equal to one of these values; an empty set is a configuration error."""

    values: frozenset[T]

    def __post_init__(self) -> None:
        if not self.values:
            raise Misconfigured("policy-empty", "a set that accepts nothing", expected="at least one value")

    def accepts(self, got: T) -> bool:
        """Whether the rule holds."""
        return got in self.values

    def __str__(self) -> str:
        return "|".join(sorted(map(str, self.values)))


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A dotted version not below this one, compared number by number (hexadecimal for firmware)."""

    version: str
    base: int = 10

    def __post_init__(self) -> None:
        version_key(self.version, self.base)

    def accepts(self, got: str) -> bool:
        """Whether the rule holds."""
        return version_key(got, self.base) >= version_key(self.version, self.base)

    def __str__(self) -> str:
        return f">= {self.version}"


@dataclass(frozen=True, slots=True)
class Unchecked:
    """Not judged, for a reason that somebody wrote down. Every result repeats the reason."""

    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise Misconfigured("policy-reason", "an unchecked field needs a reason")

    def __str__(self) -> str:
        return f"unchecked: {self.reason}"


VersionRule = AtLeast | Exactly[str] | OneOf[str] | Unchecked
ValueRule = Exactly[T] | OneOf[T] | Unchecked


class ExpiryMode(StrEnum):
    """How the validity of a reference document's signers is judged: they expire in two years (3.5)."""

    STRICT = "strict"
    GRACE = "grace"
    FIRST_SEEN = "valid-at-first-seen"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerExpiry:
    """`strict`: valid now. `grace`: expired for at most this long. `valid-at-first-seen`: valid when the store first
    saw the document (lower-case hex SHA-256 to aware time); a document that it never saw is judged strictly.
    """

    mode: ExpiryMode = ExpiryMode.STRICT
    grace: timedelta = timedelta(0)
    first_seen: Mapping[str, datetime] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.mode is ExpiryMode.GRACE) != (self.grace > timedelta(0)):
            raise Misconfigured("policy-grace", "grace needs a positive duration, and nothing else has one")
        object.__setattr__(self, "first_seen", MappingProxyType(dict(self.first_seen)))


@dataclass(frozen=True, slots=True, kw_only=True)
class NvPolicy:
    """Rules for one device. `rim_pins` limits an id to documents by SHA-256; `retired_rims` never count."""

    driver: VersionRule = field(default_factory=lambda: AtLeast(MIN_DRIVER))
    vbios: VersionRule = field(default_factory=lambda: Unchecked("reference documents name the accepted versions"))
    fwid: ValueRule[FwidMatch] = field(default_factory=lambda: Exactly(_FWID_MATCH))
    chip_ids: ValueRule[str] = field(default_factory=lambda: Unchecked("any genuine device"))
    unknown_opaque: ValueRule[tuple[int, ...]] = field(
        default_factory=lambda: Unchecked("new firmware adds elements; they are reported")
    )
    signer_expiry: SignerExpiry = field(default_factory=SignerExpiry)
    revocation: RevocationPolicy = field(default_factory=RevocationPolicy)
    rim_pins: Mapping[str, frozenset[str]] = field(default_factory=dict)
    retired_rims: frozenset[str] = frozenset()
    trailing_zeros: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.trailing_zeros <= MAX_TRAILING_ZEROS:
            raise Misconfigured(
                "policy-trailing-zeros", "trailing zeros", expected=f"0..{MAX_TRAILING_ZEROS}", got=self.trailing_zeros
            )
        object.__setattr__(self, "rim_pins", MappingProxyType(dict(self.rim_pins)))


def version_key(text: str, base: int = 10) -> tuple[int, ...]:
    """Ordered form of a dotted version. Raises Misconfigured."""
    try:
        return tuple(int(part, base) for part in text.split("."))
    except ValueError as exc:
        raise Misconfigured("policy-version", "not a dotted version", expected="550.90.07", got=repr(text)) from exc


def judge(check: str, rule: AtLeast | Exactly[T] | OneOf[T] | Unchecked, got: T, *, subject: str) -> Finding:
    """One finding: `pass`, `fail` with code `policy-<check>`, or `skipped` with the reason that was given."""
    if isinstance(rule, Unchecked):
        return Finding(check=check, result=Result.SKIPPED, expected=str(rule), got=str(got), subject=subject)
    if rule.accepts(str(got)) if isinstance(rule, AtLeast) else rule.accepts(got):
        return passed(check, got, expected=rule, subject=subject)
    return failed(check, f"policy-{check}", expected=rule, got=got, subject=subject)


def remark(finding: Finding) -> Finding:
    """The same finding as a warning."""
    return replace(finding, result=Result.WARN)
