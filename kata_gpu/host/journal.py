"""The write-ahead journal: one open transaction at most, on disk before its first change.

A journal outlives a reboot, because the CC mode does: /var/lib/kata-gpu. Driver bindings die with the boot, so the
record carries the boot id. Every put is whole-file, synced and renamed; a crash leaves the old or the new record.

So a file that is not as we wrote it was damaged or written by others. It is Malformed, which names file and row, and
never taken for an empty one: nothing of the node is changed, and no claim prepared, until a person has looked.
"""

import json
import reprlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from kata_gpu.core.actions import Action, Binding, parse_action, parse_binding, to_json
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import Malformed
from kata_gpu.host.durable import DurableDir

VERSION = 1
HINT = "compare `kata-gpu node status` with what the devices should be, then move the file away"
_JOURNAL = "journal.json"
_LAST = "last.json"
_ORIGINS = "origins.json"
_MODES = "modes.json"
_WEDGED = "wedged.json"
_REMOVED = "removed.json"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transaction:
    """What is being done. `step` counts actions begun: all before it are done, the last of them perhaps partly."""

    purpose: str
    boot_id: str
    pid: int
    actions: tuple[Action, ...]
    step: int = 0
    reason: str = ""

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.purpose} of process {self.pid}, step {self.step} of {len(self.actions)}{reason}"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not text")  # noqa: TRY004 - what `parse` raises for a value of any kind
    return value


class Journal:
    """The node's own state: journal, original drivers, last verified modes, wedged devices."""

    def __init__(self, directory: DurableDir) -> None:
        """Nothing is read yet."""
        self._dir = directory

    def open_transaction(self) -> Transaction | None:
        """The transaction that was not finished; None where there is none. Raises Malformed."""
        data = self._load(_JOURNAL)
        if data is None:
            return None
        where = str(self._dir.path / _JOURNAL)
        match data:
            case {
                "version": version, "purpose": str(purpose), "boot_id": str(boot_id), "pid": int(pid),
                "step": int(step), "reason": str(reason), "actions": list(rows),
            } if version == VERSION and 0 <= step <= len(rows):  # fmt: skip
                actions = tuple(parse_action(row, where=f"{where}: actions[{i}]") for i, row in enumerate(rows))
                return Transaction(purpose=purpose, boot_id=boot_id, pid=pid, actions=actions, step=step, reason=reason)
        raise Malformed(
            "journal", "not a journal of ours", where=where, got=reprlib.repr(data), hint=HINT,
            expected=f"version {VERSION}: purpose, boot_id, pid, reason, actions, and a step among them",
        )  # fmt: skip

    def record(self, transaction: Transaction) -> None:
        """Make the transaction durable: before its first change, and again before each further action."""
        self._save(
            _JOURNAL,
            {
                "version": VERSION,
                "purpose": transaction.purpose,
                "boot_id": transaction.boot_id,
                "pid": transaction.pid,
                "step": transaction.step,
                "reason": transaction.reason,
                "actions": [to_json(a) for a in transaction.actions],
            },
        )

    def replace_action(self, transaction: Transaction, index: int, action: Action) -> Transaction:
        """The transaction with what was found out about one action, made durable."""
        actions = (*transaction.actions[:index], action, *transaction.actions[index + 1 :])
        transaction = replace(transaction, actions=actions)
        self.record(transaction)
        return transaction

    def close(self, transaction: Transaction, outcome: str) -> None:
        """The transaction is over: `applied`, or `undone` completely. `last_outcome` tells it from now on."""
        self._save(_LAST, {"purpose": transaction.purpose, "outcome": outcome, "reason": transaction.reason})
        self._dir.remove(_JOURNAL)

    def last_outcome(self) -> dict[str, str]:
        """Purpose, outcome and reason of the last transaction that ended; empty where there was none."""
        match self._load(_LAST):
            case None:
                return {}
            case {"purpose": str(purpose), "outcome": str(outcome), "reason": str(reason)}:
                return {"purpose": purpose, "outcome": outcome, "reason": reason}
            case other:
                raise self._malformed(_LAST, "purpose, outcome and reason", other)

    def origins(self, boot_id: str) -> dict[PciAddress, Binding]:
        """Where each function was before we first took it in this boot."""
        return self._of_boot(_ORIGINS, boot_id, parse_binding, "[driver, override]")

    def set_origins(self, boot_id: str, origins: dict[PciAddress, Binding]) -> None:
        """Replace them; written only when they change."""
        if origins != self.origins(boot_id):
            rows = {str(k): [v.driver, v.override] for k, v in sorted(origins.items())}
            self._save(_ORIGINS, {"boot_id": boot_id, "rows": rows})

    def modes(self, boot_id: str) -> dict[PciAddress, CcMode]:
        """CC modes as last read back from each device in this boot."""
        return self._of_boot(_MODES, boot_id, CcMode, "a CC mode")

    def set_modes(self, boot_id: str, modes: dict[PciAddress, CcMode]) -> None:
        """Replace them; written only when they change."""
        if modes != self.modes(boot_id):
            self._save(_MODES, {"boot_id": boot_id, "rows": {str(k): v for k, v in sorted(modes.items())}})

    def wedged(self, boot_id: str) -> dict[PciAddress, str]:
        """Functions whose unbind never returned in this boot, and who held them."""
        return self._of_boot(_WEDGED, boot_id, _text, "text")

    def set_wedged(self, boot_id: str, wedged: dict[PciAddress, str]) -> None:
        """Replace them; written only when they change."""
        if wedged != self.wedged(boot_id):
            self._save(_WEDGED, {"boot_id": boot_id, "rows": {str(k): v for k, v in sorted(wedged.items())}})

    def removed(self, boot_id: str) -> dict[PciAddress, str]:
        """Functions that were taken off the bus in this boot to be found again, and their drivers."""
        return self._of_boot(_REMOVED, boot_id, _text, "text")

    def set_removed(self, boot_id: str, removed: dict[PciAddress, str]) -> None:
        """Replace them; written only when they change."""
        if removed != self.removed(boot_id):
            self._save(_REMOVED, {"boot_id": boot_id, "rows": {str(k): v for k, v in sorted(removed.items())}})

    def _of_boot(self, name: str, boot_id: str, parse: Callable[[Any], _T], expected: str) -> dict[PciAddress, _T]:
        """Rows by address; none where the file is of another boot. `parse` raises ValueError."""
        match self._load(name):
            case None:
                return {}
            case {"boot_id": str(written), "rows": dict(rows)}:
                if written != boot_id:
                    return {}
            case other:
                raise self._malformed(name, "boot_id and rows", other)
        found = {}
        for address, row in rows.items():
            try:
                found[PciAddress.parse(address)] = parse(row)
            except (ValueError, Malformed) as exc:
                raise self._malformed(name, f"{expected} by PCI address", {address: row}) from exc
        return found

    def _load(self, name: str) -> dict[str, Any] | None:
        raw = self._dir.get(name)
        if raw is None:
            return None
        try:
            data = json.loads(raw)
        except (ValueError, RecursionError) as exc:
            raise self._malformed(name, "JSON", raw) from exc
        if not isinstance(data, dict):
            raise self._malformed(name, "an object", data)
        return data

    def _malformed(self, name: str, expected: str, got: object) -> Malformed:
        return Malformed(
            "node-state", "not a state file of ours", where=str(self._dir.path / name), expected=expected,
            got=reprlib.repr(got), hint=HINT,
        )  # fmt: skip

    def _save(self, name: str, data: dict[str, Any]) -> None:
        self._dir.put(name, json.dumps(data, indent=1).encode())
