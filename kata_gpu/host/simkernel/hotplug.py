"""Functions that go and come back: `remove` and `rescan`."""

from kata_gpu.host.simkernel.drivers import autoprobe, release, wait
from kata_gpu.host.simkernel.machine import Function, Machine
from kata_gpu.host.simkernel.syscall import Blocked


def remove(machine: Machine, function: Function, data: bytes) -> None:
    """Write to `remove`: unplug in software. Where it blocks it keeps the lock that every rescan needs."""
    if data.strip() != b"1":
        return
    if function.pending:
        raise wait(function, "remove")
    if function.driver is not None:
        try:
            release(machine, function)
        except Blocked:
            raise wait(function, "remove") from None
    machine.unplugged[function.address] = machine.functions.pop(function.address)


def rescan(machine: Machine, data: bytes) -> None:
    """Write to `rescan`: functions come back without override and go to their native driver, `drivers_autoprobe` or
    not.
    """
    if data.strip() != b"1":
        return
    for function in machine.functions.values():
        if ["remove"] in function.queue:
            raise wait(function, "rescan")
    for address in sorted(machine.unplugged):
        function = machine.unplugged.pop(address)
        function.override = None
        if function.chip is not None and function.chip.faults.get("dead") == "until-enumerated":
            del function.chip.faults["dead"]
            function.chip.reset(machine.now)
        machine.functions[address] = function
        _regroup(machine, function)
        autoprobe(machine, function)


def _regroup(machine: Machine, function: Function) -> None:
    """A function that was alone finds its group again, unless somebody has that one open: it gets a new number then."""
    alone = machine.members(function.group) == [function]
    opened = {h.target for h in machine.handles if h.kind == "group"}
    if alone and str(function.group) in opened:
        used = {str(f.group) for f in machine.functions.values()} | opened
        function.group = next(n for n in range(len(used) + 1) if str(n) not in used)
