"""The agent where allocation is not DRA's or not ours: device-plugin mode, and beside NVIDIA's DRA driver.

Both loops only look and tell; modes are changed by `kata-gpu node setup`, which the in-use guard protects.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import structlog

from kata_gpu.core.allocatable import OfferKind, allocatables
from kata_gpu.core.beside_nvidia import COMPANION, NVIDIA_SOCKET, render_companions
from kata_gpu.core.checkpoint import HeldDevice
from kata_gpu.core.claim import ClaimRef, parse_claim
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.plugin_devices import RESOURCES
from kata_gpu.core.slices import Unfit, offers_of
from kata_gpu.dra.device_plugin import DevicePlugin
from kata_gpu.errors import KataGpuError, Misconfigured
from kata_gpu.ops.agent import PERIOD
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.node_devices import HostDevices
from kata_gpu.ops.owners import NvidiaAllocation
from kata_gpu.ops.prepare import GET_CLAIM_S
from kata_gpu.ops.publish import SlicePublisher
from kata_gpu.ports import FileKind, HostFiles, Kube


class Loop:
    """Calls `step` every PERIOD until stopped; an error of a step is logged once per change and retried."""

    def __init__(self, step: Callable[[], None]) -> None:
        self._step = step
        self._stopped = threading.Event()
        self._error = ""
        self._log = structlog.get_logger("agent")

    def run(self) -> None:
        """Until `stop`."""
        while not self._stopped.is_set():
            try:
                self._step()
                self._error = ""
            except KataGpuError as exc:
                if str(exc) != self._error:
                    self._error = str(exc)
                    self._log.warning("step-failing", code=exc.code, error=self._error)
            self._stopped.wait(PERIOD.total_seconds())

    def stop(self) -> None:
        """End after the step that runs."""
        self._stopped.set()


class DevicePluginMode:
    """One plugin per resource over the same offers."""

    def __init__(self, devices: HostDevices, kubelet_root: Path) -> None:
        directory = kubelet_root / "device-plugins"
        self._devices = devices
        self._plugins = [DevicePlugin(directory, kind, devices.observe) for kind in RESOURCES]

    def start(self) -> None:
        """Serve before kubelet is told."""
        for plugin in self._plugins:
            plugin.start()

    def step(self) -> None:
        """Look, tell, register where needed."""
        inventory = self._devices.observe()
        unfit = dict.fromkeys(self._devices.dead(inventory), Unfit(code="device-dead", evict=True))
        unfit |= {str(d.function.address): Unfit(code="device-problem") for d in inventory.devices if d.problem}
        singles = [a for a in allocatables(inventory) if a.kind is not OfferKind.GROUP]
        for plugin in self._plugins:
            plugin.update(offers_of(inventory, singles, unfit))
            plugin.heal()

    def stop(self) -> None:
        """Take the sockets away."""
        for plugin in self._plugins:
            plugin.stop()


class CompanionClaims:
    """`Claims` of the companion driver: a fact for the scheduler, nothing to prepare and nothing to hand over."""

    def __init__(self, kube: Kube, node: str) -> None:
        self._kube = kube
        self._node = node

    def prepare(self, ref: ClaimRef, deadline: Deadline) -> tuple[HeldDevice, ...]:
        """The companion devices of the claim, without CDI ids."""
        path = f"/apis/resource.k8s.io/v1/namespaces/{ref.namespace}/resourceclaims/{ref.name}"
        body = self._kube.get(path, timeout_s=deadline.remaining("claim lookup", at_most=GET_CLAIM_S))
        claim = parse_claim(body, ref, driver=COMPANION, pool=self._node)
        return tuple(
            HeldDevice(request=d.request, pool=d.pool, device=d.device, addresses=(), share_id=d.share_id)
            for d in claim.devices
        )

    def unprepare(self, uid: str, deadline: Deadline) -> None:
        """Nothing was done."""


class NvidiaMode:
    """Taint rules and companions for the devices of NVIDIA's driver; all of it goes when that driver goes."""

    def __init__(self, devices: HostDevices, host: HostFiles, kube: Kube, *, node: str, kubelet_root: Path) -> None:
        self._devices = devices
        self._host = host
        self._node = node
        self._socket = str(kubelet_root / NVIDIA_SOCKET)
        self._owner = NvidiaAllocation(kube, node)
        self._publisher = SlicePublisher(kube, node, driver=COMPANION)

    def step(self) -> None:
        """Compare and write what differs."""
        if self._host.kind(self._socket) is not FileKind.SOCKET:
            self._owner.clear()
            self._publisher.sync_specs(lambda _: [{"driver": COMPANION, "nodeName": self._node, "devices": []}])
            raise Misconfigured(
                "no-nvidia-dra",
                "NVIDIA's DRA driver is not on this node",
                where=self._socket,
                hint="run with --mode standalone, or install that driver",
            )
        inventory = self._devices.observe()
        self._owner.mark_unfit(unfit_for_nvidia(inventory))
        theirs = self._owner.nvidia_devices()
        self._publisher.sync_specs(lambda _: render_companions(inventory, theirs, self._node))


def unfit_for_nvidia(inventory: Inventory) -> dict[str, str]:
    """Their driver moves GPUs to the host's nvidia driver and back; in CC mode that fails or hangs (dra.md 6.3)."""
    out = {}
    for device in inventory.devices:
        address = str(device.function.address)
        if device.problem:
            out[address] = "device-problem"
        elif device.cc_mode not in {None, CcMode.OFF}:
            out[address] = "cc-mode-on"
        elif not inventory.iommufd:
            out[address] = "iommufd-missing"
    return out
