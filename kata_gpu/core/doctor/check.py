"""A check: one row of the table that operators, documentation and tests read, and the function that judges."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from kata_gpu.core.doctor.facts import HostFacts


class Profile(StrEnum):
    """What a node is meant for: plain GPU passthrough, SEV-SNP or TDX guests, all GPUs of a Hopper HGX board."""

    GPU = "gpu"
    SNP = "snp"
    TDX = "tdx"
    PPCIE = "ppcie"


class Severity(StrEnum):
    """What it means when the check does not hold: the profile cannot work, it may hurt later, it is good to know."""

    FATAL = "fatal"
    WARNING = "warning"
    INFO = "info"


class Status(StrEnum):
    """Outcome. `note` is an informational finding: it never counts. `unknown` says what could not be read."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    NOTE = "note"
    NOT_APPLICABLE = "not-applicable"
    UNKNOWN = "unknown"


Profiles = frozenset[Profile]
ALL: Profiles = frozenset(Profile)
TEE: Profiles = frozenset({Profile.SNP, Profile.TDX})
SNP: Profiles = frozenset({Profile.SNP})
TDX: Profiles = frozenset({Profile.TDX})
_BROKEN = {Severity.FATAL: Status.FAIL, Severity.WARNING: Status.WARN, Severity.INFO: Status.NOTE}
_SHOWN = 4  # devices or files named in one finding; the rest is counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a judge says. `holds` is None where it could not tell; `applies` is False where there is nothing "
    "to judge."""

    holds: bool | None
    found: str
    applies: bool = True


def ok(found: str) -> Outcome:
    """The requirement holds."""
    return Outcome(holds=True, found=found)


def bad(found: str) -> Outcome:
    """The requirement does not hold; the row's severity says how much that matters."""
    return Outcome(holds=False, found=found)


def unknown(found: str) -> Outcome:
    """The evidence could not be read."""
    return Outcome(holds=None, found=found)


def skip(why: str) -> Outcome:
    """There is nothing to judge on this host."""
    return Outcome(holds=None, found=why, applies=False)


def verdict(problems: Iterable[str], good: str) -> Outcome:
    """`bad` with the problems, or `ok` when there are none."""
    found = tuple(problems)
    return bad(some(found)) if found else ok(good)


def some(items: Iterable[object], joint: str = "; ") -> str:
    """The first few, and how many more there are."""
    texts = [str(i) for i in items]
    more = len(texts) - _SHOWN
    return joint.join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


Judge = Callable[[HostFacts, Profiles], Outcome]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One row. `after` lists checks whose failure makes this one fail too: the report then names the root cause."""

    id: str
    title: str
    severity: Severity
    profiles: Profiles
    expected: str
    symptom: str
    fix: str
    judge: Judge
    after: tuple[str, ...] = ()
    reboot: bool = False

    def run(self, facts: HostFacts, profiles: Profiles) -> "Finding":
        """Judge these facts for the profiles the operator asked for."""
        asked = bool(self.profiles & profiles)
        outcome = self.judge(facts, profiles) if asked else skip(f"only for {', '.join(sorted(self.profiles))}")
        if not outcome.applies:
            status = Status.NOT_APPLICABLE
        elif outcome.holds is None:
            status = Status.UNKNOWN
        else:
            status = Status.OK if outcome.holds else _BROKEN[self.severity]
        return Finding(check=self, status=status, found=outcome.found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check on one host. `causes` are the failing checks that this one follows from."""

    check: Check
    status: Status
    found: str
    causes: tuple[str, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether somebody must act."""
        return self.status in {Status.FAIL, Status.WARN}


class Section:
    """A heading with its rows; rows are added in the order in which they are written."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[Check] = []

    def check(
        self,
        check_id: str,
        title: str,
        severity: Severity,
        profiles: Profiles = ALL,
        *,
        expected: str,
        symptom: str,
        fix: str,
        after: tuple[str, ...] = (),
        reboot: bool = False,
    ) -> Callable[[Judge], Judge]:
        """Decorator: the function below is the judge of this row."""

        def add(judge: Judge) -> Judge:
            self.rows.append(
                Check(
                    id=check_id, title=title, severity=severity, profiles=profiles, expected=expected, symptom=symptom,
                    fix=fix, judge=judge, after=after, reboot=reboot,
                )
            )  # fmt: skip
            return judge

        return add
