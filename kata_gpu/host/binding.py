"""Move one PCI function between drivers and read back that it moved. A write may be lost or block; none is retried."""

import errno
from collections.abc import Callable

from kata_gpu.core.actions import Binding
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import KataGpuError, Unavailable
from kata_gpu.ports import FileKind, Host

_PCI = "/sys/bus/pci"
UNBIND_S = 30.0  # nvidia.ko takes seconds per GPU; a held device never returns
WRITE_S = 20.0  # a slow device took 1.3 s to bind and 3.7 s to unbind
READ_S = 5.0


def read_override(host: Host, address: PciAddress) -> str | None:
    """`driver_override` of a function; reading it blocks while an unbind waits, hence the deadline."""
    path = f"{_PCI}/devices/{address}/driver_override"
    try:
        value = host.read(path, max_bytes=4096, deadline_s=READ_S).decode("utf-8", "replace").rstrip("\n")
    except OSError as exc:
        raise _failed("override-read", "cannot read the driver override", path, exc) from exc
    return None if value == "(null)" else value


def read_binding(host: Host, address: PciAddress) -> Binding:
    """Driver and override of a function."""
    return Binding(driver=_driver(host, address), override=read_override(host, address))


def converge_binding(host: Host, address: PciAddress, wanted: Binding, *, require_free: Callable[[], None]) -> None:
    """Bring a function to a driver and override; nothing is written where it is there already.

    An override is written before unbinding when a driver is wanted by it, so that no other driver can take the device
    in between, and restored after unbinding otherwise, for the same reason. `require_free` is asked before an unbind.
    Raises InUse, TimedOut (the device may be wedged), Unavailable.
    """
    now = read_binding(host, address)
    if now == wanted:
        return
    if wanted.override is not None:
        _set_override(host, address, now.override, wanted.override)
    if now.driver is not None and now.driver != wanted.driver:
        require_free()
        _write(host, f"{_PCI}/drivers/{now.driver}/unbind", str(address), UNBIND_S, ignore=errno.ENODEV)
    if wanted.override is None:
        _set_override(host, address, now.override, None)
    if wanted.driver is not None and _driver(host, address) != wanted.driver:
        _ensure_driver(host, wanted.driver)
        _write(host, f"{_PCI}/drivers/{wanted.driver}/bind", str(address), WRITE_S, ignore=errno.EBUSY)
    after = read_binding(host, address)
    if after != wanted:
        raise Unavailable(
            "bind-not-effective",
            "the kernel accepted the writes and the device is elsewhere",
            where=str(address),
            expected=f"{wanted} with override {wanted.override}",
            got=f"{after} with override {after.override}",
        )


def _driver(host: Host, address: PciAddress) -> str | None:
    try:
        return host.readlink(f"{_PCI}/devices/{address}/driver").rsplit("/", 1)[-1]
    except OSError:
        return None


def _set_override(host: Host, address: PciAddress, now: str | None, wanted: str | None) -> None:
    """An empty write changes nothing, so an override is cleared with a newline."""
    if now != wanted:
        _write(host, f"{_PCI}/devices/{address}/driver_override", wanted or "\n", WRITE_S)


def _ensure_driver(host: Host, driver: str) -> None:
    """Load the module of a driver that is not registered; module names use underscores."""
    if host.kind(f"{_PCI}/drivers/{driver}") is FileKind.DIRECTORY:
        return
    try:
        host.modprobe(driver.replace("-", "_"), deadline_s=WRITE_S)
    except OSError as exc:
        raise _failed("no-driver", "the driver cannot be loaded", driver, exc) from exc


_HINTS = {
    errno.EINVAL: "no IOMMU or a bridge: `kata-gpu doctor` IOM-01; dmesg says `probe with driver vfio-pci failed`",
    errno.EBUSY: "another function of its IOMMU group is in use by a VM",
    errno.EPERM: "the kernel is locked down or this process lacks CAP_SYS_ADMIN",
    errno.EACCES: "run as root",
}


def _write(host: Host, path: str, text: str, deadline_s: float, *, ignore: int = 0) -> None:
    try:
        host.write(path, text.encode(), deadline_s=deadline_s)
    except OSError as exc:
        if exc.errno == ignore:
            return  # the read-back decides: EBUSY with the right driver, ENODEV after somebody else unbound it
        raise _failed("sysfs-write", f"writing {text.strip() or 'newline'!r} failed", path, exc) from exc


def _failed(code: str, what: str, where: str, exc: OSError) -> KataGpuError:
    name = errno.errorcode.get(exc.errno or 0, "unknown error")
    return Unavailable(code, what, where=where, got=name, hint=_HINTS.get(exc.errno or 0, ""))
