"""How often each kind of decision was recorded, by hour, read from the newest part of the audit log."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import func, select

from attestation.sources.db import Database
from attestation.sources.schema import audit, audit_heads, moment, ms

MAX_SCANNED = 200_000  # entries of one stream: a busy day, read in a fraction of a second
_HOUR_MS = 3_600_000


def decisions_by_hour(database: Database, *, now: datetime, hours: int) -> Mapping[datetime, Mapping[str, int]]:
    """Start of the hour to event to count, for hours in which something was recorded."""
    since = ms(now) // _HOUR_MS - (hours - 1)
    hour = audit.c.at / _HOUR_MS if database.sqlite else func.div(audit.c.at, _HOUR_MS)
    found: dict[datetime, dict[str, int]] = {}
    with database.read() as connection:
        for stream, seq in connection.execute(select(audit_heads.c.stream, audit_heads.c.seq)).all():
            query = (
                select(hour.label("hour"), audit.c.event, func.count())
                .where(audit.c.stream == stream, audit.c.seq > seq - MAX_SCANNED, audit.c.at >= since * _HOUR_MS)
                .group_by("hour", audit.c.event)
            )
            for at, event, count in connection.execute(query):
                events = found.setdefault(moment(int(at) * _HOUR_MS), {})
                events[event] = events.get(event, 0) + count
    return found


def hours_before(now: datetime, hours: int) -> tuple[datetime, ...]:
    """The last hours, oldest first, the running one included."""
    current = now.replace(minute=0, second=0, microsecond=0)
    return tuple(current - timedelta(hours=back) for back in range(hours - 1, -1, -1))
