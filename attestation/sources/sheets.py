"""Sheets: the rows that decide releases, in portions that are read, checked and changed as a whole.

A table is one sheet. Keys, which are many, are spread over 256, so that a change of one reads few others.
"""

import hashlib
import json
from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, select

from attestation.sources.schema import keys, policies, reference_values, revocations, tenants, users

KEY_SHEETS = 256  # the first byte of the path's SHA-256: a hundred thousand keys are 400 on each
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
# Every column that decides something, the primary key first. Of keys, `releases` changes with each release: it is
# counted in the audit log (`KeyStore.count_release`).
_COLUMNS: Mapping[Table, tuple[str, ...]] = {
    policies: ("kind", "name", "version", "text", "author", "created"),
    reference_values: ("name", "version", "value", "expires", "provenance", "created"),
    users: ("name", "role", "repositories", "epoch", "created"),
    revocations: ("kind", "value", "reason", "created"),
    tenants: ("name", "max_keys", "releases_per_hour", "attestations_per_minute", "created"),
    keys: ("path", "repository", "kind", "labels", "policy", "current", "created"),
}
_ROWS: Mapping[Table, Any] = {table: namedtuple(table.name, columns) for table, columns in _COLUMNS.items()}  # noqa: PYI024 - from the table above

Key = tuple[Any, ...]
Rows = Mapping[Key, Any]  # by primary key; a row has its columns as attributes


@dataclass(frozen=True, slots=True)
class Sheet:
    """One portion; `number` says which of the keys' it is."""

    table: Table
    number: int | None = None

    @property
    def name(self) -> str:
        """As it is stored."""
        return self.table.name if self.number is None else f"{self.table.name}/{self.number}"

    def row(self, values: Mapping[str, Any]) -> Any:
        """Its columns of `values`, as a row."""
        return _ROWS[self.table](**{column: values[column] for column in _COLUMNS[self.table]})

    def key(self, row: Any) -> Key:
        """The primary key of a row."""
        return tuple(row[: len(self.table.primary_key)])

    def where(self, key: Key) -> ColumnElement[bool]:
        """The condition that finds it."""
        first, *rest = (column == value for column, value in zip(self.table.primary_key, key, strict=True))
        found: ColumnElement[bool] = first
        for condition in rest:
            found &= condition
        return found

    def read(self, connection: Connection) -> Rows:
        """As they are in the database: nothing is verified here."""
        query = select(*_columns(self.table))
        if self.number is not None:
            query = query.where(self.table.c.sheet == self.number)
        rows = (_ROWS[self.table]._make(row) for row in connection.execute(query))
        return {self.key(row): row for row in rows}

    def digest(self, rows: Rows) -> str:
        """SHA-256 over name and rows, in the order of their keys; empty for none."""
        if not rows:
            return ""
        return hashlib.sha256(_ENCODE([self.name, sorted(rows.values())]).encode()).hexdigest()


POLICIES, REFERENCES, USERS, REVOCATIONS, TENANTS = map(
    Sheet, (policies, reference_values, users, revocations, tenants)
)


def number_of(path: str) -> int:
    """The sheet of a key."""
    return hashlib.sha256(path.encode()).digest()[0]


def sheet_of(path: str) -> Sheet:
    """Likewise."""
    return Sheet(keys, number_of(path))


def read_all(connection: Connection) -> dict[Sheet, Rows]:
    """Every row, on the sheet that the database says it is on."""
    found = {sheet: sheet.read(connection) for sheet in (POLICIES, REFERENCES, USERS, REVOCATIONS, TENANTS)}
    of_keys: dict[Sheet, dict[Key, Any]] = {}
    for *columns, number in connection.execute(select(*_columns(keys), keys.c.sheet)):
        row = _ROWS[keys]._make(columns)
        of_keys.setdefault(Sheet(keys, number), {})[row[:1]] = row
    return {**found, **of_keys}


def _columns(table: Table) -> Iterator[ColumnElement[Any]]:
    return (table.c[name] for name in _COLUMNS[table])


def root(digests: Iterable[tuple[str, str]]) -> str:
    """SHA-256 over the digests of all sheets: what the audit log has of a configuration."""
    return hashlib.sha256(_ENCODE(["kata-gpu-kbs/configuration/1", sorted(digests)]).encode()).hexdigest()
