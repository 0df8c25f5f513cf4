"""The agent as a process in a mode without our DRA driver: one loop, woken by uevents, with metrics and probes."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import structlog

from kata_gpu.clock import utc_now
from kata_gpu.core.allocations import allocated_devices
from kata_gpu.core.beside_nvidia import COMPANION
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.pci import PciAddress
from kata_gpu.dra.health import Health
from kata_gpu.dra.kubelet import list_allocations
from kata_gpu.dra.metrics import Metrics
from kata_gpu.dra.other_modes import CompanionClaims, DevicePluginMode, NvidiaMode, OtherMode
from kata_gpu.dra.passes import Passes
from kata_gpu.dra.probes import Probes
from kata_gpu.dra.runner import AgentSettings
from kata_gpu.dra.server import PluginPaths, PluginServer
from kata_gpu.dra.service import DraService
from kata_gpu.errors import KataGpuError
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.real import RealHost
from kata_gpu.host.uevents import UeventListener
from kata_gpu.ops.agent import Picture
from kata_gpu.ops.modes import ModeChanger
from kata_gpu.ops.node import Node
from kata_gpu.ops.node_devices import HostDevices
from kata_gpu.ops.owners import Mode
from kata_gpu.ops.pod_claims import PodClaims
from kata_gpu.ops.report import NodeReporter
from kata_gpu.ports import Kube


def open_process(
    mode: Mode,
    settings: AgentSettings,
    node: Node,
    kube: Kube,
    policy: Callable[[], NodePolicy | None],
    *,
    uevents: Callable[[], socket.socket] | None = None,
) -> "OtherProcess":
    """Wires everything for `mode`."""
    metrics, devices = Metrics(), HostDevices(node)
    chosen: OtherMode
    if mode is Mode.DEVICE_PLUGIN:
        given = given_by(settings.kubelet_root / "pod-resources" / "kubelet.sock", devices)
        changing = replace(node, cdi=DurableDir(settings.cdi), allocated=given)
        modes = ModeChanger(
            changing, PodClaims(given), kube, name=settings.node, drain=settings.drain, quiet=devices.quiet
        )
        chosen = DevicePluginMode(devices, settings.kubelet_root, NodeReporter(kube, settings.node), modes, policy)
    else:
        paths = PluginPaths(kubelet_root=settings.kubelet_root, driver=COMPANION, instance=settings.instance)
        service = DraService(CompanionClaims(kube, settings.node), metrics)
        served = PluginServer(paths, service, Health(settings.node, utc_now))
        chosen = NvidiaMode(
            devices, RealHost(), kube, node=settings.node, kubelet_root=settings.kubelet_root, served=served,
            policy=policy,
        )  # fmt: skip
    return OtherProcess(chosen, settings.listen, metrics, uevents=uevents)


def given_by(path: Path, devices: HostDevices) -> Callable[[], dict[PciAddress, str]]:
    """Device -> `namespace/pod` as kubelet lists it. The result raises Unavailable without kubelet: no guesses."""

    def given() -> dict[PciAddress, str]:
        return allocated_devices(list_allocations(path), devices.observe())

    return given


class OtherProcess:
    """`run` returns after `stop`. An error of a pass is logged once per change and the pass repeated."""

    def __init__(
        self,
        mode: OtherMode,
        listen: tuple[str, int],
        metrics: Metrics,
        *,
        uevents: Callable[[], socket.socket] | None = None,
    ) -> None:
        self._mode = mode
        self._passes = Passes()
        self._uevents = UeventListener(self._passes.wake, connect=uevents)
        self._picture = Picture()
        self._probes = Probes(listen, metrics, lambda: "" if mode.registered else "kubelet has not registered us")
        self._log = structlog.get_logger("agent")

    def run(self) -> None:
        """Serve and loop."""
        self._probes.start()
        self._mode.start()
        try:
            self._uevents.start()
            self._passes.run(self._step)
        finally:
            self._uevents.stop()
            self._mode.stop()
            self._probes.stop()

    def stop(self) -> None:
        """End after the pass that runs."""
        self._passes.stop()

    def _step(self) -> None:
        before = self._picture.problems
        try:
            self._picture = self._mode.step(utc_now())
        except KataGpuError as exc:
            self._picture = replace(self._picture, problems={"pass": str(exc)})
        for step, error in self._picture.problems.items():
            if before.get(step) != error:
                self._log.warning("step-failing", step=step, error=error)
        self._probes.passed(self._picture)
