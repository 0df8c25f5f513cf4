"""Devices on VFIO whose mode nobody has read since they came there: a process died between binding and reading."""

from kata_gpu.core.checkpoint import Checkpoint
from kata_gpu.core.inventory import Inventory
from kata_gpu.ports import NodeDevices


def read_unread(devices: NodeDevices, inventory: Inventory, checkpoint: Checkpoint) -> Inventory:
    """With their modes read from the registers. What is set aside (its mode may be changing) or open is left alone."""
    unread = [
        str(d.function.address)
        for d in inventory.devices
        if d.bound and d.modes and d.cc_mode is None and not d.problem
    ]
    unread = [a for a in unread if checkpoint.quarantined(a) is None]
    open_by = devices.holders(inventory, unread) if unread else {}
    free = [a for a in unread if a not in open_by]
    return devices.verify(inventory, free) if free else inventory
