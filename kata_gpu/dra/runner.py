"""The agent as a process: recover, serve kubelet, then loop until told to stop."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from kata_gpu.clock import utc_now
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.dra.health import DeviceHealth, Health
from kata_gpu.dra.kubelet import answers, listed_by
from kata_gpu.dra.metrics import Metrics
from kata_gpu.dra.passes import Passes
from kata_gpu.dra.probes import Probes
from kata_gpu.dra.server import PluginPaths, PluginServer
from kata_gpu.dra.service import DraService
from kata_gpu.dra.watch import SliceWatch
from kata_gpu.errors import Unavailable
from kata_gpu.host.claim_cdi_dir import ClaimCdiDir
from kata_gpu.host.claim_file import ClaimFileStore
from kata_gpu.host.uevents import UeventListener
from kata_gpu.ops.agent import Agent, Parts, Picture
from kata_gpu.ops.claim_status import ClaimStatus
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.modes import ModeChanger
from kata_gpu.ops.node import Node as HostNode
from kata_gpu.ops.node_devices import HostDevices
from kata_gpu.ops.observe import boot_id
from kata_gpu.ops.prepare import ClaimPreparer, Node
from kata_gpu.ops.publish import SlicePublisher
from kata_gpu.ops.reconcile_claims import ClaimReconciler
from kata_gpu.ops.recover_claims import recover
from kata_gpu.ops.report import NodeReporter
from kata_gpu.ports import Kube

RECOVER_S = 60.0
MAX_UNHEALED = 3  # passes: about the 30 s after which kubelet deletes the slices of a driver that it does not reach


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """From flags. `bridge` None: no bridge on this node, nothing depends on it."""

    node: str
    kubelet_root: Path
    cdi: Path
    instance: str
    bridge: Path | None
    listen: tuple[str, int]
    drain: bool


class AgentProcess:
    """Wires everything; `run` returns after `stop`."""

    def __init__(
        self,
        settings: AgentSettings,
        host: HostNode,
        kube: Kube,
        policy: Callable[[], NodePolicy | None],
        *,
        uevents: Callable[[], socket.socket] | None = None,
    ) -> None:
        """`uevents` connects to those of another host than this machine."""
        self._uevents = uevents
        self._settings = settings
        self._policy = policy
        self._passes = Passes()
        self._log = structlog.get_logger("agent")
        self._paths = PluginPaths(kubelet_root=settings.kubelet_root, driver=DRIVER, instance=settings.instance)
        self._identity = Node(driver=DRIVER, pool=settings.node, boot_id=boot_id(host.host))
        self._store = ClaimFileStore(self._paths.data)
        self._cdi = ClaimCdiDir(settings.cdi)
        self._kube = kube
        self._devices = HostDevices(host)
        self._listed = listed_by(settings.kubelet_root / "pod-resources" / "kubelet.sock", DRIVER)
        self.metrics = Metrics()
        preparer = ClaimPreparer(
            self._identity, store=self._store, kube=kube, devices=self._devices, cdi=self._cdi, now=utc_now,
            on_change=self._passes.wake,
        )  # fmt: skip
        self._health = Health(settings.node, utc_now)
        self.plugin = PluginServer(self._paths, DraService(preparer, self.metrics), self._health)
        publisher = SlicePublisher(kube, settings.node)
        self._watch = SliceWatch(kube, publisher, self._passes.wake)
        self._agent = Agent(
            Parts(
                devices=self._devices,
                store=self._store,
                preparer=preparer,
                publisher=publisher,
                reconciler=ClaimReconciler(self._store, kube, preparer, self._devices, self._listed),
                reporter=NodeReporter(kube, settings.node),
                status=ClaimStatus(kube),
                slices=self._watch,
                modes=ModeChanger(
                    host, self._store, kube, name=settings.node, drain=settings.drain, quiet=self._devices.quiet
                ),
                policy=policy,
                bridge_up=lambda: settings.bridge is None or answers(settings.bridge),
                dead=self._devices.dead,
                recover=self._recover_lost,
            )
        )
        self._picture = Picture()
        self._unhealed = 0
        self._probes = Probes(settings.listen, self.metrics, self._unregistered)

    def run(self) -> None:
        """Recover first: kubelet is answered only by a driver that knows what it promised."""
        self._recover()
        uevents = UeventListener(self._passes.wake, connect=self._uevents)
        self._probes.start()
        self.plugin.start()
        try:
            self._watch.start()
            uevents.start()
            self._passes.run(self.step)
        finally:
            self._watch.stop()
            uevents.stop()
            self.plugin.stop()
            self._probes.stop()

    def step(self) -> None:
        """One pass, and what it means for health, metrics and sockets."""
        self._heal()
        before = self._picture.problems
        self._picture = self._agent.step(utc_now())
        for name, error in self._picture.problems.items():
            if before.get(name) != error:
                self._log.warning("step-failing", step=name, error=error)
        self._health.update(tuple(_health(self._picture)))
        self._probes.passed(self._picture)

    def _recover(self) -> None:
        done = recover(
            self._identity, store=self._store, kube=self._kube, devices=self._devices, cdi=self._cdi,
            listed=self._listed, now=utc_now(), deadline=Deadline.after(RECOVER_S),
        )  # fmt: skip
        self._log.info("recovered", **{k: getattr(done, k) for k in done.__slots__})

    def _recover_lost(self) -> None:
        """Kubelet's folder was wiped under us: its pods go on."""
        if self._store.lost():
            self._log.warning("checkpoint-lost")
            self._recover()

    def _heal(self) -> None:
        """Sockets that are gone are served again; where that cannot be, this ends, and is started with other mounts.

        A folder that was removed and made again is not the one that our container has mounted.
        """
        try:
            if self.plugin.heal():
                self.metrics.socket_healed()
        except Unavailable as exc:
            self._unhealed += 1
            self._log.warning("socket-lost", code=exc.code, error=str(exc), tries=self._unhealed)
            if self._unhealed >= MAX_UNHEALED:
                raise
        else:
            self._unhealed = 0

    def stop(self) -> None:
        """Ask `run` to end."""
        self._passes.stop()

    def _unregistered(self) -> str:
        registered = self.plugin.registered
        return "" if registered.ok else registered.error or "kubelet has not registered the plugin"


def _health(picture: Picture) -> list[DeviceHealth]:
    """A device is unhealthy for a pod that has it only when it is dead; being unfit for others is no illness."""
    out = []
    for offer in picture.offers:
        if offer.unfit is None:
            out.append(DeviceHealth(device=offer.device.name, healthy=True))
        else:
            healthy = None if not offer.unfit.evict else False
            out.append(DeviceHealth(device=offer.device.name, healthy=healthy, message=offer.unfit.code))
    return out
