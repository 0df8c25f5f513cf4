"""Statements of the handshake path: written with SQLAlchemy, compiled once, handed straight to the driver.

SQLAlchemy's execution machinery costs several times what SQLite needs for such a statement, and a handshake has twelve.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.sql.compiler import SQLCompiler

from attestation.errors import Unavailable


def in_words(exc: BaseException) -> str:
    """What a driver says first: a full disk is not a lost connection. Its texts name hosts and users, no secrets."""
    return str(exc).strip().partition("\n")[0][:160] or type(exc).__name__


class Statement:
    """One statement with named parameters; `one` and `run` execute it on a connection of `Database`."""

    def __init__(self, clause: Executable) -> None:
        self._clause = clause
        self._compiled: dict[str, tuple[str, dict[str, Any]]] = {}

    def one(self, connection: Connection, values: Mapping[str, Any]) -> tuple[Any, ...] | None:
        """The first row, in the order of the table's or the clause's columns, or None."""
        row: tuple[Any, ...] | None = self._execute(connection, values).fetchone()
        return row

    def run(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """How many rows it touched."""
        count: int = self._execute(connection, values).rowcount
        return count

    def _execute(self, connection: Connection, values: Mapping[str, Any]) -> Any:
        dialect = connection.dialect
        if dialect.name not in self._compiled:
            self._compiled[dialect.name] = self._compile(dialect.name)
        text, defaults = self._compiled[dialect.name]
        driver: Any = connection.connection.driver_connection
        assert dialect.dbapi is not None
        try:
            return driver.execute(text, {**defaults, **values} if defaults else values)
        except dialect.dbapi.OperationalError as exc:
            raise Unavailable("store", "the store does not answer", where="store", got=in_words(exc)) from exc

    def _compile(self, name: str) -> tuple[str, dict[str, Any]]:
        from sqlalchemy.dialects.postgresql import psycopg
        from sqlalchemy.dialects.sqlite import pysqlite

        dialect = pysqlite.dialect(paramstyle="named") if name == "sqlite" else psycopg.dialect()  # type: ignore[no-untyped-call]
        compiled = self._clause.compile(dialect=dialect)  # type: ignore[attr-defined]
        assert isinstance(compiled, SQLCompiler)
        return str(compiled), dict(compiled.params)
