"""TCG2 crypto-agile event log as TDX firmware leaves it in CCEL, SHA-384 (TCG PC Client Platform Firmware Profile)."""

from dataclasses import dataclass

from attestation.errors import Malformed
from attestation.formats.reader import Reader

MAX_LOG_BYTES = 1024 * 1024  # the size of the ACPI area that holds it
MAX_EVENTS = 10_000
MAX_EVENT_BYTES = 512 * 1024  # firmware blobs such as a hand-off block or ACPI tables
REGISTERS = 4
EV_NO_ACTION = 3  # not extended
_SHA384, _SHA384_BYTES = 0x000C, 48
_SIGNATURE = b"Spec ID Event03\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event. `index` counts from 1: index 1 is RTMR 0."""

    index: int
    type: int
    digest: bytes
    data: bytes


def _bad(what: str, where: str, *, expected: object = "", got: object = "") -> Malformed:
    return Malformed("event-log", what, where=f"event-log.{where}", expected=expected, got=got)


def parse_event_log(log: bytes) -> tuple[Event, ...]:
    """All events up to the padding of the buffer (0xFF or zeros to its end). Raises Malformed."""
    if len(log) > MAX_LOG_BYTES:
        raise _bad("log is too large", "size", expected=f"<= {MAX_LOG_BYTES}", got=len(log))
    r = Reader(log, "event-log")
    _header(r)
    events: list[Event] = []
    while r.remaining and not _is_padding(log, r.position):
        if len(events) == MAX_EVENTS:
            raise _bad("too many events", "count", expected=f"<= {MAX_EVENTS}")
        index, kind, count = r.u32le("index"), r.u32le("type"), r.u32le("digests.count")
        if count != 1:
            raise _bad("an event has one digest", "digests", expected=1, got=count)
        if (algorithm := r.u16le("digests.algorithm")) != _SHA384:
            raise _bad("unknown digest algorithm", "digests", expected=hex(_SHA384), got=hex(algorithm))
        digest = r.take(_SHA384_BYTES, "digest")
        data = r.take(_size(r), "event")
        if kind == EV_NO_ACTION:
            continue
        if not 1 <= index <= REGISTERS:
            raise _bad("no such register", "index", expected=f"1..{REGISTERS}", got=index)
        events.append(Event(index=index, type=kind, digest=digest, data=data))
    return tuple(events)


def _size(r: Reader) -> int:
    size = r.u32le("event.size")
    if size > MAX_EVENT_BYTES:
        raise _bad("event is too large", "event.size", expected=f"<= {MAX_EVENT_BYTES}", got=size)
    return size


def _is_padding(log: bytes, position: int) -> bool:
    filler = log[position : position + 8]
    if filler not in (b"\xff" * len(filler), b"\0" * len(filler)):
        return False
    return not log[position:].strip(filler[:1])


def _header(r: Reader) -> None:
    """The first event is of the old form and says which digests follow: exactly SHA-384."""
    r.take(4 + 4 + 20, "header")
    h = Reader(r.take(_size(r), "header.event"), "event-log.header")
    if (signature := h.take(16, "signature")) != _SIGNATURE:
        raise _bad("not a crypto-agile log", "header", expected=_SIGNATURE.hex(), got=signature.hex())
    h.take(8, "class and version")
    if (count := h.u32le("algorithms.count")) != 1:
        raise _bad("not one algorithm", "header", expected=1, got=count)
    algorithm, size = h.u16le("algorithm"), h.u16le("algorithm.size")
    if (algorithm, size) != (_SHA384, _SHA384_BYTES):
        raise _bad("not SHA-384", "header", expected=(_SHA384, _SHA384_BYTES), got=(algorithm, size))
    h.take(h.u8("vendor.size"), "vendor")
    h.finish()
