"""The driver core's rules: override, bind, unbind, probe, dynamic ids, remove and rescan, reset, module loading.

Measured on Ubuntu 6.17 and 7.0 and Debian 6.1, 6.12 and 7.2; every function raises OSError with the kernel's errno.
"""

import errno

from kata_gpu.host.simkernel.machine import BRIDGE_DRIVERS, VFIO_DRIVERS, Function, Machine, Process

_FIRST_WAITER = 90000  # above the processes that tests make
OVERRIDE_LIMIT = 4095  # one page less one byte


class Blocked(Exception):
    """The system call does not return, not even for SIGKILL."""


def fail(code: int) -> OSError:
    """An OSError as the system call would give it."""
    return OSError(code, errno.errorcode[code])


def find(machine: Machine, name: bytes) -> Function:
    """A function by the text written to a bind file: full domain, one trailing newline allowed. ENODEV otherwise."""
    function = machine.functions.get(name.decode("ascii", "replace").removesuffix("\n"))
    if function is None:
        raise fail(errno.ENODEV)
    return function


def matches(machine: Machine, driver: str, function: Function) -> bool:
    """Whether a driver would take a function: an override admits exactly one driver."""
    if function.override is not None:
        return function.override == driver
    return function.native == driver or [function.vendor, function.device] in machine.dynamic_ids.get(driver, [])


def group_owned(machine: Machine, group: int | None) -> bool:
    """Whether user space owns DMA of the group through VFIO."""
    for handle in machine.handles:
        if not handle.bound:
            continue
        if handle.kind == "group" and handle.target == str(group):
            return True
        if handle.kind in {"cdev", "device"} and machine.functions[handle.target].group == group:
            return True
    return False


def held(machine: Machine, address: str) -> bool:
    """Whether an open file keeps the VFIO device alive: an opened cdev does even when it is not bound."""
    return any(h.kind in {"cdev", "device"} and h.target == address for h in machine.handles)


def probe(machine: Machine, driver: str, function: Function) -> None:
    """Call the driver's probe."""
    fault = function.faults.get("probe")
    if fault == "hang":
        raise Blocked
    if fault and driver in VFIO_DRIVERS:
        raise fail(getattr(errno, str(fault)))
    if driver in VFIO_DRIVERS:
        if function.header_type or function.group is None:
            raise fail(errno.EINVAL)
        used = {f.cdev for f in machine.functions.values()}
        function.cdev = next(n for n in range(len(used) + 1) if n not in used)
    elif driver not in BRIDGE_DRIVERS and group_owned(machine, function.group):
        raise fail(errno.EBUSY)
    function.driver = driver
    function.memory_enabled = driver not in VFIO_DRIVERS


def bind(machine: Machine, driver: str, text: bytes) -> None:
    """Write to `drivers/<driver>/bind`."""
    function = find(machine, text)
    if function.pending:
        raise Blocked
    if not matches(machine, driver, function):
        raise fail(errno.ENODEV)
    if function.driver is not None:
        raise fail(errno.EBUSY)
    probe(machine, driver, function)


def unbind(machine: Machine, driver: str, text: bytes) -> None:
    """Write to `drivers/<driver>/unbind`. Blocks while VFIO users are left; the links are gone at once."""
    function = find(machine, text)
    if function.pending == driver:
        raise Blocked
    if function.driver != driver:
        raise fail(errno.ENODEV)
    release(machine, function)


def release(machine: Machine, function: Function) -> None:
    """Detach the driver, or start waiting for its users."""
    blocked = (function.driver in VFIO_DRIVERS and held(machine, function.address)) or function.faults.get(
        "unbind"
    ) == "hang"
    if blocked:
        function.pending = function.driver or ""
        waiter = max([_FIRST_WAITER, *machine.processes]) + 1
        machine.processes[waiter] = Process(pid=waiter, comm="writer", cmdline=["writer"], waits_for=function.address)
    function.driver = None
    function.cdev = None
    if blocked:
        raise Blocked


def autoprobe(machine: Machine, function: Function) -> None:
    """Let the first driver that matches try; failures are only logged, as by the kernel."""
    if function.driver is not None or function.pending:
        return
    for driver in machine.drivers:
        if matches(machine, driver, function):
            try:
                probe(machine, driver, function)
            except OSError:
                continue
            return


def drivers_probe(machine: Machine, text: bytes) -> None:
    """Write to `/sys/bus/pci/drivers_probe`: success whatever happens, so look at the link afterwards."""
    autoprobe(machine, find(machine, text))


def set_override(function: Function, data: bytes) -> None:
    """Write to `driver_override`: cut at the first newline or NUL, empty clears, an empty write does nothing."""
    if function.pending:
        raise Blocked
    if not data:
        return
    if len(data) >= OVERRIDE_LIMIT:
        raise fail(errno.EINVAL)
    text = data.split(b"\n", 1)[0].split(b"\0", 1)[0].decode("utf-8", "replace")
    function.override = text or None


def add_id(machine: Machine, driver: str, data: bytes) -> None:
    """Write to `new_id`: binds every unbound device with that id at once."""
    ids = _ids(data)
    known = machine.dynamic_ids.setdefault(driver, [])
    if ids in known:
        raise fail(errno.EEXIST)
    known.append(ids)
    for function in machine.functions.values():
        if [function.vendor, function.device] == ids:
            autoprobe(machine, function)


def remove_id(machine: Machine, driver: str, data: bytes) -> None:
    """Write to `remove_id`: unbinds nothing."""
    ids = _ids(data)
    if ids not in machine.dynamic_ids.get(driver, []):
        raise fail(errno.ENODEV)
    machine.dynamic_ids[driver].remove(ids)


def _ids(data: bytes) -> list[int]:
    try:
        vendor, device = (int(part, 16) for part in data.split()[:2])
    except ValueError as exc:
        raise fail(errno.EINVAL) from exc
    return [vendor, device]


def remove(machine: Machine, function: Function, data: bytes) -> None:
    """Write to `remove`: unplug in software."""
    if not _true(data):
        return
    if function.pending:
        raise Blocked
    if function.driver is not None:
        release(machine, function)
    machine.unplugged[function.address] = machine.functions.pop(function.address)


def rescan(machine: Machine, data: bytes) -> None:
    """Write to `rescan`: functions come back without override and go to their native driver."""
    if not _true(data):
        return
    if any(f.pending for f in machine.unplugged.values()):
        raise Blocked
    for address in sorted(machine.unplugged):
        function = machine.unplugged.pop(address)
        function.override = None
        machine.functions[address] = function
        if machine.autoprobe:
            autoprobe(machine, function)


def reset(machine: Machine, function: Function, data: bytes) -> None:
    """Write to `reset`. Succeeds on a device that somebody else holds: nothing in the kernel protects it."""
    if not _true(data):
        raise fail(errno.EINVAL)
    if function.pending:
        raise Blocked
    if not function.resets:
        raise fail(errno.ENOTTY)
    device_reset(machine, function)


def device_reset(machine: Machine, function: Function) -> None:
    """Reset the function with its first method."""
    chip = function.chip
    function.memory_enabled = False
    if chip is None:
        return
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


def load_module(machine: Machine, module: str) -> None:
    """Load a module; its driver takes every unbound device that it matches."""
    name = module.replace("-", "_")
    if name in machine.modules:
        return
    if name not in machine.installed_modules:
        raise fail(errno.ENOENT)
    machine.modules.append(name)
    driver = machine.installed_modules[name]
    if driver and driver not in machine.drivers:
        machine.drivers.append(driver)
        if machine.autoprobe:
            for function in machine.functions.values():
                autoprobe(machine, function)


def unload_module(machine: Machine, module: str) -> None:
    """`rmmod`: EAGAIN while a VFIO descriptor is open, otherwise every device of the driver is unbound."""
    driver = machine.installed_modules.get(module, "")
    owned = [f for f in machine.functions.values() if driver and f.driver == driver]
    if any(held(machine, f.address) for f in owned):
        raise fail(errno.EAGAIN)
    for function in owned:
        function.driver = function.cdev = None
    machine.modules.remove(module)
    if driver:
        machine.drivers.remove(driver)


def _true(data: bytes) -> bool:
    return data.strip() == b"1"
