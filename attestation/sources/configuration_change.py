"""One change of the configuration that decides releases: rows, their digests, and the entries that record them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from attestation.errors import Unavailable
from attestation.sources.audit import AuditLog
from attestation.sources.schema import audit_heads, epochs, sheets
from attestation.sources.sheets import Key, Rows, Sheet, root
from attestation.values import JsonValue

MEMBER = "configuration"  # of the body of an audit entry: the digest over all sheets, and the epoch
CONFIRMED = "configuration-confirmed"
CHANGED, ROLLBACK = "configuration-changed", "configuration-rollback"
EPOCH = select(epochs.c.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What one audit entry says of all sheets. The first, of a new store, is empty and nobody's."""

    seq: int = 0
    entry: str = ""
    epoch: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)


class Change:
    """Rows as they will be. Digests are made of what was verified and put here, never of what is read again."""

    def __init__(self, connection: Connection, log: AuditLog, state: Any) -> None:
        self.connection, self._log, self._begin = connection, log, state
        self._state: State | None = None
        self._epoch = 0
        self._rows: dict[Sheet, dict[Key, Any]] = {}
        self._entries: list[dict[str, Any]] = []

    def rows(self, sheet: Sheet) -> Rows:
        """Verified when first asked for; then with what was changed."""
        return self._working(sheet)

    def put(self, sheet: Sheet, values: Mapping[str, Any]) -> None:
        """Add a row, or replace the one with its primary key. Columns that are on no sheet go to the database alone."""
        rows, row = self._working(sheet), sheet.row(values)
        key = sheet.key(row)
        if key in rows:
            self.connection.execute(update(sheet.table).where(sheet.where(key)).values(**row._asdict()))
        else:
            self.connection.execute(insert(sheet.table), dict(values))
        rows[key] = row

    def remove(self, sheet: Sheet, *key: Any) -> bool:
        """Delete a row; false where there was none."""
        if self._working(sheet).pop(key, None) is None:
            return False
        self.connection.execute(delete(sheet.table).where(sheet.where(key)))
        return True

    def record(self, event: str, subject: str, body: Mapping[str, JsonValue], now: datetime) -> None:
        """An audit entry of this change, part of its transaction."""
        self._entries.append({"event": event, "subject": subject, "body": body, "now": now})

    def confirm(self, now: datetime) -> None:
        """An entry that nothing changed."""
        self._begun()
        self.record(CONFIRMED, MEMBER, {}, now)

    def finish(self) -> int:
        """Store the digests, and write the entries with the digest over all of them. Returns the number of the last."""
        seq = 0
        if self._state is None:
            return seq
        digests = dict(self._state.digests)
        for sheet, rows in self._rows.items():
            before, after = digests.pop(sheet.name, ""), sheet.digest(rows)
            if after:
                digests[sheet.name] = after
            if before != after:
                self._store(sheet.name, before, after)
        if not self._entries and digests != self._state.digests:
            raise ValueError("a change that no entry records would be refused from now on")
        recorded = recorded_as(root(digests.items()), self._epoch)
        for entry in self._entries:
            body = {**entry.pop("body"), MEMBER: recorded}
            seq = self._log.append(self.connection, body=body, **entry)
        return seq

    def _begun(self) -> State:
        if self._state is None:
            # Releases take this lock and then rows of keys: in the same order here, nobody waits for each other.
            lock_log(self.connection, self._log.stream)
            self._state = self._begin()
            self._epoch = require_epoch(self.connection, self._state.epoch + 1)
        return self._state

    def _working(self, sheet: Sheet) -> dict[Key, Any]:
        state = self._begun()
        if sheet not in self._rows:
            digest = state.digests.get(sheet.name, "")
            self._rows[sheet] = dict(verified(self.connection, sheet, digest))
        return self._rows[sheet]

    def _store(self, name: str, before: str, after: str) -> None:
        mine = sheets.c.name == name
        if not after:
            self.connection.execute(delete(sheets).where(mine))
        elif before:
            self.connection.execute(update(sheets).where(mine).values(digest=after))
        else:
            self.connection.execute(insert(sheets), {"name": name, "digest": after})


def verified(connection: Connection, sheet: Sheet, digest: str) -> Rows:
    """The rows, where they have this digest."""
    rows = sheet.read(connection)
    if sheet.digest(rows) != digest:
        raise changed(sheet.name)
    return rows


def require_epoch(connection: Connection, least: int) -> int:
    """The epoch, which every change moves on. Where it stands still, other replicas would not see what changed."""
    epoch: int | None = connection.execute(EPOCH).scalar()
    if epoch is None or epoch < least:
        raise Unavailable(ROLLBACK, "the epoch was set back", where="epochs", expected=least, got=epoch)
    return epoch


def recorded_as(digest: str, epoch: int) -> JsonValue:
    """What an audit entry says of the configuration."""
    return {"digest": digest, "epoch": epoch}


def changed(where: str) -> Unavailable:
    """The refusal of rows that differ."""
    return Unavailable(CHANGED, "the rows are not those that the audit log names", where=where)


def lock_log(connection: Connection, stream: str) -> None:
    """Nobody appends until this transaction ends."""
    connection.execute(select(audit_heads.c.seq).where(audit_heads.c.stream == stream).with_for_update())
