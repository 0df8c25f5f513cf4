"""Tenants: a repository with limits of its own. Counted in the transactions that use them up, on every replica."""

from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from attestation.errors import Denied
from attestation.sources.configuration import Configuration
from attestation.sources.configuration_change import Change
from attestation.sources.db import Database
from attestation.sources.schema import keys, ms, usage
from attestation.sources.sheets import TENANTS
from attestation.sources.statement import Statement

HOUR_S, MINUTE_S = 3600, 60
_COUNT = Statement(
    update(usage)
    .where(usage.c.tenant == bindparam("t"), usage.c.what == bindparam("k"), usage.c.window == bindparam("w"))
    .values(count=usage.c.count + 1)
    .returning(usage.c.count)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """None is no limit."""

    max_keys: int | None = None
    releases_per_hour: int | None = None
    attestations_per_minute: int | None = None


class TenantStore:
    """Quotas, and what was used of them. Windows are fixed: they start on the hour and on the minute."""

    def __init__(self, database: Database, configuration: Configuration) -> None:
        self._db, self._configuration = database, configuration

    def put(self, change: Change, name: str, quota: Quota, now: datetime) -> None:
        """Set a tenant's limits."""
        known = change.rows(TENANTS).get((name,))
        change.put(TENANTS, {"name": name, **asdict(quota), "created": known.created if known else ms(now)})

    def all(self) -> dict[str, Quota]:
        """By name."""
        return self._configuration.remember("tenants", self._read)

    def get(self, name: str) -> Quota:
        """Of one tenant; no limits where none were set."""
        return self.all().get(name, _UNLIMITED)

    def _read(self) -> dict[str, Quota]:
        return {
            row.name: Quota(
                max_keys=row.max_keys,
                releases_per_hour=row.releases_per_hour,
                attestations_per_minute=row.attestations_per_minute,
            )
            for row in sorted(self._configuration.rows(TENANTS).values())
        }

    def count_release(self, connection: Connection, name: str, now: datetime) -> None:
        """One release in this hour; Denied beyond the quota. The caller holds the head of the audit log."""
        most = self.get(name).releases_per_hour
        if most is not None:
            _take(connection, name, "releases", HOUR_S, most, now)

    def count_attestation(self, connection: Connection, name: str, now: datetime) -> None:
        """One attestation used for this tenant's keys in this minute; likewise."""
        most = self.get(name).attestations_per_minute
        if most is not None:
            _take(connection, name, "attestations", MINUTE_S, most, now)

    def require_room(self, name: str) -> None:
        """Denied where the tenant has as many keys as it may."""
        most = self.get(name).max_keys
        if most is None:
            return
        with self._db.read() as connection:
            count = connection.execute(select(func.count()).select_from(keys).where(keys.c.repository == name)).scalar()
        if (count or 0) >= most:
            raise Denied("quota-keys", "the tenant has as many keys as it may", where=name, expected=most, got=count)

    def used(self, name: str, now: datetime) -> dict[str, int]:
        """Of the windows that are running."""
        running = {"releases": _window(now, HOUR_S), "attestations": _window(now, MINUTE_S)}
        with self._db.read() as connection:
            query = select(usage.c.what, usage.c.window, usage.c.count.label("used")).where(usage.c.tenant == name)
            rows = connection.execute(query).all()
        return {row.what: row.used for row in rows if running.get(row.what) == row.window}


_UNLIMITED = Quota()


def _take(connection: Connection, name: str, what: str, length: int, most: int, now: datetime) -> None:
    values = {"t": name, "k": what, "w": _window(now, length)}
    row = _COUNT.one(connection, values)
    if row is None:
        connection.execute(delete(usage).where(usage.c.tenant == name, usage.c.what == what))  # windows of the past
        connection.execute(insert(usage), {"tenant": name, "what": what, "window": values["w"], "count": 1})
    if (1 if row is None else row[0]) > most:
        raise Denied(f"quota-{what}", f"the tenant's quota of {what} is used up", where=name, expected=most)


def _window(now: datetime, length: int) -> int:
    at = int(now.timestamp())
    return at - at % length
