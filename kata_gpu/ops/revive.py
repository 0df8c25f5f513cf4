"""Bring back a device that fell off the bus: wake it, reset its slot, enumerate it anew.

A function-level reset cannot reach a device that answers all ones. A secondary bus reset does, and the kernel offers it
where the function is alone on its bus. What the kernel saved of such a device's configuration is all ones too, so it is
removed and found again; it comes back without override and, where one is loaded, with its native driver: `node setup`
takes it from there. Killed in between, `recover` finds it again.
"""

import errno
from contextlib import suppress

from kata_gpu.core.pci import PciAddress, PciFunction
from kata_gpu.errors import KataGpuError, RebootNeeded, TimedOut, Unavailable
from kata_gpu.host.owners import require_sole_owner
from kata_gpu.host.vfio_device import responds
from kata_gpu.ops.node import Node
from kata_gpu.ops.observe import boot_id, observe

_PCI = "/sys/bus/pci"
WRITE_S = 20.0
RESET_S = 90.0  # the kernel waits 60 s for a device after a bus reset (PCIE_RESET_READY_POLL_MS), then gives up
_WAKE_S, _TRAIN_S, _POLL_S = 2.0, 5.0, 0.1  # PCIe gives a device 1 s after power or reset until it must answer


def revive(node: Node, address: PciAddress) -> str:
    """Under the caller's lock. Returns what helped; a device that answers is left alone.

    Raises InUse naming a holder, RebootNeeded where only a power cycle is left, TimedOut, Unavailable.
    """
    require_sole_owner(node.host)
    device = observe(node.host).device(address)
    if responds(node.host, device.function):
        return f"{address} answers: nothing to do"
    node.guard.require_free(device.unit)
    if _wake(node, device.function):
        return f"{address} was in {device.function.power_state} and woke up"
    if "bus" not in device.function.reset_methods:
        raise _power_cycle(address, "its slot cannot be reset alone: it shares the bus, or the port cannot")
    current = boot_id(node.host)
    # On disk before the reset: from then on it answers with BARs that lead nowhere, and later it is in no inventory.
    node.journal.set_removed(current, {address: str(device.function.driver or "")})
    modes = node.journal.modes(current)
    modes.pop(address, None)
    node.journal.set_modes(current, modes)
    _reset_bus(node, device.function)
    finish_revival(node)
    found = next((d.function for d in observe(node.host).devices if d.function.address == address), None)
    if found is None or not responds(node.host, found):
        raise _power_cycle(address, "it does not answer after a reset of its bus either")
    return f"{address} answers again after a reset of its bus"


def finish_revival(node: Node) -> str:
    """Enumerate anew what had its bus reset, also by a run that was killed. Empty where there is nothing.

    A device that is still dead stays: no scan would find it.
    """
    current = boot_id(node.host)
    removed = node.journal.removed(current)
    if not removed:
        return ""
    there = {d.function.address: d.function for d in observe(node.host).devices}
    for address in removed:
        function = there.get(address)
        if function is None:
            continue
        _write(node, f"{_PCI}/devices/{address}/reset_method", "default", WRITE_S)
        if responds(node.host, function):
            node.guard.require_free([function])
            node.progress(f"remove   {address}")
            _write(node, f"{_PCI}/devices/{address}/remove", "1", RESET_S)
    node.progress("rescan   all buses")
    _write(node, f"{_PCI}/rescan", "1", WRITE_S)
    node.journal.set_removed(current, {})
    return f"enumerated again: {', '.join(map(str, removed))}"


def _wake(node: Node, function: PciFunction) -> bool:
    """Whether power alone brings it back: a device in D3cold reads all ones like a dead one."""
    with suppress(KataGpuError):
        _write(node, f"{_PCI}/devices/{function.address}/power/control", "on", WRITE_S)
    return _answers(node, function, _WAKE_S)


def _answers(node: Node, function: PciFunction, seconds: float) -> bool:
    until = node.host.monotonic() + seconds
    while not responds(node.host, function):
        if node.host.monotonic() >= until:
            return False
        node.host.sleep(_POLL_S)
    return True


def _reset_bus(node: Node, function: PciFunction) -> None:
    """ENOTTY is no verdict: a kernel that finds the link down gives up after 100 ms, and the device may yet answer."""
    path = f"{_PCI}/devices/{function.address}"
    node.progress(f"reset    {function.address}  its bus")
    _write(node, f"{path}/reset_method", "bus", WRITE_S)
    try:
        _write(node, f"{path}/reset", "1", RESET_S)
    except Unavailable as exc:
        if exc.got != errno.errorcode[errno.ENOTTY]:
            raise
    _answers(node, function, _TRAIN_S)


def _write(node: Node, path: str, text: str, deadline_s: float) -> None:
    try:
        node.host.write(path, text.encode(), deadline_s=deadline_s)
    except OSError as exc:
        name = errno.errorcode.get(exc.errno or 0, "unknown error")
        raise Unavailable("sysfs-write", f"writing {text} failed", where=path, got=name) from exc
    except TimedOut as exc:
        raise TimedOut(
            "revive-blocked",
            "the kernel is still busy with the device",
            where=path,
            got=f"nothing in {deadline_s:g} s",
            hint="it gives up within some minutes; `kata-gpu recover` then, or power-cycle the node",
        ) from exc


def _power_cycle(address: PciAddress, why: str) -> RebootNeeded:
    return RebootNeeded(
        "device-dead",
        "the device does not answer",
        where=str(address),
        got=why,
        hint="power-cycle the server (a warm reboot may not be enough), then `kata-gpu doctor` IOM-14",
    )
