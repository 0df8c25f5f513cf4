"""Kernel semantics as rows: an operation, what it gives, the kernels it holds for and how they were booted.

The rows run on the simulated kernel in `make test` and on a real kernel in QEMU in `make lab`: where they differ, the
simulated one is wrong. A row gets a fresh `Bench`. Results are texts: a value read, "ok", an errno name, or "blocks".
`semantics.py` lists the facts that the rows prove.
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
MODULAR = ALL - {"lab-6.12"}  # VFIO and the native driver are modules; the lab's kernel has none
NOIOMMU = IOMMUFD  # CONFIG_VFIO_NOIOMMU
OVERRIDE_BLOCKS = frozenset({"debian-6.1", "ubuntu-6.17"})
UEVENT_BLOCKS = frozenset({"debian-6.1"})
BOOTS = ("iommu", "no-iommu", "passthrough", "no-remapping", "lockdown", "vfio-ids")
BOOT_ID = "1234:11e8"  # vfio-pci.ids= of the last of them: the id of `plain`
PCI = "/sys/bus/pci"
PATIENT_S = 20.0  # a child may take seconds to start in an emulated machine on a busy host
BLOCKED_S = 2.0  # where blocking is expected: what has not returned by now blocks
SETTLED_S = 5.0  # what waited for a lock is done within milliseconds once it is free


@dataclass
class Bench:
    """A host with known endpoints. `native` drives `lone` and both functions of the pair at the start.

    `plain` is alone in its group and has no driver; `conventional` is a PCIe-to-PCI bridge and `behind` two functions
    behind it; `port` is the downstream port of a switch without ACS and `switched` the function behind it.
    `bridge` is the root port above `lone`. `load` and `unload` do that to a module.
    """

    host: Host
    lone: str
    native: str
    native_id: str
    pair: tuple[str, str]
    bridge: str
    plain: str
    conventional: str
    behind: tuple[str, str]
    port: str
    switched: str
    load: Callable[[str], None]
    unload: Callable[[str], None]
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

    def members(self, address: str) -> list[str]:
        """Functions in the group of one."""
        return self.host.listdir(f"{PCI}/devices/{address}/iommu_group/devices")

    def there(self, path: str) -> bool:
        """Whether a path leads anywhere."""
        return self.host.kind(path) is not None

    def until(self, value: Callable[[], str], wanted: str) -> str:
        """The value as soon as it is the wanted one, or as it is after a while."""
        for _ in range(int(SETTLED_S / 0.05)):
            if value() == wanted:
                break
            self.host.sleep(0.05)
        return value()

    def tried(self, act: Callable[[str], None], argument: str) -> str:
        """Result of something that is not a write."""
        try:
            act(argument)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]
        return "ok"

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
    boot: str = "iommu"


def _rows() -> Iterator[Row]:
    yield from _override_rows()
    yield from _bind_rows()
    yield from _module_rows()
    yield from _reset_rows()
    yield from _group_rows()
    yield from _iommufd_rows()
    yield from _wedge_rows()
    yield from _no_iommu_rows()
    yield from _boot_rows()
    yield from _lockdown_rows()


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
    yield Row("2.3-override-too-long", "EINVAL (null)", stored("x" * 4095))
    yield Row("2.3-override-longest", f"ok {'x' * 4094}", stored("x" * 4094))

    def over(text: str) -> Callable[[Bench], str]:
        def run(b: Bench) -> str:
            b.override(b.lone, "vfio-pci")
            return f"{b.override(b.lone, text)} {b.attribute(b.lone, 'driver_override')}"

        return run

    yield Row("2.3-override-empty-changes-nothing", "ok vfio-pci", over(""))
    yield Row("2.3-override-newline-clears", "ok (null)", over("\n"))
    yield Row("2.3-override-nul-clears", "ok (null)", over("\0"))

    def keeps_bound(b: Bench) -> str:
        b.to_vfio(b.lone)
        b.override(b.lone, "\n")
        before = b.driver(b.lone)
        b.unbind("vfio-pci", b.lone)
        return f"{before} {b.probe(b.lone)} {b.driver(b.lone) == b.native}"

    yield Row("2.3-clearing-keeps-bound", "vfio-pci ok True", keeps_bound)

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

    def probe_bound(b: Bench) -> str:
        b.override(b.lone, "vfio-pci")
        elsewhere = f"{b.probe(b.lone)} {b.driver(b.lone) == b.native}"
        b.to_vfio(b.lone)
        return f"{elsewhere} {b.probe(b.lone)} {b.driver(b.lone)}"

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
        path = f"{PCI}/drivers/vfio-pci"
        for address in (b.lone, b.pair[0]):
            b.unbind(b.native, address)
        out = [b.write(f"{path}/new_id", b.native_id), b.driver(b.lone), b.driver(b.pair[0])]
        out += [str(b.driver(b.pair[1]) == b.native), b.write(f"{path}/new_id", b.native_id)]
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
    yield Row("2.3-probe-bound", "ok True ok vfio-pci", probe_bound)
    yield Row("2.3-probe-unknown", "ENODEV", lambda b: b.probe("0000:fe:1e.7"))
    yield Row("2.3-bind-bridge", "EINVAL", bridge)
    yield Row("2.3-new-id", "ok vfio-pci vfio-pci True EEXIST ok vfio-pci ENODEV", new_id)
    yield Row("2.3-new-id-garbage", "EINVAL", lambda b: b.write(f"{PCI}/drivers/vfio-pci/new_id", "what"))

    def removed_and_back(b: Bench) -> str:
        b.to_vfio(b.lone)
        b.write(f"{PCI}/devices/{b.lone}/remove", "1")
        gone = b.driver(b.lone)
        b.write(f"{PCI}/rescan", "1")
        return f"{gone} {b.attribute(b.lone, 'driver_override')} {b.driver(b.lone) == b.native}"

    yield Row("2.3-remove-rescan-goes-native", "none (null) True", removed_and_back)

    def removed_without_autoprobe(b: Bench) -> str:
        group = b.group(b.lone)
        b.write(f"{PCI}/drivers_autoprobe", "0")
        b.write(f"{PCI}/devices/{b.lone}/remove", "1")
        b.write(f"{PCI}/rescan", "1")
        back = b.driver(b.lone)
        b.to_vfio(b.lone)
        b.write(f"{PCI}/drivers_autoprobe", "1")
        return f"{back == b.native} {b.driver(b.lone)} {b.group(b.lone) == group}"

    yield Row("2.3-rescan-without-autoprobe", "True vfio-pci True", removed_without_autoprobe)

    def renumbered(b: Bench) -> str:
        for address in (b.lone, b.pair[0]):
            b.to_vfio(address)
        first = b.cdev(b.lone)
        b.unbind("vfio-pci", b.lone)
        b.to_vfio(b.pair[1])
        return str(b.cdev(b.pair[1]) == first)

    yield Row("2.3-cdev-number-is-reused", "True", renumbered)


def _module_rows() -> Iterator[Row]:
    def native_loads(b: Bench) -> str:
        b.unload(b.native)
        b.override(b.lone, "vfio-pci")
        b.load(b.native)
        return f"{b.driver(b.lone)} {b.driver(b.pair[0]) == b.native}"

    def unload_vfio(b: Bench) -> str:
        for address in (b.lone, b.plain):
            b.to_vfio(address)
        with b.held(b.lone):
            out = [b.tried(b.unload, "vfio_pci"), b.driver(b.plain)]
        out += [b.tried(b.unload, "vfio_pci"), b.driver(b.lone), b.driver(b.plain)]
        b.load("vfio_pci")
        return " ".join([*out, b.driver(b.lone)])

    yield Row("2.3-override-wins-over-loading-driver", "none True", native_loads, MODULAR)
    yield Row("2.3-rmmod-vfio-pci", "EAGAIN vfio-pci ok none none vfio-pci", unload_vfio, MODULAR)


def _reset_rows() -> Iterator[Row]:
    def path(b: Bench, name: str) -> str:
        return f"{PCI}/devices/{b.lone}/{name}"

    def cleared(b: Bench) -> str:
        b.write(path(b, "reset_method"), "\n")
        result = f"{b.write(path(b, 'reset'), '1')} {b.there(path(b, 'reset'))}"
        return f"{result} {b.write(path(b, 'reset_method'), 'default')} {b.write(path(b, 'reset'), '1')}"

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
        return f"{b.until(lambda: b.attribute(b.lone, 'enable'), '0')} {b.write(path(b, 'enable'), '1')}"

    def power(b: Bench) -> str:
        b.to_vfio(b.lone)  # the kernel suspends it a moment after the bind
        before = b.until(lambda: b.attribute(b.lone, "power_state"), "D3hot")
        status = b.attribute(b.lone, "power/runtime_status")
        b.write(path(b, "power/control"), "on")
        after = b.attribute(b.lone, "power_state")
        b.write(path(b, "power/control"), "auto")
        return f"{before} {status} {after}"

    def methods(b: Bench) -> str:
        names = b.attribute(b.lone, "reset_method").split()
        return f"{b.write(path(b, 'reset_method'), ','.join(names))} {b.attribute(b.lone, 'reset_method').split() == names}"

    yield Row("2.3-reset-zero", "EINVAL", lambda b: b.write(path(b, "reset"), "0"))
    yield Row("2.3-reset-garbage", "EINVAL", lambda b: b.write(path(b, "reset"), "x"))
    yield Row("2.3-reset", "ok", lambda b: b.write(path(b, "reset"), "1"))
    yield Row("2.3-reset-method-cleared", "ENOTTY True ok ok", cleared)
    yield Row("2.3-reset-method-unknown", "EINVAL", lambda b: b.write(path(b, "reset_method"), "nosuch"))
    yield Row("2.3-reset-method-comma-list", "EINVAL True", methods)
    yield Row("2.3-reset-while-held-succeeds", "ok", while_held)
    yield Row("2.3-device-reset", "ok", device_reset)
    yield Row("2.3-enable-while-bound", "0 EBUSY", enable)
    yield Row("2.3-power-control", "D3hot suspended D0", power)


def _group_rows() -> Iterator[Row]:
    def sibling_native(b: Bench) -> str:
        b.to_vfio(b.pair[0])
        with b.opened("/dev/vfio/vfio") as container, b.opened(f"/dev/vfio/{b.group(b.pair[0])}") as group:
            result = b.ioctl(group, vfio.GROUP_SET_CONTAINER, vfio.descriptor(container))
        return f"{b.group_status(b.pair[0])} {result}"

    def sibling_driverless(b: Bench) -> str:
        b.to_vfio(b.pair[0])
        b.unbind(b.native, b.pair[1])
        return b.group_status(b.pair[0])

    def native_while_owned(b: Bench) -> str:
        b.to_vfio(b.pair[0])
        b.unbind(b.native, b.pair[1])
        with b.held(b.pair[0]):
            owned = b.bind(b.native, b.pair[1])
        return f"{owned} {b.bind(b.native, b.pair[1])}"

    def vfio_while_owned(b: Bench) -> str:
        b.to_vfio(b.pair[0])
        b.unbind(b.native, b.pair[1])
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

    def one_driverless(b: Bench) -> str:
        b.to_vfio(b.behind[0])
        one = b.group_status(b.behind[0])
        b.to_vfio(b.behind[1])
        return f"{one} {b.group_status(b.behind[0])}"

    def behind_port(b: Bench) -> str:
        b.to_vfio(b.switched)
        return f"{b.driver(b.port)} {b.group_status(b.switched)}"

    def appears(b: Bench) -> str:
        path = f"/dev/vfio/{b.group(b.lone)}"
        before = b.there(path)
        b.to_vfio(b.lone)
        return f"{before} {b.there(path)}"

    yield Row("2.4-own-root-port-own-group", "True", lambda b: str(b.members(b.lone) == [b.lone]))
    yield Row("2.4-functions-of-a-slot", "True", lambda b: str(b.members(b.pair[0]) == sorted(b.pair)))
    yield Row(
        "2.4-behind-a-bridge", "True", lambda b: str(b.members(b.behind[0]) == sorted([b.conventional, *b.behind]))
    )
    yield Row("2.4-bridge-keeps-group-viable", "viable viable", one_driverless)
    yield Row("2.4-behind-a-switch-port", "pcieport viable", behind_port)
    yield Row("2.4-sibling-native", "not viable EPERM", sibling_native)
    yield Row("2.4-sibling-driverless", "viable", sibling_driverless)
    yield Row("2.4-native-bind-while-owned", "EBUSY ok", native_while_owned)
    yield Row("2.4-vfio-bind-while-owned", "ok", vfio_while_owned)
    yield Row("2.5-group-open-twice", "EBUSY ok", open_twice)
    yield Row("2.5-node-comes-with-the-driver", "False True", appears)
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

    def sibling_driverless(b: Bench) -> str:
        b.to_vfio(b.pair[0])
        b.unbind(b.native, b.pair[1])
        with b.opened("/dev/iommu") as fd, b.opened(b.cdev(b.pair[0])) as cdev:
            return b.ioctl(cdev, vfio.DEVICE_BIND_IOMMUFD, vfio.bind_iommufd(fd))

    def nodes(b: Bench) -> str:
        b.to_vfio(b.lone)
        names = b.host.listdir(f"{PCI}/devices/{b.lone}/vfio-dev")
        cdevs = [b.there(f"/dev/vfio/devices/{name}") for name in names]
        return f"{b.there('/dev/iommu')} {cdevs} {[b.there(f'/sys/class/vfio-dev/{name}') for name in names]}"

    def opened_is_unseen(b: Bench) -> str:
        b.to_vfio(b.lone)
        with b.opened(b.cdev(b.lone)):
            return b.open(f"/dev/vfio/{b.group(b.lone)}")

    def group_only(b: Bench) -> str:
        b.to_vfio(b.lone)
        with b.opened(f"/dev/vfio/{b.group(b.lone)}"), b.opened("/dev/iommu") as fd, b.opened(b.cdev(b.lone)) as cdev:
            return b.ioctl(cdev, vfio.DEVICE_BIND_IOMMUFD, vfio.bind_iommufd(fd))

    yield Row("2.5-bind-while-group-only-open", "EBUSY", group_only, IOMMUFD)
    yield Row("2.5-second-bind", "ok EINVAL EBUSY", bind_twice, IOMMUFD)
    yield Row("2.5-bind-while-group-open", "EBUSY", group_first, IOMMUFD)
    yield Row("2.4-bind-sibling-native", "EPERM", sibling_native, IOMMUFD)
    yield Row("2.4-bind-sibling-driverless", "ok", sibling_driverless, IOMMUFD)
    yield Row("2.5-nodes", "True [True] [True]", nodes, IOMMUFD)
    yield Row("2.5-nodes-without-iommufd", "False [False] [True]", nodes, ALL - IOMMUFD)
    yield Row("2.6-opened-cdev-unseen-by-group-probe", "ok", opened_is_unseen, IOMMUFD)


def _wedge_rows() -> Iterator[Row]:
    def wedged(act: Callable[[Bench], str]) -> Callable[[Bench], str]:
        def run(b: Bench) -> str:
            b.to_vfio(b.lone)
            with b.held(b.lone), b.impatient():
                assert b.unbind("vfio-pci", b.lone) == "blocks"
                return act(b)

        return run

    def afterwards(act: Callable[[Bench], str], value: Callable[[Bench], str], wanted: str) -> Callable[[Bench], str]:
        """What a call that blocked, and whose caller was killed, has done once the device is free."""

        def run(b: Bench) -> str:
            blocked = wedged(act)(b)
            return f"{blocked} {b.until(lambda: value(b), wanted)}"

        return run

    def attribute(name: str) -> Callable[[Bench], str]:
        return lambda b: b.write(f"{PCI}/devices/{b.lone}/{name}", "1")

    def still_read(b: Bench) -> str:
        names = ("vendor", "class", "config", "resource", "enable", "power_state", "reset_method",
                 "power/control", "power/runtime_status", "iommu_group/type")  # fmt: skip
        texts = {name: b.host.read(f"{PCI}/devices/{b.lone}/{name}", deadline_s=b.deadline_s) for name in names}
        return str([name for name, text in texts.items() if not text])

    def nodes(b: Bench) -> str:
        b.to_vfio(b.lone)
        path = b.cdev(b.lone)
        with b.held(b.lone), b.impatient():
            b.unbind("vfio-pci", b.lone)
            return f"{b.open(path)} {b.there(f'{PCI}/devices/{b.lone}/vfio-dev')}"

    def writers(b: Bench) -> list[str]:
        """States of the tasks that wait for a device's users to go."""
        found = []
        for name in b.host.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit() and b.host.read(f"/proc/{name}/wchan") == b"vfio_unregister_group_dev":
                    found.append(b.host.read(f"/proc/{name}/stat").rsplit(b")", 1)[-1].split()[0].decode())
        return found

    def visible(b: Bench) -> str:
        during = wedged(lambda b: str(writers(b)))(b)
        return f"{during} {b.until(lambda: str(writers(b)), '[]')}"

    def ends_with_close(b: Bench) -> str:
        b.to_vfio(b.lone)
        with b.held(b.lone), b.impatient():
            first = b.unbind("vfio-pci", b.lone)
        b.until(lambda: str(writers(b)), "[]")
        b.override(b.lone, "\n")
        return f"{first} {b.probe(b.lone)} {b.driver(b.lone) == b.native}"

    def rescan(b: Bench) -> str:
        return f"{attribute('remove')(b)} {b.write(f'{PCI}/rescan', '1')}"

    def native(b: Bench) -> str:
        return str(b.driver(b.lone) == b.native)

    def there(b: Bench) -> str:
        return str(b.there(f"{PCI}/devices/{b.lone}"))

    def override(b: Bench) -> str:
        return b.override(b.lone, "nosuch")

    yield Row("2.7-unbind-while-open-link-gone", "none", wedged(lambda b: b.driver(b.lone)))
    yield Row("2.7-nodes-gone", "ENOENT False", nodes, IOMMUFD)
    yield Row("2.7-writer-survives-sigkill", "['D'] []", visible, MODULAR)  # ours has no unwinder for wait channels
    yield Row("2.7-unbind-again", "blocks", wedged(lambda b: b.unbind("vfio-pci", b.lone)))
    yield Row("2.7-bind", "blocks vfio-pci", afterwards(lambda b: b.bind("vfio-pci", b.lone), lambda b: b.driver(b.lone), "vfio-pci"))  # fmt: skip
    yield Row("2.7-reset", "blocks", wedged(attribute("reset")))
    yield Row("2.7-remove", "blocks False", afterwards(attribute("remove"), there, "False"))
    yield Row("2.7-remove-blocks-rescan", "blocks blocks True", afterwards(rescan, native, "True"))
    yield Row(
        "2.7-override-write",
        "blocks nosuch",
        afterwards(override, lambda b: b.attribute(b.lone, "driver_override"), "nosuch"),
        OVERRIDE_BLOCKS,
    )
    yield Row("2.7-override-write-new", "ok", wedged(override), ALL - OVERRIDE_BLOCKS)
    yield Row("2.7-override-read", "blocks", wedged(lambda b: b.attribute(b.lone, "driver_override")), OVERRIDE_BLOCKS)
    yield Row(
        "2.7-override-read-new",
        "vfio-pci",
        wedged(lambda b: b.attribute(b.lone, "driver_override")),
        ALL - OVERRIDE_BLOCKS,
    )
    yield Row("2.7-still-read", "[]", wedged(still_read))
    yield Row("2.7-uevent-read", "blocks", wedged(lambda b: b.attribute(b.lone, "uevent")), UEVENT_BLOCKS)
    yield Row("2.7-uevent-read-new", "True", wedged(lambda b: str("PCI_ID" in b.attribute(b.lone, "uevent"))), ALL - UEVENT_BLOCKS)  # fmt: skip
    yield Row("2.7-group-open", "EBUSY", wedged(lambda b: b.open(f"/dev/vfio/{b.group(b.lone)}")))
    yield Row("2.7-probe-no-effect", "ok none", wedged(lambda b: f"{b.probe(b.lone)} {b.driver(b.lone)}"))
    yield Row("2.7-other-device-unaffected", "ok", wedged(lambda b: b.override(b.pair[0], "vfio-pci")))
    yield Row("2.7-ends-with-close", "blocks ok True", ends_with_close)


def _no_iommu_rows() -> Iterator[Row]:
    parameter = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"

    def bind(b: Bench) -> str:
        b.override(b.plain, "vfio-pci")
        return f"{b.bind('vfio-pci', b.plain)} {b.probe(b.plain)} {b.driver(b.plain)}"

    def unsafe(b: Bench) -> str:
        switched = b.write(parameter, "1")
        b.override(b.plain, "vfio-pci")
        out = [switched, b.bind("vfio-pci", b.plain), b.attribute(b.plain, "iommu_group/name")]
        out += [str(b.there(f"/dev/vfio/noiommu-{b.group(b.plain)}"))]
        out += [str(int(b.read("/proc/sys/kernel/tainted")) >> 6 & 1), b.unbind("vfio-pci", b.plain)]
        out += [str(b.there(f"{PCI}/devices/{b.plain}/iommu_group")), b.write(parameter, "0")]
        return " ".join(out)

    yield Row("2.3-no-iommu-no-group", "False []", lambda b: f"{b.there(f'{PCI}/devices/{b.plain}/iommu_group')} "
              f"{b.host.listdir('/sys/kernel/iommu_groups')}", boot="no-iommu")  # fmt: skip
    yield Row("2.3-no-iommu-bind", "EINVAL ok none", bind, boot="no-iommu")
    yield Row("2.3-no-iommu-unsafe", "ok ok vfio-noiommu True 1 ok False ok", unsafe, NOIOMMU, "no-iommu")
    yield Row("2.3-no-iommu-unsafe-not-built", "ENOENT", lambda b: b.write(parameter, "1"), ALL - NOIOMMU, "no-iommu")


def _boot_rows() -> Iterator[Row]:
    parameter = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"

    def held(b: Bench) -> str:
        b.to_vfio(b.lone)
        return f"{b.attribute(b.lone, 'iommu_group/type')} {_hold(b)}"

    def unsafe_interrupts(b: Bench) -> str:
        b.to_vfio(b.lone)
        out = [b.group_status(b.lone), _hold(b), b.write(parameter, "1"), _hold(b), b.write(parameter, "0")]
        return " ".join(out)

    def bind(b: Bench) -> str:
        b.to_vfio(b.lone)
        with b.opened("/dev/iommu") as fd, b.opened(b.cdev(b.lone)) as cdev:
            return b.ioctl(cdev, vfio.DEVICE_BIND_IOMMUFD, vfio.bind_iommufd(fd))

    yield Row("lab-passthrough-type", "identity ok", held, boot="passthrough")
    yield Row("lab-no-remapping", "viable EPERM ok ok ok", unsafe_interrupts, boot="no-remapping")
    yield Row("lab-no-remapping-cdev", "EPERM", bind, IOMMUFD, "no-remapping")
    yield Row("lab-vfio-ids-at-boot", "vfio-pci (null)", lambda b: f"{b.driver(b.plain)} "
              f"{b.attribute(b.plain, 'driver_override')}", ALL - MODULAR, "vfio-ids")  # fmt: skip


def _hold(b: Bench) -> str:
    try:
        with b.held(b.lone):
            return "ok"
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]


def _lockdown_rows() -> Iterator[Row]:
    def config(b: Bench) -> str:
        path = f"{PCI}/devices/{b.lone}/config"
        return f"{b.write(path, chr(0))} {len(b.host.read(path, max_bytes=64))}"

    def moves(b: Bench) -> str:
        b.to_vfio(b.lone)
        out = [b.driver(b.lone), b.write(f"{PCI}/devices/{b.lone}/reset", "1")]
        region = vfio.region_info(vfio.REGION_CONFIG)
        with b.held(b.lone) as fd:
            out.append(b.ioctl(fd, vfio.DEVICE_GET_REGION_INFO, region))
            start = vfio.parse_region_info(region)[1]
            out.append(str(len(b.host.pread(fd, 4, start))))
            out.append(str(b.host.pwrite(fd, b"\x02\0", start + 4)))
        return " ".join(out)

    yield Row("2.3-lockdown-config", "EPERM 64", config, boot="lockdown")
    yield Row("2.3-lockdown-memory", "EPERM", lambda b: b.open("/dev/mem"), boot="lockdown")
    yield Row("2.3-lockdown-vfio", "vfio-pci ok ok 4 2", moves, boot="lockdown")


ROWS = tuple(_rows())
