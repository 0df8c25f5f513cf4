"""What a plan consists of. Each action names its state before and after, so that it can be undone from a journal.

Carrying an action out, and undoing it, both mean: look at the device, then converge to the wanted side. That makes
every action idempotent, and a half-done one as good as one that never began.
"""

import reprlib
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from kata_gpu.core.cdi import FILES
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import Malformed


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Driver of a function and its `driver_override`; None for none."""

    driver: str | None = None
    override: str | None = None

    def __str__(self) -> str:
        return self.driver or "no driver"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """Move one function to another driver."""

    address: PciAddress
    before: Binding
    after: Binding

    def __str__(self) -> str:
        return f"driver   {self.address}  {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeChange:
    """One device of a switch. `before` is None until it has been read, or where it is the invalid state."""

    address: PciAddress
    before: CcMode | None
    after: CcMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch:
    """Switch the CC mode of a set: stage all, reset all, verify all. All of them change or none does.

    `found` is recorded before the first device is touched: what an undo returns to.
    """

    changes: tuple[ModeChange, ...]
    found: tuple[CcMode | None, ...] | None = None

    def targets(self, *, undo: bool) -> dict[PciAddress, CcMode]:
        """Where each device must end. Undoing an unreadable or invalid state ends in `off`, its only safe cure."""
        if not undo:
            return {c.address: c.after for c in self.changes}
        before = self.found if self.found is not None else tuple(c.before for c in self.changes)
        return {c.address: mode or CcMode.OFF for c, mode in zip(self.changes, before, strict=True)}

    def with_found(self, found: dict[PciAddress, CcMode | None]) -> "Switch":
        """The same, with the modes that were read."""
        return replace(self, found=tuple(found[c.address] for c in self.changes))

    def __str__(self) -> str:
        if self.found is None:
            rows = [(c, f"{c.before or 'not read yet'} -> {c.after}") for c in self.changes]
        else:
            pairs = zip(self.changes, self.found, strict=True)
            rows = [(c, f"{c.after} already" if b is c.after else f"{b or 'invalid'} -> {c.after}") for c, b in pairs]
        return "\n".join(f"CC mode  {c.address}  {what}" for c, what in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Publish:
    """Rewrite one CDI file for these devices; None for `before` means that there was no file.

    What goes in depends on cdev numbers that exist only once the devices are bound, so it is rendered when it runs.
    """

    file: str
    devices: tuple[PciAddress, ...]
    before: str | None = None

    def __str__(self) -> str:
        verb = f"{len(self.devices)} devices" if self.devices else "withdrawn"
        return f"CDI      {self.file}  {verb}"


Action: TypeAlias = Bind | Switch | Publish


def to_json(action: Action) -> dict[str, Any]:
    """For the journal."""
    match action:
        case Bind():
            return {
                "do": "bind",
                "address": str(action.address),
                "before": [action.before.driver, action.before.override],
                "after": [action.after.driver, action.after.override],
            }
        case Switch():
            return {
                "do": "switch",
                "changes": [[str(c.address), c.before, c.after] for c in action.changes],
                "found": None if action.found is None else list(action.found),
            }
        case Publish():
            return {
                "do": "publish",
                "file": action.file,
                "devices": [str(a) for a in action.devices],
                "before": action.before,
            }


def parse_action(data: Any, *, where: str) -> Action:
    """Inverse of `to_json`, to the letter. Raises Malformed."""
    try:
        match data:
            case {"do": "bind", "address": str(address), "before": before, "after": after}:
                return Bind(address=PciAddress.parse(address), before=parse_binding(before), after=parse_binding(after))
            case {"do": "switch", "changes": list(changes), "found": list() | None as found}:
                return Switch(
                    changes=tuple(_change(row) for row in changes),
                    found=None if found is None else tuple(_mode(m) for _, m in zip(changes, found, strict=True)),
                )
            case {"do": "publish", "file": str(file), "devices": list(devices), "before": str() | None as before}:
                if file in FILES.values():
                    return Publish(file=file, devices=tuple(_address(d) for d in devices), before=before)
    except (ValueError, TypeError, Malformed) as exc:
        raise _not_an_action(data, where) from exc
    raise _not_an_action(data, where)


def parse_binding(data: Any) -> Binding:
    """`[driver, override]`. Raises ValueError."""
    match data:
        case [str() | None as driver, str() | None as override]:
            return Binding(driver=driver, override=override)
    raise ValueError("not a driver and its override")


def _change(row: Any) -> ModeChange:
    address, before, after = row
    return ModeChange(address=_address(address), before=_mode(before), after=CcMode(after))


def _address(value: Any) -> PciAddress:
    if not isinstance(value, str):
        raise TypeError("not a PCI address")
    return PciAddress.parse(value)


def _mode(value: Any) -> CcMode | None:
    return None if value is None else CcMode(value)


def _not_an_action(data: Any, where: str) -> Malformed:
    return Malformed(
        "journal-action", "not an action", where=where, expected="bind, switch or publish, as they were written",
        got=reprlib.repr(data),
    )  # fmt: skip
