"""Revocation: whom the broker refuses from now on, whatever the evidence says. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from attestation.appraise.facts import DeviceFacts, PlatformFacts
from attestation.appraise.native import tee_claim
from attestation.appraise.policy import TCB_PARTS
from attestation.appraise.rules import version_key
from attestation.errors import Malformed
from attestation.values import Architecture, DeviceKind, Tee

MAX_VALUE, MAX_REASON = 200, 500
_GPU_PARTS = {"driver": 10, "vbios": 16}  # base of the numbers between the dots
# Hexadecimal digits of a whole chip id: Turin's 8 bytes, a TDX platform instance of 16, CHIP_ID of Milan and Genoa.
_CHIP_DIGITS = (16, 32, 128)
_HEX = re.compile("[0-9a-f]+")


class RevocationKind(StrEnum):
    """By token id, TEE key thumbprint (RFC 7638), CPU chip id, GPU identity or leaf serial, or firmware range."""

    TOKEN = "token"  # noqa: S105 - a kind, not a credential
    TEE_KEY = "tee-key"
    CHIP = "chip"
    GPU = "gpu"
    FIRMWARE = "firmware"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """One stored entry."""

    kind: RevocationKind
    value: str
    reason: str
    created: datetime

    def to_json(self) -> dict[str, str]:
        """For listings."""
        return {
            "kind": str(self.kind),
            "value": self.value,
            "reason": self.reason,
            "created": self.created.isoformat(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class FirmwareRange:
    """`hopper driver ..550.54.14`, `blackwell vbios 97.00..97.00.5E`, `snp microcode ..71`; both ends belong to it."""

    platform: str
    part: str
    low: tuple[int, ...] | None
    high: tuple[int, ...] | None
    text: str

    @classmethod
    def parse(cls, text: str) -> "FirmwareRange":
        """Malformed unless platform and part are known and at least one end is given."""
        words = text.lower().split()
        base = None
        if len(words) == 3 and ".." in words[2]:
            gpu = words[0] in tuple(Architecture) and words[1] in _GPU_PARTS
            cpu = words[0] == Tee.SNP and words[1] in TCB_PARTS
            base = _GPU_PARTS[words[1]] if gpu else 10 if cpu else None
        if base is None:
            raise Malformed(
                "firmware-range", "not a firmware range", expected='"hopper driver ..550.54.14"', got=text[:80]
            )
        low, _, high = words[2].partition("..")
        if not low and not high:
            raise Malformed("firmware-range", "a range needs an end", got=text[:80])
        return cls(
            platform=words[0],
            part=words[1],
            low=version_key(low, base) if low else None,
            high=version_key(high, base) if high else None,
            text=" ".join(words),
        )

    def covers(self, facts: PlatformFacts) -> bool:
        """Whether the CPU or any device of this platform runs such firmware. What names no version is covered."""
        if self.platform == Tee.SNP:
            return facts.cpu.tee is Tee.SNP and self._holds(_number(tee_claim(facts.cpu, f"reported_tcb_{self.part}")))
        mine = (d for d in facts.devices if d.arch == self.platform and d.kind is DeviceKind.GPU)
        return any(self._holds(self._version(device)) for device in mine)

    def _version(self, device: DeviceFacts) -> tuple[int, ...]:
        text = device.driver_version if self.part == "driver" else device.vbios_version
        try:
            return version_key(text, _GPU_PARTS[self.part])
        except Malformed:
            return ()

    def _holds(self, version: tuple[int, ...]) -> bool:
        # `..550.54` has 550.54.14 in it: the end is compared as far as it is written.
        above = self.low is None or version >= self.low or not version
        return above and (self.high is None or version[: len(self.high)] <= self.high)


def _number(value: object) -> tuple[int, ...]:
    return (value,) if type(value) is int else ()


def normal_value(kind: RevocationKind, value: str) -> str:
    """As it is stored and compared; Malformed for what could never match."""
    text = value.strip()
    if kind is RevocationKind.FIRMWARE:
        return FirmwareRange.parse(text).text
    if kind in (RevocationKind.CHIP, RevocationKind.GPU):
        text = text.lower()
    if not 0 < len(text) <= MAX_VALUE or not text.isascii() or not text.isprintable() or " " in text:
        raise Malformed(
            "revocation-value", "not an identity", where=kind, expected="1 to 200 characters", got=len(text)
        )
    if kind is RevocationKind.CHIP and not (_HEX.fullmatch(text) and len(text) in _CHIP_DIGITS):
        raise Malformed(
            "revocation-value",
            "not a whole chip id, as `audit who` prints it",
            where=kind,
            expected=f"{', '.join(map(str, _CHIP_DIGITS))} hexadecimal digits",
            got=text[:80],
        )
    if kind is RevocationKind.GPU and not _HEX.fullmatch(text):
        raise Malformed(
            "revocation-value", "not a GPU's identity or leaf serial", where=kind, expected="hex", got=text[:80]
        )
    return text


def subjects(facts: PlatformFacts, *, jti: str, tee_key: str) -> tuple[tuple[str, str], ...]:
    """Every (kind, value) under which this attestation can be revoked, apart from firmware."""
    chip = facts.cpu.chip_id.lower()
    named = [(RevocationKind.TOKEN, jti), (RevocationKind.TEE_KEY, tee_key), (RevocationKind.CHIP, chip)]
    for device in facts.devices:
        named += [(RevocationKind.GPU, device.chip_id.lower()), (RevocationKind.GPU, device.leaf_serial)]
    return tuple((str(kind), value) for kind, value in named)


def first_firmware(ranges: Iterable[FirmwareRange], facts: PlatformFacts) -> str | None:
    """The first revoked range that covers this platform, as text."""
    return next((f"firmware {found.text}" for found in ranges if found.covers(facts)), None)
