"""The write-ahead journal: one open transaction at most, on disk before its first change.

A journal outlives a reboot, because the CC mode does: /var/lib/kata-gpu. Driver bindings die with the boot, so the
record carries the boot id. Every put is whole-file, synced and renamed; a crash leaves the old or the new record.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

from kata_gpu.core.actions import Action, Binding, parse_action, to_json
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import Malformed
from kata_gpu.host.durable import DurableDir

VERSION = 1
_JOURNAL = "journal.json"
_LAST = "last.json"
_ORIGINS = "origins.json"
_MODES = "modes.json"
_WEDGED = "wedged.json"
_REMOVED = "removed.json"


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
        try:
            if data["version"] != VERSION:
                raise Malformed("journal-version", "unknown journal version", where=where, expected=VERSION)
            return Transaction(
                purpose=str(data["purpose"]),
                boot_id=str(data["boot_id"]),
                pid=int(data["pid"]),
                actions=tuple(parse_action(a, where=where) for a in data["actions"]),
                step=int(data["step"]),
                reason=str(data["reason"]),
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise Malformed("journal", "not a journal", where=where, got=repr(exc)) from exc

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
        return {k: str(v) for k, v in (self._load(_LAST) or {}).items()}

    def origins(self, boot_id: str) -> dict[PciAddress, Binding]:
        """Where each function was before we first took it in this boot."""
        rows = self._of_boot(_ORIGINS, boot_id)
        return {PciAddress.parse(k): Binding(driver=v[0], override=v[1]) for k, v in rows.items()}

    def set_origins(self, boot_id: str, origins: dict[PciAddress, Binding]) -> None:
        """Replace them; written only when they change."""
        if origins != self.origins(boot_id):
            rows = {str(k): [v.driver, v.override] for k, v in sorted(origins.items())}
            self._save(_ORIGINS, {"boot_id": boot_id, "rows": rows})

    def modes(self, boot_id: str) -> dict[PciAddress, CcMode]:
        """CC modes as last read back from each device in this boot."""
        return {PciAddress.parse(k): CcMode(v) for k, v in self._of_boot(_MODES, boot_id).items()}

    def set_modes(self, boot_id: str, modes: dict[PciAddress, CcMode]) -> None:
        """Replace them; written only when they change."""
        if modes != self.modes(boot_id):
            self._save(_MODES, {"boot_id": boot_id, "rows": {str(k): v for k, v in sorted(modes.items())}})

    def wedged(self, boot_id: str) -> dict[PciAddress, str]:
        """Functions whose unbind never returned in this boot, and who held them."""
        return {PciAddress.parse(k): str(v) for k, v in self._of_boot(_WEDGED, boot_id).items()}

    def set_wedged(self, boot_id: str, wedged: dict[PciAddress, str]) -> None:
        """Replace them; written only when they change."""
        if wedged != self.wedged(boot_id):
            self._save(_WEDGED, {"boot_id": boot_id, "rows": {str(k): v for k, v in sorted(wedged.items())}})

    def removed(self, boot_id: str) -> dict[PciAddress, str]:
        """Functions that were taken off the bus in this boot to be found again, and their drivers."""
        return {PciAddress.parse(k): str(v) for k, v in self._of_boot(_REMOVED, boot_id).items()}

    def set_removed(self, boot_id: str, removed: dict[PciAddress, str]) -> None:
        """Replace them; written only when they change."""
        if removed != self.removed(boot_id):
            self._save(_REMOVED, {"boot_id": boot_id, "rows": {str(k): v for k, v in sorted(removed.items())}})

    def _of_boot(self, name: str, boot_id: str) -> dict[str, Any]:
        data = self._load(name)
        if data is None or data.get("boot_id") != boot_id:
            return {}
        rows = data.get("rows")
        if not isinstance(rows, dict):
            raise Malformed("node-state", "not our state file", where=str(self._dir.path / name))
        return rows

    def _load(self, name: str) -> dict[str, Any] | None:
        raw = self._dir.get(name)
        if raw is None:
            return None
        try:
            data = json.loads(raw)
        except ValueError as exc:
            raise Malformed("node-state", "not valid JSON", where=str(self._dir.path / name)) from exc
        if not isinstance(data, dict):
            raise Malformed("node-state", "not our state file", where=str(self._dir.path / name))
        return data

    def _save(self, name: str, data: dict[str, Any]) -> None:
        self._dir.put(name, json.dumps(data, indent=1).encode())
