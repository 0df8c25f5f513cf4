"""The device side of CC mode: BAR0 registers, FSP settings and mailbox of a Hopper, Blackwell or LS10 device.

Written from the device's point of view with its own numbers, so that a wrong offset in our driver code shows.
Also serves the software GPU of `kata-gpu sim gpu`. Addresses are BAR0 offsets.
"""

from dataclasses import dataclass, field
from typing import Any

_EMEM_PORT, _EMEM_END = 0x8F2AC0, 0x8F2B00  # per channel: control +0, data +4
_QUEUE, _QUEUE_END = 0x8F2C00, 0x8F2C40  # per channel: head +0, tail +4
_MSGQ = 0x8F2C80
_CHANNEL_BYTES = 1024
_MNOC = 0x8F1E00  # port 0: receive FIFO data +0; send mbox info +0x104, data +0x108; receive mbox +0x184, +0x188
_KNOBS = (2, 4, 5, 6, 7, 8, 9, 10, 34, 35, 36, 44, 45, 46, 47)
_ALLOW_INB = {6: 5, 8: 7, 10: 9, 36: 35, 45: 44, 47: 46}
_NO_SUCH_KNOB = 0x1E3
_NOT_PERMITTED = 0x10
DEAD = 0xFFFFFFFF

_BOOT_0 = {"hopper": 0x180000A1, "blackwell": 0x1A0000A1, "ls10": 0x7000A1, "ampere": 0x170000A1}
_BOOT_DONE = {"hopper": 0x200BC, "blackwell": 0x200BC, "ls10": 0x660BC}
_STATUS = {"hopper": 0x1182CC, "blackwell": 0x590, "ls10": 0x28C50}


@dataclass(slots=True, kw_only=True)
class Chip:
    """State of one device. `knobs` survive everything, `active` changes at reset, the rest is lost at reset.

    Faults: `dead` (true, or "until-bus-reset": `drivers.device_reset`), `boot` ("never"), `boot_delay` (seconds),
    `reset` ("noop", "error"), `fsp` (status code), `fsp_writes_left` (messages until `fsp` starts), `locked` (in-band
    changes forbidden).
    """

    family: str
    knobs: dict[int, int] = field(default_factory=dict)
    active: int = 0
    boot_at: float = 0.0
    faults: dict[str, Any] = field(default_factory=dict)
    resets: int = 0
    _emem: bytearray = field(default_factory=lambda: bytearray(8 * _CHANNEL_BYTES), repr=False)
    _regs: dict[int, int] = field(default_factory=dict, repr=False)
    _inbox: list[int] = field(default_factory=list, repr=False)
    _expect: int = 0
    _outbox: list[int] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        for knob in _KNOBS:
            self.knobs.setdefault(knob, int(knob in _ALLOW_INB.values()))
        self._clear()

    def to_json(self) -> dict[str, Any]:
        """What survives a process: everything but half-sent messages."""
        return {
            "family": self.family,
            "knobs": {str(k): v for k, v in self.knobs.items()},
            "active": self.active,
            "boot_at": self.boot_at,
            "faults": self.faults,
            "resets": self.resets,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Chip":
        """Inverse of `to_json`."""
        return cls(**{**data, "knobs": {int(k): v for k, v in data["knobs"].items()}})

    def reset(self, now: float) -> None:
        """FLR or bus reset: staged settings become active, the boot starts over."""
        self.resets += 1
        if self.faults.get("reset") == "noop":
            return
        self._clear()
        self.active = self._staged()
        self.boot_at = now + float(self.faults.get("boot_delay", 0.0))

    def _clear(self) -> None:
        self._regs = {}
        for channel in range(8):
            for base in (_QUEUE, _MSGQ):
                self._regs[base + 8 * channel] = self._regs[base + 8 * channel + 4] = channel * _CHANNEL_BYTES
        self._inbox, self._outbox, self._expect = [], [], 0

    def _staged(self) -> int:
        if self.family == "ls10":
            return self.knobs[45] & 1
        mode = (self.knobs[8] & 1) | (self.knobs[6] & 1) << 1
        return mode | (0x20 if self.family == "hopper" and self.knobs[45] & 1 else 0)

    def booted(self, now: float) -> bool:
        """Whether the firmware has finished starting."""
        return self.faults.get("boot") != "never" and now >= self.boot_at

    def read(self, offset: int, now: float) -> int:
        """One aligned 32-bit read."""
        if self.faults.get("dead"):
            return DEAD
        if offset == 0:
            return _BOOT_0.get(self.family, 0)
        if offset == _BOOT_DONE.get(self.family):
            return 0xFF if self.booted(now) else 0
        if offset == _STATUS.get(self.family):
            return self.active
        if _EMEM_PORT <= offset < _EMEM_END and offset & 4:
            return self._emem_read(offset - 4)
        if self.family == "blackwell" and _MNOC <= offset < _MNOC + 0x200:
            return self._mnoc_read(offset - _MNOC)
        return self._regs.get(offset, 0)

    def write(self, offset: int, value: int) -> None:
        """One aligned 32-bit write."""
        if self.faults.get("dead") or offset in {0, _BOOT_DONE.get(self.family), _STATUS.get(self.family)}:
            return
        if _EMEM_PORT <= offset < _EMEM_END and offset & 4:
            self._emem_write(offset - 4, value)
        elif self.family == "blackwell" and _MNOC <= offset < _MNOC + 0x200:
            self._mnoc_write(offset - _MNOC, value)
        else:
            self._regs[offset] = value
            if _QUEUE <= offset < _QUEUE_END and offset % 8 == 0 and self._regs[offset + 4] != value:
                self._emem_message((offset - _QUEUE) // 8)

    # FSP over EMEM (Hopper, LS10): a 1 KiB buffer per channel behind an auto-incrementing port.

    def _emem_read(self, control: int) -> int:
        state = self._regs.get(control, 0)
        at = state & 0x1FFC
        if state & 1 << 25:
            self._regs[control] = state & ~0xFFFFFF | at + 4
        return int.from_bytes(self._emem[at : at + 4], "little")

    def _emem_write(self, control: int, value: int) -> None:
        state = self._regs.get(control, 0)
        at = state & 0x1FFC
        self._emem[at : at + 4] = value.to_bytes(4, "little")
        if state & 1 << 24:
            self._regs[control] = state & ~0xFFFFFF | at + 4

    def _emem_message(self, channel: int) -> None:
        base = channel * _CHANNEL_BYTES
        head, tail = self._regs[_QUEUE + 8 * channel], self._regs[_QUEUE + 8 * channel + 4]
        if not base <= head <= tail <= base + _CHANNEL_BYTES - 4 or (head | tail) & 3:
            return  # not a message: the queue stays as it is
        raw = self._emem[head : tail + 4]
        answer = self._fsp([int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)])
        self._emem[base : base + 4 * len(answer)] = b"".join(w.to_bytes(4, "little") for w in answer)
        self._regs[_QUEUE + 8 * channel] = tail
        self._regs[_MSGQ + 8 * channel] = base
        self._regs[_MSGQ + 8 * channel + 4] = base + 4 * (len(answer) - 1)

    # FSP over MNOC (Blackwell): a mailbox with a size word and a data port in each direction.

    def _mnoc_write(self, offset: int, value: int) -> None:
        if offset == 0x184:
            self._expect, self._inbox = (value & 0xFFFFF) // 4, []
        elif offset == 0x188 and self._expect:
            self._inbox.append(value)
            if len(self._inbox) == self._expect:
                self._expect, self._outbox = 0, self._fsp(self._inbox)

    def _mnoc_read(self, offset: int) -> int:
        if offset == 0x104:
            return (1 << 24 | 4 * len(self._outbox)) if self._outbox else 0
        if offset == 0x108:
            return self._outbox.pop(0) if self._outbox else 0
        return 1 << 24 | 1 << 26 if offset == 0x184 else 0

    def _fsp(self, words: list[int]) -> list[int]:
        """Answer one message: knob read (0xc) and knob write (0xd) of NVDM type 0x13."""
        kind = words[1] >> 24 if len(words) > 1 else 0
        status: int = _NOT_PERMITTED
        payload: list[int] = []
        if kind == 0x13 and len(words) > 2:
            status, payload = self._knob(words[2] & 0xFF, words[2] >> 16, words[3] & 0xFFFF if len(words) > 3 else None)
        return [words[0] if words else 0, 0x7E | 0x10DE << 8 | 0x15 << 24, 0, kind, status, *payload]

    def _knob(self, command: int, knob: int, value: int | None) -> tuple[int, list[int]]:
        if knob not in self.knobs or knob in self.faults.get("unknown_knobs", ()):
            return _NO_SUCH_KNOB, []
        if command == 0xC:
            allowed = 0 if self.faults.get("locked") and knob in _ALLOW_INB.values() else self.knobs[knob]
            return 0, [allowed]
        if command != 0xD or value is None:
            return _NOT_PERMITTED, []
        if (fault := self.faults.get("fsp")) is not None:
            left = self.faults.get("fsp_writes_left", 0)
            if left <= 0:
                return int(fault), []
            self.faults["fsp_writes_left"] = left - 1
        permission = _ALLOW_INB.get(knob)
        if permission is not None and (self.faults.get("locked") or not self.knobs[permission]):
            return _NOT_PERMITTED, []
        self.knobs[knob] = value
        return 0, []
