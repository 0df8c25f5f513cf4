"""The driver core's rules: override, bind, unbind, probe, dynamic ids, module loading.

Measured on Ubuntu 6.17 and 7.0 and Debian 6.1, 6.12 and 7.2; every function raises OSError with the kernel's errno.
"""

import errno
from contextlib import suppress

from kata_gpu.host.simkernel.machine import BRIDGE_DRIVERS, VFIO_DRIVERS, Function, Machine, Process
from kata_gpu.host.simkernel.syscall import Blocked, fail

_FIRST_WAITER = 90000  # above the processes that tests make
OVERRIDE_LIMIT = 4095  # one page less one byte
UNSAFE_NOIOMMU = "vfio/enable_unsafe_noiommu_mode"
_TAINT_USER = 64


def wait(function: Function, *operation: str) -> Blocked:
    """The error of a caller that waits for the device's lock; what it wants is done when the lock is free."""
    function.queue.append(list(operation))
    return Blocked()


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
        if function.header_type:
            raise fail(errno.EINVAL)
        if function.group is None:
            _make_up_group(machine, function)
        used = {f.cdev for f in machine.functions.values()} | {h.number for h in machine.handles}
        function.cdev = next(n for n in range(len(used) + 1) if n not in used)
    elif driver not in BRIDGE_DRIVERS and group_owned(machine, function.group):
        raise fail(errno.EBUSY)
    function.driver = driver
    function.memory_enabled = driver not in VFIO_DRIVERS


def _make_up_group(machine: Machine, function: Function) -> None:
    """Without an IOMMU: a group that isolates nothing, where the unsafe mode allows it, and a tainted kernel."""
    if not (machine.kernel.noiommu and machine.parameter(UNSAFE_NOIOMMU)):
        raise fail(errno.EINVAL)
    used = {f.group for f in machine.functions.values()}
    function.group = next(n for n in range(len(used) + 1) if n not in used)
    function.noiommu = True
    machine.tainted |= _TAINT_USER


def drop_made_up_group(function: Function) -> None:
    """Such a group goes with the driver."""
    if function.noiommu:
        function.noiommu, function.group = False, None


def bind(machine: Machine, driver: str, text: bytes) -> None:
    """Write to `drivers/<driver>/bind`."""
    function = find(machine, text)
    if function.pending:
        raise wait(function, "bind", driver)
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
    drop_made_up_group(function)


def autoprobe(machine: Machine, function: Function) -> None:
    """Let the first driver that matches try; failures are only logged, as by the kernel."""
    for driver in machine.drivers:
        if _attach(machine, driver, function):
            return


def _attach(machine: Machine, driver: str, function: Function) -> bool:
    """Let one driver try an unbound function."""
    if function.driver is not None or function.pending or not matches(machine, driver, function):
        return False
    with suppress(OSError):
        probe(machine, driver, function)
    return function.driver is not None


def drivers_probe(machine: Machine, text: bytes) -> None:
    """Write to `/sys/bus/pci/drivers_probe`: success whatever happens, so look at the link afterwards."""
    autoprobe(machine, find(machine, text))


def set_override(machine: Machine, function: Function, data: bytes) -> None:
    """Write to `driver_override`: cut at the first newline or NUL, empty clears, an empty write does nothing."""
    if not data:
        return
    if len(data) >= OVERRIDE_LIMIT:
        raise fail(errno.EINVAL)
    if function.pending and machine.kernel.override_blocks:
        raise wait(function, "override", data.decode("utf-8", "replace"))
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
            _attach(machine, driver, function)


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


def take_boot_ids(machine: Machine) -> None:
    """`vfio-pci.ids=` of the kernel command line: ids that vfio-pci has from the start."""
    machine.dynamic_ids.clear()
    for word in machine.command_line:
        for part in word.removeprefix("vfio-pci.ids=").split(",") if word.startswith("vfio-pci.ids=") else ():
            machine.dynamic_ids.setdefault("vfio-pci", []).append(_ids(part.replace(":", " ").encode()))


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
                _attach(machine, driver, function)


def unload_module(machine: Machine, module: str) -> None:
    """`rmmod`: EAGAIN while a VFIO descriptor is open, otherwise every device of the driver is unbound."""
    driver = machine.installed_modules.get(module, "")
    owned = [f for f in machine.functions.values() if driver and f.driver == driver]
    if any(held(machine, f.address) for f in owned):
        raise fail(errno.EAGAIN)
    for function in owned:
        release(machine, function)
    machine.modules.remove(module)
    if driver:
        machine.drivers.remove(driver)
