"""Event-log replay: an event may be believed only if the whole log gives the register that the quote signed."""

import hashlib
from base64 import b64encode
from collections.abc import Sequence

from attestation.findings import Finding, Result, failed, passed
from attestation.formats.event_log import REGISTERS, Event, parse_event_log
from attestation.values import JsonObject

MAX_CLAIMED_BYTES = 4096  # larger event data is left out of claims; its digest stays
_TYPE_NAMES = {
    0x00000001: "EV_POST_CODE",
    0x00000004: "EV_SEPARATOR",
    0x00000005: "EV_ACTION",
    0x00000006: "EV_EVENT_TAG",
    0x0000000A: "EV_PLATFORM_CONFIG_FLAGS",
    0x0000000D: "EV_IPL",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    0x80000003: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
}


def replay(events: Sequence[Event]) -> tuple[bytes, ...]:
    """The four registers after all events, from zero: SHA-384(register || digest) each."""
    registers = [bytes(48)] * REGISTERS
    for event in events:
        register = registers[event.index - 1]
        registers[event.index - 1] = hashlib.sha384(register + event.digest).digest()
    return tuple(registers)


def verify_event_log(log: bytes | None, quoted: Sequence[bytes]) -> tuple[tuple[JsonObject, ...], Finding]:
    """Claims of the events whose register replays, and one finding about the log. Raises Malformed for a broken log."""
    if log is None:
        return (), Finding(check="event-log", result=Result.SKIPPED, code="event-log-absent", got="no log")
    events = parse_event_log(log)
    good = [replayed == register for replayed, register in zip(replay(events), quoted, strict=True)]
    claims = tuple(_claim(event) for event in events if good[event.index - 1])
    if all(good):
        return claims, passed("event-log", f"{len(events)} events", expected="all registers replay")
    wrong = [f"RTMR{index}" for index, holds in enumerate(good) if not holds]
    return claims, failed("event-log", "event-log-mismatch", expected="all registers replay", got=", ".join(wrong))


def _claim(event: Event) -> JsonObject:
    """Trustee's shape of an event."""
    return {
        "index": event.index,
        "type": event.type,
        "type_name": _TYPE_NAMES.get(event.type, hex(event.type)),
        "digests": [{"alg": "SHA-384", "digest": event.digest.hex()}],
        "digest_matches_event": hashlib.sha384(event.data).digest() == event.digest,
        "event": b64encode(event.data).decode() if len(event.data) <= MAX_CLAIMED_BYTES else None,
    }
