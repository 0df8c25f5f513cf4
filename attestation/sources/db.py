"""The database: connections, transactions and migrations for SQLite (WAL) and PostgreSQL.

Two kinds of write: `durable` ones survive power loss when the call returns (a key leaves only after one); the others
survive the death of the process and become durable with the next durable one, because the log is sequential.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection as Connection  # noqa: PLC0414 - the type that use cases pass through
from sqlalchemy import Engine, create_engine, event, select, update
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import QueuePool

from attestation.errors import Misconfigured, Unavailable
from attestation.sources.group import GroupCommit, Then
from attestation.sources.schema import HEAD, epochs
from attestation.sources.statement import in_words

BUSY_TIMEOUT_MS = 10_000  # another process holds the write lock for one transaction, which takes milliseconds
POOL_SIZE, DURABLE_POOL_SIZE = 16, 4  # durable writes go in groups, one at a time; administrators have two threads
IDLE_S = 1.0  # after a restart of the server, requests of one such moment fail and come back
POOL_WAIT_S = 5  # guests get 503 and try again, long before they give up
# A replica that hangs inside a transaction must not hold the head of the audit log for the others.
_POSTGRES = {"connect_timeout": 5, "keepalives_idle": 30, "tcp_user_timeout": 10_000}
_SESSION = "-c lock_timeout=10s -c idle_in_transaction_session_timeout=10s"
_MIGRATION_LOCK = 0x6B62_7301  # any number, the same in every replica
RETRY_AFTER_S = 2
_FILE = "kbs.sqlite3"
# What another replica changed is seen after this time at the latest; what this process changed, at once.
STALE_S = 0.1
MAX_REMEMBERED = 4096
_EPOCH = select(epochs.c.value)
_NEXT_EPOCH = update(epochs).values(value=epochs.c.value + 1)
T = TypeVar("T")


class Database:
    """Opened once per process; `close` returns every connection."""

    def __init__(self, url: str) -> None:
        self.sqlite = url.startswith("sqlite")
        self._fast = _engine(url, durable=False)
        self._durable = self._fast if self.sqlite else _engine(url, durable=True)
        # One writer at a time inside this process: SQLite's own lock waits by sleeping.
        self._writing = threading.Lock()
        self._writer: Connection | None = None  # of SQLite; `_syncs` is what it was told last
        self._syncs: bool | None = None
        self._known: dict[Hashable, Any] = {}
        self._epoch: int | None = None
        self._checked = 0.0
        self._group = GroupCommit(lambda: self.write(durable=True))

    @classmethod
    def open(cls, where: str) -> "Database":
        """A directory (SQLite inside it) or a `postgresql://` URL, migrated to the newest schema."""
        database = cls.connect(where)
        try:
            database.migrate()
        except BaseException:
            database.close()
            raise
        return database

    @classmethod
    def connect(cls, where: str) -> "Database":
        """Likewise, as it is: `restore` fills it."""
        if where.startswith(("postgresql://", "postgresql+psycopg://")):
            return cls("postgresql+psycopg://" + where.split("://", 1)[1])
        if "://" in where:
            raise Misconfigured("store-url", "unknown store", expected="a directory or postgresql://", got=where[:40])
        file = Path(where).absolute() / _FILE
        with suppress(OSError):  # SQLite says better what is wrong; its journals take the mode of this file
            os.close(os.open(file, os.O_CREAT | os.O_CLOEXEC, 0o600))
        return cls(f"sqlite:///{file}")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading."""
        with _translated(), self._fast.connect() as connection:
            yield connection

    def remember(self, key: Hashable, load: Callable[[], T]) -> T:
        """What `load` reads from configuration tables, kept until any of them changes (see `change`)."""
        at = time.monotonic()
        if at - self._checked > STALE_S:
            with self.read() as connection:
                epoch = connection.execute(_EPOCH).scalar_one_or_none()
            if epoch != self._epoch:
                self._known, self._epoch = {}, epoch
            self._checked = at
        # A loader that started before a change stores into the dictionary that the change has replaced.
        known = self._known
        if key not in known:
            value = load()
            if len(known) < MAX_REMEMBERED:
                known[key] = value
            return value
        found: T = known[key]
        return found

    @contextmanager
    def change(self) -> Iterator[Connection]:
        """A durable transaction that changes configuration: every replica forgets what it remembered."""
        with self.write(durable=True) as connection:
            connection.execute(_NEXT_EPOCH)
            yield connection
        self.forget()

    def forget(self) -> None:
        """What was remembered."""
        self._known, self._checked = {}, 0.0

    def _begin(self, writer: Connection, durable: bool) -> Any:
        """Begin in the driver. It takes the write lock at once: an upgrade from a read could only fail."""
        driver: Any = writer.connection.driver_connection
        if durable is not self._syncs:
            driver.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._syncs = durable
        driver.execute("BEGIN IMMEDIATE")
        return driver

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[Connection]:
        """One transaction, committed at the end or rolled back by any exception."""
        with _translated():
            if not self.sqlite:
                with (self._durable if durable else self._fast).begin() as connection:
                    yield connection
                return
            with self._writing:
                # The lock makes one connection enough for both kinds of write: nothing is taken from the pool, and the
                # pages that it has read stay good, because nobody else in this process writes.
                if self._writer is None:
                    self._writer = self._fast.connect()
                    self._writer.begin()  # as far as SQLAlchemy knows, for as long as it lives
                driver = self._begin(self._writer, durable)
                try:
                    yield self._writer
                    driver.execute("COMMIT")
                except BaseException:
                    if driver.in_transaction:  # SQLite has rolled back by itself where the disk is full
                        driver.execute("ROLLBACK")
                    raise

    def commit(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a durable transaction that it shares with whoever waits at this moment: one fsync for all.

        An error of `work` undoes its part alone and is raised here; so is a failed commit, after which nothing is.
        """
        return self._group.run(work)

    def commit_later(self, work: Callable[[Connection], T], then: Then) -> None:
        """Likewise without waiting: `then` is called from another thread, with the result or the error."""
        self._group.submit(work, then)

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection that sees one moment of the whole store, whatever is written meanwhile."""
        with _translated(), self._fast.connect() as connection:
            if self.sqlite:
                connection.exec_driver_sql("BEGIN")
            else:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection
            connection.rollback()

    def migrate(self, to: str = HEAD) -> None:
        """Create or upgrade the tables; a store newer than this program is refused."""
        with _translated(), self._fast.connect() as connection:
            at = revision(connection)
        if at == to:
            return
        if at is not None and at > to:
            raise Misconfigured("store-newer", "the store was written by a newer version", expected=to, got=at)
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        with self.write(durable=True) as connection:
            if not self.sqlite:  # replicas that start together; SQLite has locked already
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            if revision(connection) != to:
                config.attributes["connection"] = connection
                command.upgrade(config, to)

    def ping(self) -> None:
        """Raise Unavailable where the database does not answer."""
        with self.read() as connection:
            connection.exec_driver_sql("SELECT 1")

    def close(self) -> None:
        """Close every connection."""
        self._group.close()
        if self._writer is not None:
            self._writer.close()
        self._writer = self._syncs = None
        self._fast.dispose()
        self._durable.dispose()


def revision(connection: Connection) -> str | None:
    """The schema that the store has, None where it has none."""
    from sqlalchemy import inspect

    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    return found


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeoutError as exc:
        raise Unavailable("store-busy", "every connection to the store is in use", where="store") from exc
    except (OperationalError, sqlite3.OperationalError) as exc:
        got = in_words(exc.orig or exc if isinstance(exc, OperationalError) else exc)
        raise Unavailable("store", "the store does not answer", where="store", got=got) from exc
    except DBAPIError as exc:
        if exc.connection_invalidated:
            raise Unavailable("store", "the store went away", where="store") from exc
        raise


def _engine(url: str, *, durable: bool) -> Engine:
    if not url.startswith("sqlite"):
        return _checked_when_idle(
            create_engine(
                url,
                pool_size=DURABLE_POOL_SIZE if durable else POOL_SIZE,
                max_overflow=0,
                pool_timeout=POOL_WAIT_S,
                hide_parameters=True,
                connect_args={**_POSTGRES, "options": _SESSION + ("" if durable else " -c synchronous_commit=off")},
            )
        )
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_WAIT_S,
        hide_parameters=True,
        connect_args={"check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _connect(raw: Any, _record: Any) -> None:
        raw.isolation_level = None  # transactions begin in `write`, not in the driver; reads are single statements
        cursor = raw.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")  # until a durable write says FULL
        cursor.execute("PRAGMA secure_delete = ON")  # shredded envelopes do not stay in free pages
        cursor.close()

    return engine


def _checked_when_idle(engine: Engine) -> Engine:
    """Connections that nobody used for a moment are asked whether they live; asking each time costs as much as work."""

    @event.listens_for(engine, "checkout")
    def _checkout(raw: Any, record: Any, _proxy: Any) -> None:
        now = time.monotonic()
        if now - record.info.get("used", 0.0) > IDLE_S:
            try:
                engine.dialect.do_ping(raw)
            except engine.dialect.loaded_dbapi.Error as exc:
                raise DisconnectionError from exc  # the pool opens another one
        record.info["used"] = now

    return engine
