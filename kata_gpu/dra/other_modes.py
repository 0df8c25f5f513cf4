"""The agent where allocation is not DRA's or not ours: device-plugin mode, and beside NVIDIA's DRA driver.

In device-plugin mode the node's modes follow its policy as in the standalone one. Beside NVIDIA's driver they do not:
it moves GPUs between VFIO and the host's driver, so a policy that the devices do not meet is only reported.
"""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

from kata_gpu.core.allocatable import OfferKind, allocatables
from kata_gpu.core.beside_nvidia import COMPANION, NVIDIA_SOCKET, render_companions
from kata_gpu.core.checkpoint import HeldDevice
from kata_gpu.core.claim import ClaimRef, parse_claim
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.labels import render_labels
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.plugin_devices import RESOURCES
from kata_gpu.core.slices import Offer, Unfit, offers_of
from kata_gpu.dra.device_plugin import DevicePlugin
from kata_gpu.dra.server import PluginServer
from kata_gpu.errors import KataGpuError, Misconfigured
from kata_gpu.ops.agent import Picture, verdict
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.modes import ModeChanger, ModeState, Phase
from kata_gpu.ops.node_devices import HostDevices
from kata_gpu.ops.owners import NvidiaAllocation
from kata_gpu.ops.prepare import GET_CLAIM_S
from kata_gpu.ops.publish import SlicePublisher
from kata_gpu.ops.report import NodeReporter
from kata_gpu.ports import FileKind, HostFiles, Kube


class OtherMode(Protocol):
    """One way to run without our DRA driver."""

    def start(self) -> None:
        """Serve."""
        ...

    def step(self, now: datetime) -> Picture:
        """Compare, and write what differs."""
        ...

    @property
    def registered(self) -> bool:
        """Whether kubelet has accepted what there is to accept."""
        ...

    def stop(self) -> None:
        """Serve no more."""
        ...


class DevicePluginMode:
    """One plugin per resource over the same offers, and the node's modes by its policy where it has one."""

    def __init__(
        self,
        devices: HostDevices,
        kubelet_root: Path,
        reporter: NodeReporter,
        modes: ModeChanger,
        policy: Callable[[], NodePolicy | None],
    ) -> None:
        directory = kubelet_root / "device-plugins"
        self._devices = devices
        self._reporter = reporter
        self._changer = modes
        self._policy = policy
        self._modes = ModeState(phase=Phase.SETTLED)
        self._plugins = [DevicePlugin(directory, kind, devices.observe) for kind in RESOURCES]

    def start(self) -> None:
        """Serve before kubelet is told."""
        for plugin in self._plugins:
            plugin.start()

    def step(self, now: datetime) -> Picture:
        """Look, tell, register where needed; then bring the modes to the policy."""
        self._tell()
        problems = {}
        try:
            policy = self._policy()
            if policy is not None:
                self._follow(policy, now)
        except KataGpuError as exc:
            problems["policy"] = str(exc)
        inventory, offers = self._tell()
        self._reporter.labels(render_labels(inventory))
        self._reporter.condition(*verdict(problems, self._modes, offers), now)
        return Picture(offers=offers, modes=self._modes, problems=problems, published=True)

    @property
    def registered(self) -> bool:
        """Every resource."""
        return all(plugin.registered for plugin in self._plugins)

    def stop(self) -> None:
        """Take the sockets away."""
        for plugin in self._plugins:
            plugin.stop()

    def _follow(self, policy: NodePolicy, now: datetime) -> None:
        """What must change is taken from kubelet first; an Allocate that is under way is refused from then on."""
        if pending := self._changer.pending(policy):
            self._modes = ModeState(phase=Phase.WAITING, changing=pending, reason="mode change pending")
            self._tell()
        self._modes = self._changer.step(policy, now)

    def _tell(self) -> tuple[Inventory, tuple[Offer, ...]]:
        inventory = self._devices.observe()
        unfit = {str(d.function.address): Unfit(code="device-problem") for d in inventory.devices if d.problem}
        code = "mode-failed" if self._modes.phase is Phase.FAILED else "mode-transition"
        unfit |= dict.fromkeys(self._modes.changing, Unfit(code=code))
        unfit |= dict.fromkeys(self._devices.dead(inventory), Unfit(code="device-dead", evict=True))
        singles = [a for a in allocatables(inventory) if a.kind is not OfferKind.GROUP]
        offers = offers_of(inventory, singles, unfit)
        for plugin in self._plugins:
            plugin.update(offers)
            plugin.heal()
        return inventory, offers


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

    def __init__(
        self,
        devices: HostDevices,
        host: HostFiles,
        kube: Kube,
        *,
        node: str,
        kubelet_root: Path,
        served: PluginServer,
        policy: Callable[[], NodePolicy | None] = lambda: None,
    ) -> None:
        """`served` is the companion driver's plugin."""
        self._devices = devices
        self._host = host
        self._node = node
        self._socket = str(kubelet_root / NVIDIA_SOCKET)
        self._owner = NvidiaAllocation(kube, node)
        self._publisher = SlicePublisher(kube, node, driver=COMPANION)
        self._reporter = NodeReporter(kube, node)
        self._served = served
        self._policy = policy
        self._writes = 0

    def start(self) -> None:
        """Serve the companion driver."""
        self._served.start()

    def stop(self) -> None:
        """Serve no more."""
        self._served.stop()

    @property
    def registered(self) -> bool:
        """The companion driver."""
        return self._served.registered.ok

    def step(self, now: datetime) -> Picture:
        """Compare and write what differs. Raises Misconfigured."""
        self._served.heal()
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
        unfit = unfit_for_nvidia(inventory)
        self._owner.mark_unfit(unfit)
        theirs = self._owner.nvidia_devices()
        self._writes += self._publisher.sync_specs(lambda _: render_companions(inventory, theirs, self._node)).writes
        offers = tuple(
            Offer(device=d, unfit=Unfit(code=unfit[d.addresses[0]]) if d.addresses[0] in unfit else None)
            for d in allocatables(inventory)
            if d.kind is not OfferKind.GROUP
        )
        problems = self._unmet(inventory)
        settled = ModeState(phase=Phase.SETTLED)
        self._reporter.condition(*verdict(problems, settled, offers), now)
        return Picture(offers=offers, modes=settled, problems=problems, published=True, writes=self._writes)

    def _unmet(self, inventory: Inventory) -> dict[str, str]:
        """What the policy wants and this mode cannot do; a mode that nobody could read is no evidence."""
        try:
            policy = self._policy()
        except KataGpuError as exc:
            return {"policy": str(exc)}
        known = [d for d in inventory.devices if d.cc_mode is not None] if policy is not None else []
        differ = [f"{d.name} is {d.cc_mode}" for d in known if policy and policy.mode_of(d) not in {None, d.cc_mode}]
        return {"policy": f"modes are not changed beside NVIDIA's DRA driver: {', '.join(differ)}"} if differ else {}


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
