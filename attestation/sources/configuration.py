"""The configuration that decides releases, bound to the audit log: read from the database, believed only as recorded.

Every change writes, in its transaction, the digest of each sheet that it touched, and an audit entry that names the
digest over all of them. The entry is signed with a key that only brokers can open. What is read must have the digest
that the newest such entry names: a row that was edited, added, moved, deleted or set back to an older one is refused.
"""

import json
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, delete, insert, select, text

from attestation.errors import Unavailable, Untrusted
from attestation.sources.audit import GENESIS, AuditLog, Entry, check_entry, entry_digest
from attestation.sources.configuration_change import (
    CHANGED,
    EPOCH,
    MEMBER,
    ROLLBACK,
    Change,
    State,
    changed,
    lock_log,
    recorded_as,
    require_epoch,
    verified,
)
from attestation.sources.db import Database
from attestation.sources.schema import CHANGES, audit, audit_heads, epochs, moment, sheets
from attestation.sources.sheets import Rows, Sheet, read_all, root
from attestation.values import JsonValue

SEALED = "configuration-sealed"
UNSEALED = "configuration-unsealed"
_BATCH = 20  # entries; guests are served between two of them
_PAUSE_S = 0.002
_WALK = 4000  # entries at once, a second; what is left is walked at the next look, five seconds later
_NAMED = 4  # sheets that a refusal names
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Every row of one moment, read from the database anew; `problem` is why it would be refused.

    `behind` is how many entries the log has since the newest that names the configuration.
    """

    rows: Mapping[Sheet, Rows]
    root: str
    behind: int
    problem: Unavailable | None


class Configuration:
    """Reads and changes. What a process read is kept until its digest changes."""

    def __init__(self, database: Database, log: AuditLog) -> None:
        self._db, self._log = database, log
        self._state = State()
        self._written = 0  # the newest change of this process, whether or not anybody has read it
        self._kept: dict[Sheet, tuple[str, Rows]] = {}
        self._end: tuple[int, str] | None = None  # of the log, as far as its entries were seen to follow each other
        self._refused: Unavailable | None = None
        self.suspect = False  # something was refused since the last survey
        self.behind = False  # the last walk did not reach the end of the log

    def remember(self, key: Hashable, load: Callable[[], T]) -> T:
        """What `load` makes of rows, kept until any of them changes. Unavailable while the last survey found fault."""
        if self._refused is not None:
            raise self._refused.with_traceback(None)
        return self._db.remember(key, load)

    def rows(self, sheet: Sheet) -> Rows:
        """The rows of one sheet, as the audit log has them. Unavailable where the database says something else."""
        return self.remember(sheet, lambda: self._load(sheet))

    @contextmanager
    def change(self) -> Iterator[Change]:
        """One durable transaction: rows, their digests, and the entries that record them."""
        floor = self._floor
        with self._db.change() as connection:
            change = Change(connection, self._log, lambda: self._walked_state(connection, floor))
            yield change
            seq = change.finish()
        self._written = max(self._written, seq)
        self._db.forget()  # once more: what was read between the commit and this line may be older

    def survey(self) -> Survey:
        """Compare everything with the log. Where it finds fault nothing is released from now on, until one does not."""
        self.suspect, floor = False, self._floor
        with self._db.snapshot() as connection:
            try:
                found = self._survey(connection, floor)
            except TypeError:  # SQLite keeps any type in any column
                found = Survey(rows={}, root="", behind=0, problem=changed("types"))
        self._refused = found.problem
        return found

    def walk(self) -> None:
        """Go on where the last survey stopped to look at the log; what it finds is a matter for the next one."""
        floor = self._floor
        try:
            with self._db.snapshot() as connection:
                self._walk_on(connection, self.state(connection, floor))
        except Unavailable:
            self.suspect = True

    def changes(self) -> Iterator[Entry]:
        """Every entry that records a change, in order. Their signatures are verified with the whole log."""
        query = select(audit).where(audit.c.stream == self._log.stream, text(CHANGES)).order_by(audit.c.seq)
        with self._db.read() as connection:
            for row in connection.execute(query):
                yield _entry(row)

    def confirm(self, now: datetime) -> None:
        """Record that nothing changed: whoever starts later has to look at no entry before this one."""
        with self.change() as change:
            change.confirm(now)

    def seal(self, by: str, expected: str, now: datetime, *, accepted: Sequence[JsonValue] = ()) -> int:
        """Record the rows as they are: of a store of an older version, or where somebody has answered for them.

        `expected` is the digest that was looked at; other rows than those are Untrusted. `accepted` is what the log did
        not explain, for the log. Returns how many rows there are.
        """
        with self._db.change() as connection:
            lock_log(connection, self._log.stream)
            rows = read_all(connection)
            digests = {sheet.name: digest for sheet, found in rows.items() if (digest := sheet.digest(found))}
            if root(digests.items()) != expected:
                raise Untrusted(CHANGED, "somebody changes the configuration at this moment")
            epoch = self._mend_epoch(connection)
            connection.execute(delete(sheets))
            if digests:
                connection.execute(insert(sheets), [{"name": n, "digest": d} for n, d in digests.items()])
            count = sum(len(found) for found in rows.values())
            body: dict[str, JsonValue] = {"by": by, "rows": count, "accepted": accepted}
            body[MEMBER] = recorded_as(expected, epoch)
            self._log.append(connection, event=SEALED, subject=MEMBER, body=body, now=now)
        return count

    def state(self, connection: Connection, floor: int) -> State:
        """What the newest change in the log says. `floor` is an entry that was there before this connection looked.

        Raises Unavailable.
        """
        newest, known = self._newest(connection), self._state
        if newest is None and floor == 0:
            return State()
        if newest is None or newest.seq < floor:
            got = 0 if newest is None else newest.seq
            raise Unavailable(ROLLBACK, "the store was set back", expected=f"entry {floor}", got=got)
        if (newest.seq, newest.digest) == (known.seq, known.entry):
            return known
        found = self._check(connection, newest)
        if found.seq > self._state.seq:
            self._state = found
        return found

    @property
    def _floor(self) -> int:
        """A change that is there: taken before a connection looks, which then must find it."""
        return max(self._state.seq, self._written)

    def _load(self, sheet: Sheet) -> Rows:
        floor = self._floor
        try:
            with self._db.snapshot() as connection:
                digest = self.state(connection, floor).digests.get(sheet.name, "")
                kept = self._kept.get(sheet)
                if kept is not None and kept[0] == digest:
                    return kept[1]
                rows = verified(connection, sheet, digest)
        except (Unavailable, TypeError) as exc:
            self.suspect = True
            raise exc if isinstance(exc, Unavailable) else changed(sheet.name) from exc
        self._kept[sheet] = (digest, rows)
        return rows

    def _walked_state(self, connection: Connection, floor: int) -> State:
        """Likewise, and nothing is missing in the log since then: a change that was taken out leaves a gap.

        Once in a process: from then on it knows better itself.
        """
        state = self.state(connection, floor)
        if self._end is None:
            end = state.seq, state.entry or GENESIS
            for row in self._following(connection, *end):
                self._require_ours(_entry(row))
                end = row.seq, row.digest
            self._end = end
        return state

    def _walk_on(self, connection: Connection, state: State) -> None:
        """What came since: a change that was taken out before this process saw it leaves a gap, too.

        The digest of the last entry holds all before it, so that its signature is enough: 20 us each.
        """
        end, last = (state.seq, state.entry or GENESIS), None
        if self._end is not None and self._end[0] > end[0] and self._digest(connection, self._end[0]) == self._end[1]:
            end = self._end
        start = end[0]
        self.behind = False
        for row in self._following(connection, *end):
            if row.seq - start > _WALK:
                self.behind = True
                break
            content = row.at, row.event, row.subject, row.body, row.previous
            if row.digest != entry_digest(self._log.stream, row.seq, *content):
                raise _unrecorded(row.seq)
            end, last = (row.seq, row.digest), row
        if last is not None:
            self._require_ours(_entry(last))
        self._end = end

    def _following(self, connection: Connection, seq: int, previous: str) -> Iterator[Any]:
        """The entries after this one, little, see `confirm`. Raises Unavailable where one does not follow the other."""
        entries = select(audit).where(audit.c.stream == self._log.stream).order_by(audit.c.seq).limit(_BATCH)
        while batch := connection.execute(entries.where(audit.c.seq > seq)).all():
            for row in batch:
                if row.seq != seq + 1 or row.previous != previous:
                    raise _unrecorded(seq + 1)
                yield row
                seq, previous = row.seq, row.digest
            if len(batch) == _BATCH:
                time.sleep(_PAUSE_S)

    def _digest(self, connection: Connection, seq: int) -> str | None:
        query = select(audit.c.digest).where(audit.c.stream == self._log.stream, audit.c.seq == seq)
        return connection.execute(query).scalar()

    def _require_ours(self, entry: Entry) -> None:
        try:
            check_entry(entry, self._log.public_key, self._log.stream)
        except Untrusted as exc:
            raise _unrecorded(entry.seq) from exc

    def _newest(self, connection: Connection) -> Entry | None:
        query = (
            select(audit).where(audit.c.stream == self._log.stream, text(CHANGES)).order_by(audit.c.seq.desc()).limit(1)
        )
        row = connection.execute(query).one_or_none()
        return None if row is None else _entry(row)

    def _check(self, connection: Connection, newest: Entry) -> State:
        """The state that this entry names, from the digests that are stored."""
        self._require_ours(newest)
        recorded = newest.body.get(MEMBER)
        if not isinstance(recorded, Mapping):
            raise Unavailable(
                UNSEALED,
                "the configuration was last changed by a broker that does not bind it to the log",
                where=f"audit entry {newest.seq}",
                expected="kata-gpu-kbs store seal",
            )
        digests = {row.name: row.digest for row in connection.execute(select(sheets))}
        if root(digests.items()) != recorded["digest"]:
            raise changed("sheets")
        return State(seq=newest.seq, entry=newest.digest, epoch=int(str(recorded["epoch"])), digests=digests)

    def _mend_epoch(self, connection: Connection) -> int:
        """One above what was recorded, whatever became of the row."""
        newest = self._newest(connection)
        epoch: int | None = connection.execute(EPOCH).scalar()
        recorded = newest.body.get(MEMBER) if newest else None
        least = 1 + (int(str(recorded["epoch"])) if isinstance(recorded, Mapping) else 0)
        if epoch is not None and epoch >= least:
            return epoch
        connection.execute(delete(epochs))
        connection.execute(insert(epochs), {"id": 1, "value": least})
        return least

    def _survey(self, connection: Connection, floor: int) -> Survey:
        rows = read_all(connection)
        found = {sheet.name: digest for sheet, held in rows.items() if (digest := sheet.digest(held))}
        newest, problem = None, None
        try:
            newest = self._newest(connection)
            self._walk_on(connection, self._walked_state(connection, floor))
            state = State() if newest is None else self._check(connection, newest)
            names = found.keys() | state.digests.keys()
            differ = sorted(name for name in names if found.get(name) != state.digests.get(name))
            if differ:
                raise changed(", ".join(differ[:_NAMED]))
            require_epoch(connection, state.epoch)
        except Unavailable as exc:
            problem = exc
        end = (
            connection.execute(select(audit_heads.c.seq).where(audit_heads.c.stream == self._log.stream)).scalar() or 0
        )
        behind = end - newest.seq if newest is not None else 0
        return Survey(rows=rows, root=root(found.items()), behind=behind, problem=problem)


def _unrecorded(seq: int) -> Unavailable:
    return Unavailable(CHANGED, "no broker wrote this entry here", where=f"audit entry {seq}")


def _entry(row: Any) -> Entry:
    try:
        at, body = moment(row.at), json.loads(row.body)
    except (ValueError, OverflowError, OSError, RecursionError) as exc:
        raise _unrecorded(row.seq) from exc
    return Entry(
        seq=row.seq,
        at=at,
        event=row.event,
        subject=row.subject,
        body=body,
        previous=row.previous,
        digest=row.digest,
        signature=bytes(row.signature),
    )
