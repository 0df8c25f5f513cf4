"""Carry a plan out: record intent, act, read back, done. On failure everything done is undone.

Killed anywhere, the journal says what was begun; `recover` brings the node to the state before or after, never between.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

from kata_gpu.core.actions import Bind, Publish, Switch
from kata_gpu.core.cdi import FILES, device_nodes, parse_spec, render_spec
from kata_gpu.core.gpu import CcMode, GpuDevice
from kata_gpu.core.pci import PciAddress, PciFunction
from kata_gpu.core.plan import Observed, Plan
from kata_gpu.errors import InUse, KataGpuError, LockedOutOfBand, Misconfigured, RolledBack, TimedOut, Unavailable
from kata_gpu.host.binding import converge_binding
from kata_gpu.host.cc.backend import switch_modes
from kata_gpu.host.journal import Transaction
from kata_gpu.ops.node import Node
from kata_gpu.ops.observe import observe

APPLIED, UNDONE = "applied", "undone"


def apply(node: Node, plan: Plan, observed: Observed) -> Plan:
    """Carry out a plan that was made from `observed`, under the caller's lock. Returns it with what was found out.

    Raises InUse before anything is changed; RolledBack when a step failed and all was undone (LockedOutOfBand, InUse
    keep their own type then); anything else when undoing failed too: the journal stays open for `recover`.
    """
    if not plan.actions:
        return plan
    if (left := node.journal.open_transaction()) is not None:
        raise Unavailable("transaction-open", f"an earlier run did not finish: {left}", hint="kata-gpu recover")
    inventory = observed.inventory
    functions = {f.address: f for d in inventory.devices for f in d.unit}
    node.guard.require_free(functions[a] for a in plan.touched)
    transaction = Transaction(purpose=plan.purpose, boot_id=inventory.boot_id, pid=os.getpid(), actions=plan.actions)
    node.journal.record(transaction)
    try:
        for index in range(len(transaction.actions)):
            transaction = _begin(node, transaction, index)
            transaction = run_action(node, transaction, index, undo=False)
    except KataGpuError as exc:
        # The record on disk knows more than this frame: a switch adds what it found before its first change.
        _undo_after(node, node.journal.open_transaction() or transaction, exc)
        if isinstance(exc, LockedOutOfBand | InUse):
            raise
        raise RolledBack("rolled-back", f"undone because: {exc}", hint=exc.hint) from exc
    node.journal.close(transaction, APPLIED)
    return replace(plan, actions=transaction.actions)


def _undo_after(node: Node, transaction: Transaction, error: KataGpuError) -> None:
    """Undo; where that fails too, say both, and keep TimedOut for a device that may be wedged."""
    try:
        undo(node, transaction, reason=str(error))
    except KataGpuError as exc:
        kind = TimedOut if isinstance(exc, TimedOut) or isinstance(error, TimedOut) else Unavailable
        raise kind(
            "undo-failed",
            f"{error}; undoing it failed as well, nothing is offered to pods",
            got=str(exc),
            hint="kata-gpu node status; kata-gpu recover when the device answers again",
        ) from exc


def undo(node: Node, transaction: Transaction, *, reason: str) -> None:
    """Bring everything that a transaction began back, last first, and close the journal.

    The first action that cannot be undone stops it and stays in the journal: what comes before it (the withdrawn CDI
    entry among it) stays as it is, so a device in doubt is not offered.
    """
    transaction = replace(transaction, reason=reason)
    node.journal.record(transaction)
    node.progress(f"undoing: {reason}")
    for index in range(min(transaction.step, len(transaction.actions)) - 1, -1, -1):
        transaction = run_action(node, transaction, index, undo=True)
    node.journal.close(transaction, UNDONE)


def run_action(node: Node, transaction: Transaction, index: int, *, undo: bool) -> Transaction:
    """Converge one action to its after side, or with `undo` to its before side."""
    action = transaction.actions[index]
    match action:
        case Bind():
            _bind(node, transaction.boot_id, action, undo=undo)
        case Switch():
            return _switch(node, transaction, index, action, undo=undo)
        case Publish():
            _publish(node, action, undo=undo)
    return transaction


def _begin(node: Node, transaction: Transaction, index: int) -> Transaction:
    action = transaction.actions[index]
    if isinstance(action, Publish):
        raw = node.cdi.get(action.file)
        action = replace(action, before=None if raw is None else raw.decode("utf-8", "replace"))
    transaction = replace(transaction, step=index + 1)
    transaction = node.journal.replace_action(transaction, index, action)
    node.progress(str(action).splitlines()[0] if not isinstance(action, Switch) else "CC mode  reading all devices")
    return transaction


def _bind(node: Node, boot_id: str, action: Bind, *, undo: bool) -> None:
    wanted, other = (action.before, action.after) if undo else (action.after, action.before)
    origins = dict(node.journal.origins(boot_id))
    taking = wanted.override is not None
    if taking:
        origins.setdefault(action.address, other)
        node.journal.set_origins(boot_id, origins)

    def require_free() -> None:
        node.guard.require_free([find_function(node, action.address)])

    try:
        converge_binding(node.host, action.address, wanted, require_free=require_free)
    except TimedOut as exc:
        wedged = dict(node.journal.wedged(boot_id))
        wedged[action.address] = str(exc)
        node.journal.set_wedged(boot_id, wedged)
        raise
    _forget_mode(node, boot_id, [action.address])
    if not taking:
        origins.pop(action.address, None)
        node.journal.set_origins(boot_id, origins)


def _switch(node: Node, transaction: Transaction, index: int, action: Switch, *, undo: bool) -> Transaction:
    """Undoing needs what was found before the first change; where nothing was recorded, nothing was changed."""
    if undo and action.found is None:
        return transaction
    inventory = observe(node.host)
    backend = node.cc_backend(inventory)
    targets = action.targets(undo=undo)
    devices = [inventory.device(address) for address in targets]
    for device in devices:
        if reason := backend.unsupported(device):
            raise Misconfigured("backend-unsupported", reason, where=str(device.function))
    node.guard.require_free(f for d in devices for f in d.unit)
    current = transaction

    def on_found(found: dict[PciAddress, CcMode | None]) -> None:
        nonlocal current
        _forget_mode(node, transaction.boot_id, list(targets))
        if not undo:
            current = node.journal.replace_action(current, index, action.with_found(found))

    with backend.session(devices) as session:
        switch_modes(session, targets, on_found=on_found, progress=node.progress, keep_going=undo)
    modes = dict(node.journal.modes(inventory.boot_id))
    modes.update(targets)
    node.journal.set_modes(inventory.boot_id, modes)
    return current


def _publish(node: Node, action: Publish, *, undo: bool) -> None:
    inventory = observe(node.host)
    if undo:
        # Only the names come back: cdev numbers may have changed, and an old path may lead to another GPU now.
        names = device_nodes(parse_spec(action.before, where=action.file)) if action.before is not None else {}
        wanted = [d for d in inventory.devices if d.name in names]
    else:
        wanted = [d for d in inventory.devices if d.function.address in action.devices]
    content = _render(node, action.file, wanted, iommufd=inventory.iommufd)
    if content is None:
        node.cdi.remove(action.file)
    else:
        parse_spec(content, where=action.file)
        node.cdi.put(action.file, content.encode())


def _render(node: Node, file: str, devices: Sequence[GpuDevice], *, iommufd: bool) -> str | None:
    """The new file; entries of devices that somebody uses stay as they are."""
    kind = next(k for k, name in FILES.items() if name == file)
    raw = node.cdi.get(file)
    old = device_nodes(parse_spec(raw, where=file)) if raw is not None else {}
    holders = node.guard.holders((d.function for d in devices if d.name in old), probe=True)
    frozen = {d.name: old[d.name] for d in devices if d.name in old and holders[d.function.address]}
    return render_spec(kind, devices, iommufd=iommufd, frozen=frozen)


def find_function(node: Node, address: PciAddress) -> PciFunction:
    """The function at an address, as it is now. Raises Unavailable where it is gone."""
    for device in observe(node.host).devices:
        for function in device.unit:
            if function.address == address:
                return function
    raise Unavailable("device-gone", "the device is not there any more", where=str(address))


def _forget_mode(node: Node, boot_id: str, addresses: Sequence[PciAddress]) -> None:
    """A mode is known again only when it has been read back."""
    modes = dict(node.journal.modes(boot_id))
    for address in addresses:
        modes.pop(address, None)
    node.journal.set_modes(boot_id, modes)
