"""The only place that reads the wall clock. Shells call it once and pass `now` down."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """Current time, aware, UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the one allowed use
