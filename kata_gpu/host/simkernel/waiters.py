"""What waited for the lock of a device whose unbind was blocked."""

from contextlib import suppress

from kata_gpu.host.simkernel.drivers import bind, drop_made_up_group, set_override
from kata_gpu.host.simkernel.hotplug import remove, rescan
from kata_gpu.host.simkernel.machine import Function, Machine
from kata_gpu.host.simkernel.resets import reset
from kata_gpu.host.simkernel.syscall import Blocked


def settle(machine: Machine, function: Function) -> None:
    """The last user is gone: the blocked unbind ends, and then all that waited behind it, in order.

    The callers may long be killed: a task that waits for the lock finishes its work before it dies.
    """
    function.pending = ""
    drop_made_up_group(function)
    for waiter in [p.pid for p in machine.processes.values() if p.waits_for == function.address]:
        del machine.processes[waiter]
    queue, function.queue = function.queue, []
    for operation in queue:
        with suppress(OSError, Blocked):
            match operation:
                case ["bind", driver]:
                    bind(machine, driver, function.address.encode())
                case ["override", text]:
                    set_override(machine, function, text.encode())
                case ["reset"]:
                    reset(machine, function, b"1")
                case ["remove"]:
                    remove(machine, function, b"1")
                case ["rescan"]:
                    rescan(machine, b"1")
