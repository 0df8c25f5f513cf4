"""What the rows say beside what the audit log says: the log is replayed, change by change, and both are compared.

Digests alone tell that something differs; this tells what. Entries of older versions say less: less is compared then.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from attestation.broker.roles import Principal, Verb
from attestation.errors import Untrusted
from attestation.ops.administer import digest_of
from attestation.ops.world import World
from attestation.sources.audit import Entry
from attestation.sources.configuration import Survey
from attestation.sources.policy_store import PolicyKind
from attestation.values import JsonValue

Facts = dict[str, JsonValue]
MAX_ACCEPTED = 10_000  # differences that one entry names: 2 MB
_RELEASES = "releases"
_ROW, _THERE, _ABSENT = "row", "there", "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One fact. `what` names the row; either side may be nothing."""

    what: str
    fact: str
    stored: str
    logged: str

    def to_json(self) -> dict[str, str]:
        """For output."""
        return {"what": self.what, "fact": self.fact, "stored": self.stored, "logged": self.logged}

    def __str__(self) -> str:
        return f"{self.what}: {self.fact} is {self.stored} in the store, {self.logged} in the log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """`problems` are why a broker refuses these rows. A log that does not hold explains nothing: it is not compared."""

    entries: int
    log_holds: bool
    rows: int
    root: str
    problems: tuple[str, ...]
    differences: tuple[Difference, ...]

    @property
    def intact(self) -> bool:
        """Nothing to answer for."""
        return not self.problems and not self.differences


def reconcile(world: World) -> Reconciled:
    """Walk the whole log, read every row, compare."""
    problems, entries, log_holds = [], 0, True
    try:
        entries = world.audit.verify()
    except Untrusted as exc:
        log_holds = False
        problems.append(f"[{exc.code}] {exc}")
    survey = world.configuration.survey()
    if survey.problem is not None:
        problems.append(f"[{survey.problem.code}] {survey.problem}")
    return Reconciled(
        entries=entries,
        log_holds=log_holds,
        rows=sum(len(rows) for rows in survey.rows.values()),
        root=survey.root,
        problems=tuple(problems),
        differences=tuple(_differences(world, survey)) if log_holds else (),
    )


def seal(world: World, who: Principal, found: Reconciled, *, now: datetime) -> None:
    """Bind the rows that were compared, and record what the log did not explain. Counters become what the log has."""
    who.require(Verb.WRITE_GLOBAL)
    accepted = [difference.to_json() for difference in found.differences if difference.fact != _RELEASES]
    world.configuration.seal(who.name, found.root, now, accepted=accepted[:MAX_ACCEPTED])
    if found.log_holds:
        world.keys.recount()


def _differences(world: World, survey: Survey) -> Iterator[Difference]:
    stored, logged = dict(_stored(survey)), _replayed(world.configuration.changes())
    for what in sorted(stored.keys() | logged.keys()):
        yield from _compare(what, stored.get(what), logged.get(what))
    for path, counted, recorded in world.keys.miscounted():
        yield Difference(what=f"key {path}", fact=_RELEASES, stored=str(counted), logged=str(recorded))


def _compare(what: str, stored: Facts | None, logged: Facts | None) -> Iterator[Difference]:
    if stored is None or logged is None:
        pair = (_ABSENT, _THERE) if stored is None else (_THERE, _ABSENT)
        yield Difference(what=what, fact=_ROW, stored=pair[0], logged=pair[1])
        return
    for fact, value in logged.items():
        if value is not None and _text(stored[fact]) != _text(value):
            yield Difference(what=what, fact=fact, stored=_text(stored[fact]), logged=_text(value))


def _text(value: JsonValue) -> str:
    return value or _ABSENT if isinstance(value, str) else json.dumps(value)


def _stored(survey: Survey) -> Iterator[tuple[str, Facts]]:
    for sheet, rows in survey.rows.items():
        yield from (_FACTS[sheet.table.name](row) for row in rows.values())


def _policy(row: Any) -> tuple[str, Facts]:
    name = row.name if row.kind == PolicyKind.RELEASE else f"{row.kind}/{row.name}"
    return f"policy {name} version {row.version}", {"policy": digest_of(row.text)}


def _reference(row: Any) -> tuple[str, Facts]:
    facts: Facts = {"value": digest_of(row.value), "provenance": row.provenance}
    return f"reference {row.name} version {row.version}", facts


def _user(row: Any) -> tuple[str, Facts]:
    return f"user {row.name}", {"role": row.role, "repositories": _list(row.repositories), "epoch": row.epoch}


def _revocation(row: Any) -> tuple[str, Facts]:
    return f"revocation {row.kind} {row.value}", {"reason": row.reason}


def _tenant(row: Any) -> tuple[str, Facts]:
    return f"tenant {row.name}", {name: getattr(row, name) for name in _LIMITS}


def _key(row: Any) -> tuple[str, Facts]:
    policy = digest_of(row.policy) if row.policy else ""
    facts: Facts = {"version": row.current, "kind": row.kind, "labels": _list(row.labels), "policy": policy}
    return f"key {row.path}", facts


def _list(text: str) -> JsonValue:
    """As brokers write it; anything else as it is."""
    try:
        found: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found


_LIMITS = ("max_keys", "releases_per_hour", "attestations_per_minute")
_FACTS = {
    "policies": _policy,
    "reference_values": _reference,
    "users": _user,
    "revocations": _revocation,
    "tenants": _tenant,
    "keys": _key,
}


def _replayed(changes: Iterable[Entry]) -> dict[str, Facts]:
    """What there must be after these changes. A fact that no entry has is None."""
    found: dict[str, Facts] = {}
    for entry in changes:
        body, subject = entry.body, entry.subject
        match entry.event:
            case "policy-set":
                found[f"policy {subject} version {body['version']}"] = {"policy": body.get("policy")}
            case "reference-set":
                facts: Facts = {"value": body.get("value"), "provenance": body.get("provenance")}
                found[f"reference {subject} version {body['version']}"] = facts
            case "user-added":
                facts = {"role": body["role"], "repositories": body["repositories"], "epoch": 1}
                found[f"user {subject}"] = facts
            case "user-revoked":
                user = found.setdefault(f"user {subject}", {})
                user["epoch"] = int(str(user.get("epoch", 1))) + 1
            case "revoked":
                found[f"revocation {body['kind']} {body['value']}"] = {"reason": body["reason"]}
            case "unrevoked":
                found.pop(f"revocation {body['kind']} {body['value']}", None)
            case "quota-set":
                found[f"tenant {subject}"] = {name: body[name] for name in _LIMITS}
            case "key-stored":
                found[f"key {subject}"] = _stored_key(found.get(f"key {subject}"), body)
            case "key-policy-set":
                found.setdefault(f"key {subject}", {})["policy"] = body["policy"]
            case "key-deleted":
                found.pop(f"key {subject}", None)
            case "configuration-sealed":
                _accept(found, body["accepted"])
    return found


def _accept(found: dict[str, Facts], accepted: Any) -> None:
    """From here on the log has what was in the store. Of a row that nobody recorded it has no facts."""
    for difference in accepted:
        what, fact, stored = difference["what"], difference["fact"], difference["stored"]
        if fact != _ROW:
            found.setdefault(what, {})[fact] = stored
        elif stored == _THERE:
            found[what] = {}
        else:
            found.pop(what, None)


def _stored_key(known: Facts | None, body: Mapping[str, JsonValue]) -> Facts:
    """A key keeps labels, and the policy where the entry has none."""
    facts: Facts = {"kind": body["kind"], "labels": sorted(map(str, body["labels"])), "policy": "", **(known or {})}  # type: ignore[arg-type]
    facts["version"] = body["version"]
    if "policy" in body:
        facts["policy"] = body["policy"]
    return facts
