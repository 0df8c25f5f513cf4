"""What an operator wants to see at a glance: attestations over time, denials and why, keys, collateral. Read-only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from attestation.appraise.policy import KeyConditions
from attestation.broker.keys import KeyRecord
from attestation.broker.roles import Principal, Verb
from attestation.broker.session import Attested
from attestation.ops.administer import list_keys
from attestation.ops.release import policy_text
from attestation.ops.renewed_verifier import ShelfLife
from attestation.ops.world import World, conditions_of
from attestation.sources.activity import decisions_by_hour, hours_before
from attestation.sources.audit import Entry

HOURS = 24
ROWS = 15  # of each table
SOON = timedelta(days=14)
_TAIL = 1000
_DENIALS = frozenset({"attest-refused", "release-denied"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """Decisions of one hour."""

    start: datetime
    attested: int
    refused: int
    released: int
    denied: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRow:
    """A key and the conditions that are in force for it, None where it has none."""

    record: KeyRecord
    conditions: KeyConditions | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KindOfCollateral:
    """Documents of one kind; `ending` are expired or end soon, the earliest first."""

    kind: str
    count: int
    oldest: datetime
    expired: int
    ending: tuple[ShelfLife, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One moment. A principal of some repositories sees their keys and nothing of what guests did elsewhere."""

    now: datetime
    who: Principal
    simulated: bool
    whole: bool  # whether attestations and denials may be shown
    hours: tuple[Hour, ...]
    attestations: tuple[Attested, ...]
    denials: tuple[Entry, ...]
    keys: tuple[KeyRow, ...]
    collateral: tuple[KindOfCollateral, ...] | None


def overview(world: World, who: Principal, shelf: Sequence[ShelfLife] | None, *, now: datetime) -> Overview:
    """Collect it; Denied where the role may not read."""
    records = list_keys(world, who)
    whole = not who.repositories
    if whole:
        who.require(Verb.READ)
    newest = reversed(world.audit.tail(_TAIL)) if whole else ()
    denials = [entry for entry in newest if entry.event in _DENIALS]
    return Overview(
        now=now,
        who=who,
        simulated=world.simulated,
        whole=whole,
        hours=_hours(decisions_by_hour(world.database, now=now, hours=HOURS), now) if whole else (),
        attestations=world.attestations.recent(ROWS) if whole else (),
        denials=tuple(denials[:ROWS]),
        keys=tuple(_key(world, record) for record in records),
        collateral=None if shelf is None else _collateral(shelf, now),
    )


def _key(world: World, record: KeyRecord) -> KeyRow:
    text = policy_text(world, record.path, record)
    return KeyRow(record=record, conditions=conditions_of(text) if text else None)


def _hours(counts: Mapping[datetime, Mapping[str, int]], now: datetime) -> tuple[Hour, ...]:
    rows = ((start, counts.get(start, {})) for start in hours_before(now, HOURS))
    return tuple(
        Hour(
            start=start,
            attested=of.get("attested", 0),
            refused=of.get("attest-refused", 0),
            released=of.get("released", 0),
            denied=of.get("release-denied", 0),
        )
        for start, of in rows
    )


def _collateral(shelf: Sequence[ShelfLife], now: datetime) -> tuple[KindOfCollateral, ...]:
    rows = []
    for kind in sorted({entry.kind for entry in shelf}):
        of_kind = [entry for entry in shelf if entry.kind is kind]
        ending = [entry for entry in of_kind if entry.ends is not None and entry.ends < now + SOON]
        ending.sort(key=lambda entry: entry.ends or now)
        rows.append(
            KindOfCollateral(
                kind=str(kind),
                count=len(of_kind),
                oldest=min(entry.first_seen for entry in of_kind),
                expired=sum(entry.ends is not None and entry.ends <= now for entry in of_kind),
                ending=tuple(ending[:ROWS]),
            )
        )
    return tuple(rows)
