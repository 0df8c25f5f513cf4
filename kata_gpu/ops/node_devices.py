"""`NodeDevices` over the real host: the claim path's view of the node's own verbs.

A bind may take longer than kubelet waits. It then goes on in the background, and the retry of the claim waits for the
same attempt instead of starting a second one.
"""

import threading
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace

from kata_gpu.core.inventory import Inventory
from kata_gpu.core.pci import PciAddress, PciFunction
from kata_gpu.errors import KataGpuError, RolledBack, TimedOut, Unavailable
from kata_gpu.host.vfio_device import VfioSession
from kata_gpu.ops import setup
from kata_gpu.ops.node import Node
from kata_gpu.ops.observe import observe

NODE_APPEARS_S = 5.0  # udev creates /dev/vfio/devices/vfioN within milliseconds
POLL_S = 0.02
ALL_ONES = 0xFFFF  # what reading a device that fell off the bus gives


class HostDevices:
    """One per process. `quiet` keeps two looks at the host apart: kubelet's calls and the agent's passes are threads,
    and opening a device to read its mode must not meet another look half-way. Binding, which may be slow, is outside.

    Kubelet's allocations are no evidence here: it is for them that devices are bound, and after them that they are
    reset. The claims of the checkpoint keep a device to one pod; open files tell of everybody else.
    """

    def __init__(self, node: Node) -> None:
        self._node = replace(node, allocated=None)
        self.quiet = threading.RLock()
        self._running: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def observe(self) -> Inventory:
        """The inventory of now. Modes are those last read back since the device came to VFIO: nobody else can have
        changed them without taking it from there.
        """
        with self.quiet:
            inventory = observe(self._node.host)
            modes = self._node.journal.modes(inventory.boot_id)
            wedged = self._node.journal.wedged(inventory.boot_id)
        devices = (
            replace(
                d,
                cc_mode=modes.get(d.function.address) if d.bound else None,
                problem=wedged.get(d.function.address, ""),
            )
            for d in inventory.devices
        )
        return replace(inventory, devices=tuple(devices))

    def verify(self, inventory: Inventory, addresses: Collection[str]) -> Inventory:
        """Read the modes of these devices from their registers; what cannot be read is unknown, with its problem."""
        with self.quiet:
            return self._verify(inventory, addresses)

    def _verify(self, inventory: Inventory, addresses: Collection[str]) -> Inventory:
        backend = self._node.cc_backend(inventory)
        before = self._node.journal.modes(inventory.boot_id)
        modes, devices = dict(before), []
        for device in inventory.devices:
            if str(device.function.address) not in addresses or not (device.bound and device.modes):
                devices.append(device)
                continue
            modes.pop(device.function.address, None)
            try:
                with backend.session([device]) as session:
                    mode = session.query(device.function.address)
            except KataGpuError as exc:
                devices.append(replace(device, cc_mode=None, problem=str(exc)))
                continue
            devices.append(replace(device, cc_mode=mode))
            if mode is not None:
                modes[device.function.address] = mode
        if modes != before:
            self._node.journal.set_modes(inventory.boot_id, modes)
        return replace(inventory, devices=tuple(devices))

    def bind(self, address: str, *, deadline_s: float) -> None:
        """To VFIO with its companions, through the node's journal; see the port. Raises TimedOut."""
        with self._lock:
            future = self._running.get(address)
            if future is None:
                future = self._running[address] = Future()
                threading.Thread(target=self._bind, args=(address, future), daemon=True).start()
        try:
            future.result(timeout=deadline_s)
        except FutureTimeout:
            raise TimedOut(
                "bind-slow",
                "binding takes longer than this call may",
                where=address,
                expected=f"within {deadline_s:.0f} s",
                hint="it goes on; the retry waits for it",
            ) from None
        finally:
            if future.done():
                with self._lock:
                    self._running.pop(address, None)

    def reset(self, address: str, *, deadline_s: float) -> None:
        """Function-level reset through VFIO, then proof that the device answers."""
        with self.quiet:
            self._reset(address, deadline_s)

    def _reset(self, address: str, deadline_s: float) -> None:
        function = self._function(address)
        started = self._node.host.monotonic()
        with VfioSession(self._node.host, iommufd=observe(self._node.host).iommufd) as session:
            session.open([function])
            device = session.devices[function]
            device.reset()
            while device.config32(0) & ALL_ONES == ALL_ONES:
                if self._node.host.monotonic() - started > deadline_s:
                    raise TimedOut("reset-no-answer", "the device does not answer after its reset", where=address)
                self._node.host.sleep(POLL_S)

    def holders(self, inventory: Inventory, addresses: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """Who has the VFIO nodes open: one look at all processes."""
        functions = [f for d in inventory.devices if str(d.function.address) in addresses for f in d.unit]
        with self.quiet:
            return {str(a): tuple(map(str, h)) for a, h in self._node.guard.holders(functions).items() if h}

    def dead(self, inventory: Inventory) -> frozenset[str]:
        """Addresses whose configuration space reads all ones: the device fell off the bus."""
        with self.quiet:
            return frozenset(str(d.function) for d in inventory.devices if self._is_dead(d.function))

    def _is_dead(self, function: PciFunction) -> bool:
        try:
            data = self._node.host.read(f"/sys/bus/pci/devices/{function.address}/config", max_bytes=4)
        except OSError:
            return False
        return data[:2] == b"\xff\xff"

    def _bind(self, address: str, future: "Future[None]") -> None:
        try:
            setup.bind(self._node, [PciAddress.parse(address)])
            self._wait_for_node(address)
        except KataGpuError as exc:
            future.set_exception(exc)
        except BaseException as exc:
            future.set_exception(
                Unavailable("bind-failed", "binding failed unexpectedly", where=address, got=repr(exc))
            )
            raise
        else:
            future.set_result(None)

    def _wait_for_node(self, address: str) -> None:
        host = self._node.host
        until = host.monotonic() + NODE_APPEARS_S
        while True:
            function = self._function(address)
            paths = [f"/dev/vfio/devices/{function.vfio_cdev}", f"/dev/vfio/{function.iommu_group}"]
            if any(host.kind(p) is not None for p in paths):
                return
            if host.monotonic() > until:
                raise RolledBack(
                    "vfio-node-missing",
                    "the device is on VFIO and has no node",
                    where=address,
                    expected=f"/dev/vfio/devices/vfioN within {NODE_APPEARS_S:.0f} s",
                    hint="is udev running, and CONFIG_VFIO_DEVICE_CDEV set?",
                )
            host.sleep(POLL_S)

    def _function(self, address: str) -> PciFunction:
        return observe(self._node.host).device(PciAddress.parse(address)).function
