"""Resets of a function: `reset`, `reset_method`, and what VFIO asks for."""

import errno

from kata_gpu.host.simkernel.drivers import wait
from kata_gpu.host.simkernel.machine import Function, Machine
from kata_gpu.host.simkernel.syscall import Blocked, fail


def reset(machine: Machine, function: Function, data: bytes) -> None:
    """Write to `reset`. Succeeds on a device that somebody else holds: nothing in the kernel protects it."""
    if data.strip() != b"1":
        raise fail(errno.EINVAL)
    if function.pending:
        raise wait(function, "reset")
    if not function.resets:
        raise fail(errno.ENOTTY)
    device_reset(machine, function)


def device_reset(machine: Machine, function: Function) -> None:
    """Reset the function with its first method."""
    chip = function.chip
    function.memory_enabled = False
    if chip is None:
        return
    if chip.faults.get("dead") == "until-bus-reset" and function.resets[0] == "bus":
        chip.faults["dead"] = "until-enumerated"  # it answers, and its BARs are where all ones put them
        raise fail(errno.ENOTTY)  # the link was down for too long; seen on 6.12
    if chip.faults.get("dead") or chip.faults.get("reset") == "hang":
        raise Blocked  # 70 to 208 s, then ENOTTY
    if chip.faults.get("reset") == "error":
        raise fail(errno.EIO)
    chip.reset(machine.now)


def set_reset_method(function: Function, data: bytes) -> None:
    """Write to `reset_method`: space separated names, `default`, or nothing to switch resets off."""
    text = data.decode("ascii", "replace").strip()
    if text == "default":
        function.resets = list(function.offered_resets)
        return
    names = text.split()
    if any(name not in function.offered_resets for name in names):
        raise fail(errno.EINVAL)
    function.resets = names
