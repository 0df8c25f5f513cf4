"""Finish with what an earlier run left open: after kill -9, a crash or a reboot the node is as before that run."""

from kata_gpu.core.actions import Bind, Binding, Publish, Switch
from kata_gpu.core.pci import VFIO_PCI, PciAddress
from kata_gpu.errors import KataGpuError
from kata_gpu.host.binding import converge_binding, read_binding
from kata_gpu.host.journal import Transaction
from kata_gpu.ops.apply import UNDONE, find_function, run_action, undo
from kata_gpu.ops.node import Node
from kata_gpu.ops.observe import boot_id, observe
from kata_gpu.ops.revive import finish_revival


def recover(node: Node) -> str:
    """Undo an open transaction, under the caller's lock. Returns what was done, empty where nothing was open.

    In the boot that began it, every action is undone, last first. After a reboot bindings and CDI files are gone by
    themselves; CC modes are not, and are brought back through a binding that lasts only as long as that takes.
    A device that was taken off the bus is found again first. Raises as `apply` does when undoing fails; the journal
    then stays open.
    """
    found = finish_revival(node)
    transaction = node.journal.open_transaction()
    if transaction is None:
        return found
    if transaction.boot_id == boot_id(node.host):
        undo(node, transaction, reason=transaction.reason or "the process that did it has died")
    else:
        _after_reboot(node, transaction)
        node.journal.close(transaction, UNDONE)
    return "; ".join(part for part in (found, f"undone: {transaction}") if part)


def _after_reboot(node: Node, transaction: Transaction) -> None:
    for index in range(transaction.step - 1, -1, -1):
        action = transaction.actions[index]
        match action:
            case Publish():
                node.cdi.remove(action.file)
            case Switch() if action.found is not None:
                _restore_modes(node, transaction, index, action)
            case Switch() | Bind():
                continue


def _restore_modes(node: Node, transaction: Transaction, index: int, action: Switch) -> None:
    """Bring the modes back on VFIO. Where each function was is on disk before it is moved: this may be killed too."""
    inventory = observe(node.host)
    devices = [inventory.device(change.address) for change in action.changes]
    functions = [f for d in devices for f in reversed(d.unit)]
    node.guard.require_free(functions)
    lent = dict(node.journal.origins(inventory.boot_id))
    for function in functions:
        if not function.on_vfio:
            lent.setdefault(function.address, read_binding(node.host, function.address))
    node.journal.set_origins(inventory.boot_id, lent)
    error = None
    try:
        for function in functions:
            if function.address in lent:
                _move(node, function.address, Binding(driver=VFIO_PCI, override=VFIO_PCI))
        run_action(node, transaction, index, undo=True)
    except KataGpuError as exc:
        error = exc
    for function in functions:
        if (before := lent.get(function.address)) is None:
            continue
        try:
            _move(node, function.address, before)
        except KataGpuError as exc:
            error = error or exc
            continue
        del lent[function.address]
        node.journal.set_origins(inventory.boot_id, lent)
    if error is not None:
        raise error


def _move(node: Node, address: PciAddress, wanted: Binding) -> None:
    converge_binding(
        node.host, address, wanted, require_free=lambda: node.guard.require_free([find_function(node, address)])
    )
