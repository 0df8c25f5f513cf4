"""The only place that reads the clock. Shells call it once per request or command and pass `now` down."""

from datetime import UTC, datetime

from attestation.errors import Misconfigured


def utc_now() -> datetime:
    """Current time, aware, UTC."""
    return datetime.now(UTC)  # noqa: TID251 - the one allowed use


def time_text(moment: datetime) -> str:
    """For people: RFC 3339 in UTC, whole seconds."""
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def parse_time(text: str, *, where: str) -> datetime:
    """RFC 3339 text with an explicit offset to an aware UTC datetime; anything else is Misconfigured."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise Misconfigured("bad-time", "not a time", where=where, expected="RFC 3339", got=repr(text)) from exc
    if moment.tzinfo is None:
        raise Misconfigured("bad-time", "time without offset", where=where, expected="...Z or +00:00", got=repr(text))
    return moment.astimezone(UTC)
