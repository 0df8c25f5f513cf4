"""Kernel semantics as rows: an operation, what it gives, and the kernels it holds for.

The rows run on the simulated kernel in `make test` and on a real kernel in QEMU in `make lab`: where they differ, the
simulated one is wrong. A row gets a fresh `Bench`: an isolated endpoint with a native driver, two functions that share
a group, a bridge. Results are texts: a value read, "ok", an errno name, or "blocks".
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kata_gpu.core import vfio
from kata_gpu.errors import TimedOut
from kata_gpu.ports import Host

ALL = frozenset({"debian-6.1", "debian-6.12", "lab-6.12", "ubuntu-6.17"})
IOMMUFD = frozenset({"lab-6.12", "ubuntu-6.17"})
READ_BLOCKS = frozenset({"debian-6.1", "ubuntu-6.17"})
PCI = "/sys/bus/pci"
PATIENT_S = 20.0  # a child may take seconds to start in an emulated machine on a busy host
BLOCKED_S = 5.0  # where blocking is expected: what has not returned by now blocks


@dataclass
class Bench:
    """A host with known endpoints. `native` drives `lone` and both functions of the pair at the start."""

    host: Host
    lone: str
    native: str
    native_id: str
    pair: tuple[str, str]
    pair_native: str
    bridge: str
    deadline_s: float = PATIENT_S

    def write(self, path: str, data: str) -> str:
        """Result of one write."""
        try:
            self.host.write(path, data.encode(), deadline_s=self.deadline_s)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
        except TimedOut:
            return "blocks"
        return "ok"

    def read(self, path: str) -> str:
        """Result of one read."""
        try:
            return self.host.read(path, deadline_s=self.deadline_s).decode().rstrip("\n")
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
        except TimedOut:
            return "blocks"

    def attribute(self, address: str, name: str) -> str:
        return self.read(f"{PCI}/devices/{address}/{name}")

    def override(self, address: str, value: str) -> str:
        return self.write(f"{PCI}/devices/{address}/driver_override", value)

    def bind(self, driver: str, address: str) -> str:
        return self.write(f"{PCI}/drivers/{driver}/bind", address)

    def unbind(self, driver: str, address: str) -> str:
        return self.write(f"{PCI}/drivers/{driver}/unbind", address)

    def probe(self, address: str) -> str:
        return self.write(f"{PCI}/drivers_probe", address)

    def driver(self, address: str) -> str:
        with contextlib.suppress(OSError):
            return self.host.readlink(f"{PCI}/devices/{address}/driver").rsplit("/", 1)[-1]
        return "none"

    def group(self, address: str) -> str:
        return self.host.readlink(f"{PCI}/devices/{address}/iommu_group").rsplit("/", 1)[-1]

    def to_vfio(self, address: str) -> None:
        """The reference sequence, expected to work."""
        assert self.override(address, "vfio-pci") == "ok"
        driver = self.driver(address)
        if driver not in {"none", "vfio-pci"}:
            assert self.unbind(driver, address) == "ok"
        if self.driver(address) == "none":
            assert self.bind("vfio-pci", address) == "ok"
        assert self.driver(address) == "vfio-pci"

    def open(self, path: str) -> str:
        """Open and close."""
        try:
            self.host.close(self.host.open(path))
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
        return "ok"

    def ioctl(self, fd: int, request: int, argument: bytearray | int) -> str:
        try:
            self.host.ioctl(fd, request, argument)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
        return "ok"

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[int]:
        fd = self.host.open(path)
        try:
            yield fd
        finally:
            self.host.close(fd)

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """For operations that are expected to block."""
        self.deadline_s = BLOCKED_S
        try:
            yield
        finally:
            self.deadline_s = PATIENT_S

    @contextlib.contextmanager
    def held(self, address: str) -> Iterator[int]:
        """The device's file open through its group, as QEMU without iommufd has it."""
        with self.opened("/dev/vfio/vfio") as container, self.opened(f"/dev/vfio/{self.group(address)}") as group:
            self.host.ioctl(group, vfio.GROUP_SET_CONTAINER, vfio.descriptor(container))
            self.host.ioctl(container, vfio.SET_IOMMU, vfio.TYPE1V2_IOMMU)
            fd = self.host.ioctl(group, vfio.GROUP_GET_DEVICE_FD, bytearray(address.encode() + b"\0"))
            try:
                yield fd
            finally:
                self.host.close(fd)

    def cdev(self, address: str) -> str:
        names = self.host.listdir(f"{PCI}/devices/{address}/vfio-dev")
        return f"/dev/vfio/devices/{names[0]}"

    def group_status(self, address: str) -> str:
        status = vfio.group_status()
        with self.opened(f"/dev/vfio/{self.group(address)}") as fd:
            self.host.ioctl(fd, vfio.GROUP_GET_STATUS, status)
        return "viable" if vfio.parse_group_status(status) & vfio.GROUP_VIABLE else "not viable"


@dataclass(frozen=True)
class Row:
    """One fact about the kernel."""

    id: str
    expected: str
    run: Callable[[Bench], str]
    kernels: frozenset[str] = ALL


def _rows() -> Iterator[Row]:
    yield from _override_rows()
    yield from _bind_rows()
    yield from _reset_rows()
    yield from _group_rows()
    yield from _iommufd_rows()
    yield from _wedge_rows()


def _override_rows() -> Iterator[Row]:
    def stored(text: str) -> Callable[[Bench], str]:
        def run(b: Bench) -> str:
            result = b.override(b.lone, text)
            return f"{result} {b.attribute(b.lone, 'driver_override')}"

        return run

    yield Row("2.3-override-unset", "(null)", lambda b: b.attribute(b.lone, "driver_override"))
    yield Row("2.3-override-plain", "ok vfio-pci", stored("vfio-pci"))
    yield Row("2.3-override-newline", "ok vfio-pci", stored("vfio-pci\n"))
    yield Row("2.3-override-cut-at-newline", "ok vfio-pci", stored("vfio-pci\nx"))
    yield Row("2.3-override-keeps-spaces", "ok foo bar", stored("foo bar"))
    yield Row("2.3-override-unknown-driver", "ok nosuch", stored("nosuch"))
    yield Row("2.3-override-too-long", "EINVAL (null)", stored("x" * 4096))

    def clear(b: Bench) -> str:
        b.override(b.lone, "vfio-pci")
        return f"{b.override(b.lone, chr(10))} {b.attribute(b.lone, 'driver_override')}"

    yield Row("2.3-override-newline-clears", "ok (null)", clear)

    def keeps_bound(b: Bench) -> str:
        b.to_vfio(b.lone)
        b.override(b.lone, "\n")
        return b.driver(b.lone)

    yield Row("2.3-clearing-keeps-bound", "vfio-pci", keeps_bound)

    def wins(b: Bench) -> str:
        b.unbind(b.native, b.lone)
        b.override(b.lone, "none")
        return f"{b.probe(b.lone)} {b.driver(b.lone)}"

    yield Row("2.3-override-none-keeps-driverless", "ok none", wins)


def _bind_rows() -> Iterator[Row]:
    def without_override(b: Bench) -> str:
        b.unbind(b.native, b.lone)
        return b.bind("vfio-pci", b.lone)

    def bound_elsewhere(b: Bench) -> str:
        b.override(b.lone, "vfio-pci")
        return b.bind("vfio-pci", b.lone)

    def bound_twice(b: Bench) -> str:
        b.to_vfio(b.lone)
        return b.bind("vfio-pci", b.lone)

    def bound_no_match(b: Bench) -> str:
        b.to_vfio(b.lone)
        b.override(b.lone, "nosuch")
        return b.bind("vfio-pci", b.lone)

    def unbind_unbound(b: Bench) -> str:
        b.unbind(b.native, b.lone)
        return b.write(f"{PCI}/devices/{b.lone}/driver/unbind", b.lone)

    def probe_no_match(b: Bench) -> str:
        b.unbind(b.native, b.lone)
        b.override(b.lone, "nosuch")
        return f"{b.probe(b.lone)} {b.driver(b.lone)}"

    def probe_native(b: Bench) -> str:
        b.unbind(b.native, b.lone)
        return f"{b.probe(b.lone)} {b.driver(b.lone) == b.native}"

    def bridge(b: Bench) -> str:
        driver = b.driver(b.bridge)
        b.override(b.bridge, "vfio-pci")
        if driver != "none":
            b.unbind(driver, b.bridge)
        result = b.bind("vfio-pci", b.bridge)
        b.override(b.bridge, "\n")
        b.probe(b.bridge)
        return result

    def new_id(b: Bench) -> str:
        b.unbind(b.native, b.lone)
        path = f"{PCI}/drivers/vfio-pci"
        out = [b.write(f"{path}/new_id", b.native_id), b.driver(b.lone), b.write(f"{path}/new_id", b.native_id)]
        out += [b.write(f"{path}/remove_id", b.native_id), b.driver(b.lone), b.write(f"{path}/remove_id", b.native_id)]
        return " ".join(out)

    yield Row("2.3-bind-without-override", "ENODEV", without_override)
    yield Row("2.3-bind-unknown", "ENODEV", lambda b: b.bind("vfio-pci", "0000:fe:1e.7"))
    yield Row("2.3-bind-short-address", "ENODEV", lambda b: b.bind("vfio-pci", b.lone.removeprefix("0000:")))
    yield Row("2.3-bind-bound-elsewhere", "EBUSY", bound_elsewhere)
    yield Row("2.3-bind-bound-here", "EBUSY", bound_twice)
    yield Row("2.3-bind-bound-override-differs", "ENODEV", bound_no_match)
    yield Row("2.3-unbind-not-owner", "ENODEV", lambda b: b.unbind("vfio-pci", b.lone))
    yield Row("2.3-unbind-link-of-unbound", "ENOENT", unbind_unbound)
    yield Row("2.3-probe-no-match", "ok none", probe_no_match)
    yield Row("2.3-probe-native", "ok True", probe_native)
    yield Row("2.3-probe-unknown", "ENODEV", lambda b: b.probe("0000:fe:1e.7"))
    yield Row("2.3-bind-bridge", "EINVAL", bridge)
    yield Row("2.3-new-id", "ok vfio-pci EEXIST ok vfio-pci ENODEV", new_id)
    yield Row("2.3-new-id-garbage", "EINVAL", lambda b: b.write(f"{PCI}/drivers/vfio-pci/new_id", "what"))

    def removed_and_back(b: Bench) -> str:
        b.to_vfio(b.lone)
        b.write(f"{PCI}/devices/{b.lone}/remove", "1")
        gone = b.driver(b.lone)
        b.write(f"{PCI}/rescan", "1")
        return f"{gone} {b.attribute(b.lone, 'driver_override')} {b.driver(b.lone) == b.native}"

    yield Row("2.3-remove-rescan-goes-native", "none (null) True", removed_and_back)

    def renumbered(b: Bench) -> str:
        for address in (b.lone, b.pair[0]):
            b.to_vfio(address)
        first = b.cdev(b.lone)
        b.unbind("vfio-pci", b.lone)
        b.to_vfio(b.pair[1])
        return str(b.cdev(b.pair[1]) == first)

    yield Row("2.3-cdev-number-is-reused", "True", renumbered)


def _reset_rows() -> Iterator[Row]:
    def path(b: Bench, name: str) -> str:
        return f"{PCI}/devices/{b.lone}/{name}"

    def cleared(b: Bench) -> str:
        b.write(path(b, "reset_method"), "\n")
        result = b.write(path(b, "reset"), "1")
        return f"{result} {b.write(path(b, 'reset_method'), 'default')}"

    def while_held(b: Bench) -> str:
        b.to_vfio(b.lone)
        with b.held(b.lone):
            return b.write(path(b, "reset"), "1")

    def device_reset(b: Bench) -> str:
        b.to_vfio(b.lone)
        with b.held(b.lone) as fd:
            return b.ioctl(fd, vfio.DEVICE_RESET, 0)

    def enable(b: Bench) -> str:
        b.to_vfio(b.lone)
        return b.write(path(b, "enable"), "1")

    def power(b: Bench) -> str:
        b.to_vfio(b.lone)
        before = ""
        for _ in range(40):  # the kernel suspends it a moment after the bind
            before = b.attribute(b.lone, "power_state")
            if before == "D3hot":
                break
            b.host.sleep(0.05)
        b.write(path(b, "power/control"), "on")
        after = b.attribute(b.lone, "power_state")
        b.write(path(b, "power/control"), "auto")
        return f"{before} {after}"

    yield Row("2.3-reset-zero", "EINVAL", lambda b: b.write(path(b, "reset"), "0"))
    yield Row("2.3-reset-garbage", "EINVAL", lambda b: b.write(path(b, "reset"), "x"))
    yield Row("2.3-reset", "ok", lambda b: b.write(path(b, "reset"), "1"))
    yield Row("2.3-reset-method-cleared", "ENOTTY ok", cleared)
    yield Row("2.3-reset-method-unknown", "EINVAL", lambda b: b.write(path(b, "reset_method"), "nosuch"))
    yield Row("2.3-reset-while-held-succeeds", "ok", while_held)
    yield Row("2.3-device-reset", "ok", device_reset)
    yield Row("2.3-enable-while-bound", "EBUSY", enable)
    yield Row("2.3-power-control", "D3hot D0", power)


def _group_rows() -> Iterator[Row]:
    def sibling_native(b: Bench) -> str:
        b.to_vfio(b.pair[0])
        with b.opened("/dev/vfio/vfio") as container, b.opened(f"/dev/vfio/{b.group(b.pair[0])}") as group:
            result = b.ioctl(group, vfio.GROUP_SET_CONTAINER, vfio.descriptor(container))
        return f"{b.group_status(b.pair[0])} {result}"

    def sibling_driverless(b: Bench) -> str:
        b.to_vfio(b.pair[0])
        b.unbind(b.pair_native, b.pair[1])
        return b.group_status(b.pair[0])

    def native_while_owned(b: Bench) -> str:
        b.to_vfio(b.pair[0])
        b.unbind(b.pair_native, b.pair[1])
        with b.held(b.pair[0]):
            owned = b.bind(b.pair_native, b.pair[1])
        return f"{owned} {b.bind(b.pair_native, b.pair[1])}"

    def vfio_while_owned(b: Bench) -> str:
        b.to_vfio(b.pair[0])
        b.unbind(b.pair_native, b.pair[1])
        b.override(b.pair[1], "vfio-pci")
        with b.held(b.pair[0]):
            return b.bind("vfio-pci", b.pair[1])

    def open_twice(b: Bench) -> str:
        b.to_vfio(b.lone)
        path = f"/dev/vfio/{b.group(b.lone)}"
        with b.opened(path):
            second = b.open(path)
        return f"{second} {b.open(path)}"

    def no_node(b: Bench) -> str:
        b.to_vfio(b.lone)
        path = f"/dev/vfio/{b.group(b.lone)}"
        b.unbind("vfio-pci", b.lone)
        return b.open(path)

    yield Row("2.4-sibling-native", "not viable EPERM", sibling_native)
    yield Row("2.4-sibling-driverless", "viable", sibling_driverless)
    yield Row("2.4-native-bind-while-owned", "EBUSY ok", native_while_owned)
    yield Row("2.4-vfio-bind-while-owned", "ok", vfio_while_owned)
    yield Row("2.5-group-open-twice", "EBUSY ok", open_twice)
    yield Row("2.5-node-goes-with-the-driver", "ENOENT", no_node)


def _iommufd_rows() -> Iterator[Row]:
    def bind_twice(b: Bench) -> str:
        b.to_vfio(b.lone)
        with b.opened("/dev/iommu") as fd, b.opened(b.cdev(b.lone)) as one, b.opened(b.cdev(b.lone)) as two:
            first = b.ioctl(one, vfio.DEVICE_BIND_IOMMUFD, vfio.bind_iommufd(fd))
            second = b.ioctl(two, vfio.DEVICE_BIND_IOMMUFD, vfio.bind_iommufd(fd))
            return f"{first} {second} {b.open('/dev/vfio/' + b.group(b.lone))}"

    def group_first(b: Bench) -> str:
        b.to_vfio(b.lone)
        with b.held(b.lone), b.opened("/dev/iommu") as fd, b.opened(b.cdev(b.lone)) as cdev:
            return b.ioctl(cdev, vfio.DEVICE_BIND_IOMMUFD, vfio.bind_iommufd(fd))

    def sibling_native(b: Bench) -> str:
        b.to_vfio(b.pair[0])
        with b.opened("/dev/iommu") as fd, b.opened(b.cdev(b.pair[0])) as cdev:
            return b.ioctl(cdev, vfio.DEVICE_BIND_IOMMUFD, vfio.bind_iommufd(fd))

    def opened_is_unseen(b: Bench) -> str:
        b.to_vfio(b.lone)
        with b.opened(b.cdev(b.lone)):
            return b.open(f"/dev/vfio/{b.group(b.lone)}")

    yield Row("2.5-second-bind", "ok EINVAL EBUSY", bind_twice, IOMMUFD)
    yield Row("2.5-bind-while-group-open", "EBUSY", group_first, IOMMUFD)
    yield Row("2.4-bind-sibling-native", "EPERM", sibling_native, IOMMUFD)
    yield Row("2.6-opened-cdev-unseen-by-group-probe", "ok", opened_is_unseen, IOMMUFD)


def _wedge_rows() -> Iterator[Row]:
    def wedged(act: Callable[[Bench], str]) -> Callable[[Bench], str]:
        def run(b: Bench) -> str:
            b.to_vfio(b.lone)
            with b.held(b.lone), b.impatient():
                assert b.unbind("vfio-pci", b.lone) == "blocks"
                return act(b)

        return run

    def ends_with_close(b: Bench) -> str:
        b.to_vfio(b.lone)
        with b.held(b.lone), b.impatient():
            first = b.unbind("vfio-pci", b.lone)
        b.host.sleep(0.2)
        b.override(b.lone, "\n")
        return f"{first} {b.probe(b.lone)} {b.driver(b.lone) == b.native}"

    yield Row("2.7-unbind-while-open-link-gone", "none", wedged(lambda b: b.driver(b.lone)))
    yield Row("2.7-unbind-again", "blocks", wedged(lambda b: b.unbind("vfio-pci", b.lone)))
    yield Row("2.7-bind", "blocks", wedged(lambda b: b.bind("vfio-pci", b.lone)))
    yield Row("2.7-reset", "blocks", wedged(lambda b: b.write(f"{PCI}/devices/{b.lone}/reset", "1")))
    yield Row("2.7-override-read", "blocks", wedged(lambda b: b.attribute(b.lone, "driver_override")), READ_BLOCKS)
    yield Row(
        "2.7-override-read-new", "vfio-pci", wedged(lambda b: b.attribute(b.lone, "driver_override")), ALL - READ_BLOCKS
    )
    yield Row("2.7-vendor-still-read", "True", wedged(lambda b: str(b.attribute(b.lone, "vendor").startswith("0x"))))
    yield Row("2.7-probe-no-effect", "ok none", wedged(lambda b: f"{b.probe(b.lone)} {b.driver(b.lone)}"))
    yield Row("2.7-other-device-unaffected", "ok", wedged(lambda b: b.override(b.pair[0], "vfio-pci")))
    yield Row("2.7-ends-with-close", "blocks ok True", ends_with_close)


ROWS = tuple(_rows())
