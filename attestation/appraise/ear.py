"""AR4SI trustworthiness vectors and the appraisal of one submodule (draft-ietf-rats-ar4si, keybroker.md 3.3)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from attestation.errors import Malformed
from attestation.findings import Finding

CLAIMS = (
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
)
GENUINE_HARDWARE, UNSAFE_HARDWARE, UNRECOGNISED_HARDWARE = 2, 32, 97
APPROVED_BOOT, UNRECOGNISED_RUNTIME = 3, 33
APPROVED_CONFIG, SAFE_CONFIG, NO_CONFIG, UNSUPPORTABLE_CONFIG = 2, 3, 36, 96


class Status(StrEnum):
    """Tier of one claim, and of a submodule: the worst of its claims."""

    NONE = "none"
    AFFIRMING = "affirming"
    WARNING = "warning"
    CONTRAINDICATED = "contraindicated"


_WORSE = tuple(Status)


def tier(value: int) -> Status:
    """-1..1 none, up to 31 affirming, up to 95 warning, beyond contraindicated; negatives mirror with one more."""
    magnitude = value if value >= 0 else -value - 1
    if magnitude <= (1 if value >= 0 else 0):
        return Status.NONE
    return Status.AFFIRMING if magnitude < 32 else Status.WARNING if magnitude < 96 else Status.CONTRAINDICATED


@dataclass(frozen=True, slots=True)
class TrustVector:
    """Claims that were made; a claim left out is 0. Unknown names and values outside int8 are Malformed.

    Upstream casts with wrap-around, so that 258 becomes affirming; here it is refused.
    """

    values: Mapping[str, int]
    status: Status = field(init=False, repr=False, compare=False)  # the worst tier over all claims

    def __post_init__(self) -> None:
        if not self.values:
            raise Malformed("trust-vector-empty", "an appraisal makes at least one claim", where="trust_claims")
        for name, value in self.values.items():
            if name not in CLAIMS:
                raise Malformed("trust-claim", "unknown claim", expected="|".join(CLAIMS), got=repr(name)[:60])
            if type(value) is not int or not -128 <= value <= 127:  # a bool is no claim
                raise Malformed("trust-value", "not an int8", where=name, expected="-128..127", got=repr(value)[:60])
        object.__setattr__(self, "status", max((tier(value) for value in self.values.values()), key=_WORSE.index))

    def to_json(self) -> dict[str, int]:
        """Claims other than 0, in specification order."""
        return {name: self.values[name] for name in CLAIMS if self.values.get(name)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Appraisal:
    """What a policy thinks of one submodule: `cpu0`, `gpu0`, ..., `switch0`."""

    submod: str
    vector: TrustVector
    policy_id: str
    findings: tuple[Finding, ...] = ()

    @property
    def status(self) -> Status:
        """Status of the vector."""
        return self.vector.status


def status_of(appraisals: Iterable[Appraisal]) -> Status:
    """Worst status over submodules; no appraisal at all is contraindicated."""
    return max((a.status for a in appraisals), key=_WORSE.index, default=Status.CONTRAINDICATED)
