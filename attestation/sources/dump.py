"""The store as rows of one moment, and back: the same text from SQLite and PostgreSQL, so that either restores either.

Secrets stay as they are stored: sealed. Handshakes in flight are left out; their guests start again. The key of
challenges is left out with them: what was answered before the backup must not be answered again after a restore.
"""

import binascii
import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, LargeBinary, MetaData, Select, Table, insert, inspect, select
from sqlalchemy.exc import DataError, IntegrityError, StatementError

from attestation.errors import Malformed, Misconfigured
from attestation.formats.json_strict import parse_json
from attestation.sources.db import Database, revision
from attestation.sources.schema import HEAD, metadata, signing_keys
from attestation.sources.signing import CHALLENGE

LEFT_OUT = frozenset({"sessions"})
MAX_ROW_BYTES = 8 * 1024 * 1024  # a secret of 2 MiB, sealed and in base64, is 3 MiB
_BATCH = 500
_SEEDED = ("epochs", "audit_heads")  # a migration puts rows here


def dump(database: Database) -> Iterator[str]:
    """Lines of JSON: the schema revision first, then `[table, row]`."""
    with database.snapshot() as connection:
        yield json.dumps({"revision": revision(connection)})
        for table in metadata.sorted_tables:
            if table.name in LEFT_OUT:
                continue
            for row in connection.execute(_kept(table)):
                yield json.dumps([table.name, {name: _out(value) for name, value in row._asdict().items()}])


def _kept(table: Table) -> Select[Any]:
    return select(table).where(table.c.purpose != CHALLENGE) if table is signing_keys else select(table)


def load(database: Database, lines: Iterator[str]) -> dict[str, int]:
    """Fill an empty store in one transaction; returns rows per table. Misconfigured where the store is not empty.

    Raises Malformed.
    """
    first = parse_json(next(lines, ""), max_bytes=MAX_ROW_BYTES, what="backup")
    wanted = first.get("revision") if isinstance(first, dict) else None
    if not isinstance(wanted, str):
        raise Malformed("backup", "no schema revision", where="line 1")
    if wanted > HEAD or not wanted.isdigit():
        raise Misconfigured("store-newer", "the backup was made by a newer version", expected=HEAD, got=wanted[:40])
    with database.read() as connection:
        if revision(connection) is not None:
            raise Misconfigured(
                "store-not-empty", "restore needs an empty store", expected="a new directory or database"
            )
    database.migrate(wanted)
    try:
        with database.write(durable=True) as connection:
            counts = _fill(connection, lines)
    except (IntegrityError, DataError, StatementError) as exc:
        raise Malformed("backup", "a row does not fit its table", where="backup", got=type(exc).__name__) from None
    database.migrate()
    return counts


def _fill(connection: Connection, lines: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    tables = _tables(connection)
    for name in _SEEDED:
        connection.execute(tables[name].delete())
    batch: dict[str, list[dict[str, Any]]] = {}
    for number, line in enumerate(lines, 2):
        table, row = _row(line, tables, number)
        batch.setdefault(table.name, []).append(row)
        counts[table.name] = counts.get(table.name, 0) + 1
        if len(batch[table.name]) == _BATCH:
            connection.execute(insert(table), batch.pop(table.name))
    for name, rows in batch.items():
        connection.execute(insert(tables[name]), rows)
    return counts


def _tables(connection: Connection) -> dict[str, Table]:
    """As they are at the backup's revision, which may be older than the code."""
    names = [name for name in inspect(connection).get_table_names() if name in metadata.tables and name not in LEFT_OUT]
    found = MetaData()
    return {name: Table(name, found, autoload_with=connection) for name in names}


def _row(line: str, tables: dict[str, Table], number: int) -> tuple[Table, dict[str, Any]]:
    value = parse_json(line, max_bytes=MAX_ROW_BYTES, what=f"line {number}")
    if not isinstance(value, list) or len(value) != 2 or value[0] not in tables or not isinstance(value[1], dict):
        raise Malformed("backup", "not a row of a known table", where=f"line {number}")
    table, row = tables[value[0]], value[1]
    if set(row) != set(table.columns.keys()):
        raise Malformed("backup", "other columns than the table", where=f"line {number}", got=sorted(row))
    for column in table.columns:
        if isinstance(column.type, LargeBinary) and row[column.name] is not None:
            try:
                row[column.name] = b64decode(str(row[column.name]), validate=True)
            except binascii.Error as exc:
                raise Malformed("backup", "not base64", where=f"line {number}") from exc
    return table, row


def _out(value: Any) -> Any:
    return b64encode(value).decode() if isinstance(value, (bytes, memoryview)) else value
