"""Leases: who holds which key at present. A release starts or extends one; only a new attestation can."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Integer, bindparam, cast, delete, func, select, text, update

from attestation.broker.session import Attested
from attestation.errors import Denied
from attestation.sources.db import Database
from attestation.sources.schema import leases, moment, ms
from attestation.sources.statement import Statement
from attestation.values import ResourcePath

RETENTION = timedelta(days=1)  # an ended lease is shown for a day
_PUT = Statement(  # SQLAlchemy writes `ON CONFLICT` once for each dialect, and they are the same
    text(
        "INSERT INTO leases (path, holder, jti, chip_id, devices, granted, expires)"
        " VALUES (:path, :holder, :jti, :chip_id, :devices, :granted, :expires)"
        " ON CONFLICT (path, holder) DO UPDATE SET jti = excluded.jti, expires = excluded.expires"
    )
)
# `substr` and not LIKE: in a pattern, a repository's "_" would stand for any character.
_USED = Statement(
    select(leases.c.jti)
    .where(
        leases.c.jti == bindparam("j"),
        func.substr(leases.c.path, 1, cast(bindparam("length"), Integer)) == bindparam("prefix"),
    )
    .limit(1)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One guest's hold on one key. `holder` is the thumbprint of its TEE key."""

    path: ResourcePath
    holder: str
    jti: str
    chip_id: str
    devices: tuple[str, ...]
    granted: datetime
    expires: datetime

    def to_json(self) -> dict[str, object]:
        """For listings and webhooks."""
        return {
            "path": str(self.path),
            "holder": self.holder,
            "jti": self.jti,
            "chip_id": self.chip_id,
            "devices": list(self.devices),
            "granted": self.granted.isoformat(),
            "expires": self.expires.isoformat(),
        }


class LeaseStore:
    """Writes are part of the transaction that records the release."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def grant(
        self,
        connection: Connection,
        path: ResourcePath,
        attested: Attested,
        *,
        lifetime: timedelta,
        most: int | None,
        now: datetime,
    ) -> None:
        """Start or extend a lease; Denied where `most` other guests hold the key already.

        The caller has appended to the audit log in this transaction: that lock orders grants of all replicas.
        """
        holder, expires = attested.jkt, ms(now + lifetime)
        if most is not None:
            others = (leases.c.path == str(path)) & (leases.c.holder != holder) & (leases.c.expires > ms(now))
            if (connection.execute(select(func.count()).where(others)).scalar() or 0) >= most:
                raise Denied("leases-exhausted", "as many guests hold this key as may", expected=most)
        _PUT.run(
            connection,
            {
                "path": str(path),
                "holder": holder,
                "jti": attested.jti,
                "chip_id": attested.facts.cpu.chip_id[:160],
                "devices": json.dumps([device.chip_id for device in attested.facts.devices]),
                "granted": ms(now),
                "expires": expires,
            },
        )

    def used_by(self, connection: Connection, repository: str, jti: str) -> bool:
        """Whether this attestation has a lease on any key of the repository."""
        prefix = f"{repository}/"
        return _USED.one(connection, {"j": jti, "length": len(prefix), "prefix": prefix}) is not None

    def sweep(self, now: datetime) -> int:
        """Delete what ended a day ago."""
        with self._db.write() as connection:
            return connection.execute(delete(leases).where(leases.c.expires <= ms(now - RETENTION))).rowcount

    def live(self, now: datetime, path: ResourcePath | None = None) -> tuple[Lease, ...]:
        """Leases that have not ended, by path and age."""
        query = select(leases).where(leases.c.expires > ms(now)).order_by(leases.c.path, leases.c.granted)
        if path is not None:
            query = query.where(leases.c.path == str(path))
        with self._db.read() as connection:
            return tuple(_lease(row._asdict()) for row in connection.execute(query))

    def end(self, now: datetime, which: Callable[[Lease], bool]) -> tuple[Lease, ...]:
        """End live leases; returns them."""
        ended = tuple(lease for lease in self.live(now) if which(lease))
        with self._db.write(durable=True) as connection:
            for lease in ended:
                same = (leases.c.path == str(lease.path)) & (leases.c.holder == lease.holder)
                connection.execute(update(leases).where(same).values(expires=ms(now)))
        return ended


def _lease(row: Mapping[str, object]) -> Lease:
    fields = dict(row)
    return Lease(
        path=ResourcePath.parse(str(fields.pop("path"))),
        devices=tuple(json.loads(str(fields.pop("devices")))),
        granted=moment(int(str(fields.pop("granted")))),
        expires=moment(int(str(fields.pop("expires")))),
        **{name: str(value) for name, value in fields.items()},
    )
