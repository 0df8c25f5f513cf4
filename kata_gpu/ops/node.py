"""The node as use cases see it: host, durable state, CDI directory, guard and CC backend, wired once by a shell."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from kata_gpu.core.cdi import FILES
from kata_gpu.core.gpu import CcMode, GpuDevice
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.pci import PciAddress, PciFunction
from kata_gpu.core.plan import Observed
from kata_gpu.errors import InUse, KataGpuError, TimedOut, Unavailable
from kata_gpu.host.binding import read_override
from kata_gpu.host.blocked import keeps_group, unbind_waits
from kata_gpu.host.cc.backend import CcBackend
from kata_gpu.host.cc.registers import VfioBackend
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.guard import Allocated, Guard
from kata_gpu.host.journal import Journal
from kata_gpu.host.variants import best_driver
from kata_gpu.ops.observe import observe, text
from kata_gpu.ports import Host


def _silent(_line: str) -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Everything that a use case may touch. `backend` None: our own, over VFIO. `allocated` None: no kubelet."""

    host: Host
    state: DurableDir
    cdi: DurableDir
    backend: CcBackend | None = None
    allocated: Allocated | None = None
    progress: Callable[[str], None] = _silent

    @property
    def journal(self) -> Journal:
        """Its durable state."""
        return Journal(self.state)

    @property
    def guard(self) -> Guard:
        """The in-use guard of this host."""
        return Guard(self.host, own_pid=os.getpid(), allocated=self.allocated)

    def cc_backend(self, inventory: Inventory) -> CcBackend:
        """The backend that the shell chose, or ours."""
        return self.backend if self.backend is not None else VfioBackend(self.host, iommufd=inventory.iommufd)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer per node: CLI and agent share the lock. Raises Unavailable at once when another one has it."""
        path = self.state.path / "lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("a")
        except OSError as exc:
            raise Unavailable(
                "no-state-dir",
                "the state directory cannot be used",
                where=str(path),
                got=exc.strerror,
                hint="run as root, or name another one with --state-dir",
            ) from exc
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise Unavailable(
                    "node-locked",
                    "another kata-gpu changes this node right now",
                    where=str(path),
                    hint="try again later",
                ) from exc
            yield


def observe_node(node: Node) -> Observed:
    """Inventory with last verified CC modes, overrides, original bindings and our CDI files.

    A mode counts only while its device is on VFIO since it was verified: nobody else can have changed it then.
    """
    inventory = observe(node.host)
    journal = node.journal
    modes = journal.modes(inventory.boot_id)
    wedged = dict(journal.wedged(inventory.boot_id))
    overrides: dict[PciAddress, str] = {}
    drivers: dict[PciAddress, str] = {}
    aliases = _aliases(node.host)
    devices = []
    for device in inventory.devices:
        for function in device.unit:
            _read_override(node, function, overrides, wedged)
            drivers[function.address] = best_driver(aliases, text(node.host, _modalias(function)))
        problem = wedged.get(device.function.address, "")
        devices.append(
            replace(device, cc_mode=modes.get(device.function.address) if device.bound else None, problem=problem)
        )
    inventory = replace(inventory, devices=tuple(devices))
    cdi = {file: raw.decode("utf-8", "replace") for file in FILES.values() if (raw := node.cdi.get(file)) is not None}
    return Observed(
        inventory=inventory,
        overrides=overrides,
        drivers=drivers,
        origins=journal.origins(inventory.boot_id),
        cdi=cdi,
        wedged=wedged,
    )


def _read_override(
    node: Node, function: PciFunction, overrides: dict[PciAddress, str], wedged: dict[PciAddress, str]
) -> None:
    """An earlier wedge is over once no task waits in the kernel for it and the attribute can be read again.

    An unbind that somebody else began is found as well: on kernels where the override can be read meanwhile, nothing
    else tells such a device from one that is free.
    """
    suspect = function.driver is None and (function.address in wedged or keeps_group(node.host, function))
    if suspect and unbind_waits(node.host):
        wedged.setdefault(function.address, _blocked_by(node, function))
        return
    wedged.pop(function.address, None)
    try:
        override = read_override(node.host, function.address)
    except TimedOut:
        wedged[function.address] = "reading its driver override does not return"
        return
    if override is not None:
        overrides[function.address] = override


def _blocked_by(node: Node, function: PciFunction) -> str:
    try:
        holders = node.guard.holders([function])[function.address]
    except KataGpuError as exc:
        return f"its unbind waits for a user; {exc}"
    return f"its unbind waits for {'; '.join(map(str, holders)) or 'a user that cannot be seen'}"


def _modalias(function: PciFunction) -> str:
    return f"/sys/bus/pci/devices/{function.address}/modalias"


def _aliases(host: Host) -> str:
    release = text(host, "/proc/sys/kernel/osrelease")
    return text(host, f"/lib/modules/{release}/modules.alias")


def read_modes(node: Node, inventory: Inventory, only: Sequence[PciAddress] | None = None) -> Inventory:
    """The inventory with CC modes read from the devices now. A device that is held keeps its last verified mode; of one
    that does not answer nothing is known any more.

    Opening a device resets it; that harms nobody, because the guard found it free and the session keeps others out.
    """
    backend = node.cc_backend(inventory)
    modes: dict[PciAddress, CcMode] = dict(node.journal.modes(inventory.boot_id))
    devices = []
    for device in inventory.devices:
        wanted = only is None or device.function.address in only
        devices.append(_read_mode(node, backend, device) if wanted else device)
        if (mode := devices[-1].cc_mode) is not None:
            modes[device.function.address] = mode
        else:
            modes.pop(device.function.address, None)
    node.journal.set_modes(inventory.boot_id, modes)
    return replace(inventory, devices=tuple(devices))


def _read_mode(node: Node, backend: CcBackend, device: GpuDevice) -> GpuDevice:
    if not device.modes:
        return device
    if reason := backend.unsupported(device):
        return replace(device, problem=device.problem or reason)
    try:
        node.guard.require_free(device.unit)
        with backend.session([device]) as session:
            mode = session.query(device.function.address)
    except InUse as exc:
        return replace(device, problem=device.problem or str(exc))
    except KataGpuError as exc:
        return replace(device, cc_mode=None, problem=device.problem or str(exc))
    problem = "" if mode is not None else "an interrupted switch left an invalid CC mode: set any mode again"
    return replace(device, cc_mode=mode, problem=device.problem or problem)
