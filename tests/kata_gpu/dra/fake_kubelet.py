"""A kubelet that keeps the rules of dra.md section 1, step by step and without threads of its own.

Nothing happens until a method is called, so a test says when kubelet looks, monitors, retries or restarts.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from kata_gpu.dra._pb import (
    deviceplugin_v1beta1_pb2,
    deviceplugin_v1beta1_pb2_grpc,
    dra_health_v1alpha1_pb2,
    dra_health_v1alpha1_pb2_grpc,
    dra_v1_pb2,
    dra_v1_pb2_grpc,
    dra_v1beta1_pb2,
    dra_v1beta1_pb2_grpc,
    podresources_v1_pb2,
    podresources_v1_pb2_grpc,
    registration_v1_pb2,
    registration_v1_pb2_grpc,
)

GET_INFO_S = 1.0
NOTIFY_S = 5.0
MONITOR_S = 10.0
RPC_S = 45.0
WIPE_AFTER_S = 30.0
MONITOR_FAILURES = 2


class KubeletError(Exception):
    """What kubelet would put into an event of the pod."""


@dataclass(frozen=True, slots=True, order=True)
class ClaimKey:
    """A claim as kubelet sends it."""

    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class Plugin:
    """A registered endpoint."""

    name: str
    endpoint: str
    version: str
    health: bool
    socket: Path


@dataclass(slots=True)
class PreparedClaim:
    """Kubelet's cache entry. `prepared` is not in kubelet's checkpoint, the entry is."""

    key: ClaimKey
    pods: set[str] = field(default_factory=set)
    prepared: bool = False
    devices: list[tuple[str, str, str, tuple[str, ...]]] = field(default_factory=list)  # driver, pool, device, ids


def _channel(endpoint: str) -> grpc.Channel:
    return grpc.insecure_channel(f"unix:{endpoint}", options=(("grpc.enable_retries", 0),))


class FakeKubelet:
    """Registration, claims and PodResources of one node."""

    supported = ("v1.DRAPlugin", "v1beta1.DRAPlugin")

    def __init__(self, root: Path, *, wipe_slices: Callable[[str | None], None] = lambda _driver: None) -> None:
        """`wipe_slices(driver)` deletes this node's slices of a driver, or all of them for None."""
        self.root = root
        self.registry = root / "plugins_registry"
        self.registry.mkdir(parents=True, exist_ok=True)
        self.wipe_slices = wipe_slices
        self.now = 0.0
        self.plugins: dict[str, list[Plugin]] = {}
        self.errors: dict[str, str] = {}
        self.claims: dict[str, PreparedClaim] = {}
        self.pods: dict[tuple[str, str], dict[str, list[str]]] = {}  # (ns, name) -> container -> claim uids
        self.extra_devices: dict[tuple[str, str], dict[str, list[tuple[str, list[str]]]]] = {}
        self.rpcs: list[str] = []
        self._misses: dict[str, int] = {}
        self._gone_since: dict[str, float] = {}
        self._server: grpc.Server | None = None
        self.device_plugins: list[tuple[str, str]] = []

    # registration -----------------------------------------------------------------------------------------------

    def scan(self) -> None:
        """One pass of the plugin manager: drop vanished sockets, register new ones."""
        present = {p for p in self.registry.rglob("*") if p.is_socket() and not p.name.startswith(".")}
        for name, plugins in list(self.plugins.items()):
            for plugin in plugins:
                if plugin.socket not in present:
                    self._deregister(name, plugin)
        known = {p.socket for plugins in self.plugins.values() for p in plugins}
        for socket in sorted(present - known):
            try:
                self._register(socket)
                self.errors.pop(socket.name, None)
            except (KubeletError, grpc.RpcError) as exc:
                self.errors[socket.name] = str(exc)

    def monitor(self) -> None:
        """The connection monitor's 10 s round: two failures in a row unregister, sockets that revived come back."""
        self.now += MONITOR_S
        for name, plugins in list(self.plugins.items()):
            for plugin in plugins:
                try:
                    self._get_info(plugin.socket, MONITOR_S)
                    self._misses[str(plugin.socket)] = 0
                except grpc.RpcError:
                    self._misses[str(plugin.socket)] = self._misses.get(str(plugin.socket), 0) + 1
                    if self._misses[str(plugin.socket)] >= MONITOR_FAILURES:
                        self._deregister(name, plugin)
        self.scan()

    def tick(self, seconds: float) -> None:
        """Let time pass: a driver gone for 30 s loses its slices."""
        self.now += seconds
        for name, since in list(self._gone_since.items()):
            if self.now - since >= WIPE_AFTER_S:
                self.wipe_slices(name)
                del self._gone_since[name]

    def restart(self) -> None:
        """A new kubelet process: connections and `prepared` flags are gone, claims stay, all slices are wiped."""
        self.plugins.clear()
        self._misses.clear()
        for claim in self.claims.values():
            claim.prepared = False
        self.wipe_slices(None)
        self.scan()

    def _get_info(self, socket: Path, timeout: float) -> Any:
        with _channel(str(socket)) as channel:
            return registration_v1_pb2_grpc.RegistrationStub(channel).GetInfo(
                registration_v1_pb2.InfoRequest(), timeout=timeout
            )

    def _register(self, socket: Path) -> None:
        info = self._get_info(socket, GET_INFO_S)
        error = self._refusal(info)
        if not error:
            version = next(v for v in info.supported_versions if v in self.supported)
            plugin = Plugin(
                name=info.name,
                endpoint=info.endpoint,
                version=version,
                health="v1alpha1.DRAResourceHealth" in info.supported_versions,
                socket=socket,
            )
            self.plugins.setdefault(info.name, []).append(plugin)
            self._gone_since.pop(info.name, None)
        self.notify(socket, not error, error)
        if error:
            raise KubeletError(error)

    def notify(self, socket: Path, ok: bool, error: str) -> None:
        """NotifyRegistrationStatus."""
        with _channel(str(socket)) as channel:
            registration_v1_pb2_grpc.RegistrationStub(channel).NotifyRegistrationStatus(
                registration_v1_pb2.RegistrationStatus(plugin_registered=ok, error=error), timeout=NOTIFY_S
            )

    def _refusal(self, info: Any) -> str:
        if info.type != "DRAPlugin":
            return f"no handler registered for plugin type: {info.type}"
        if not any(v in self.supported for v in info.supported_versions):
            return f"none of the versions of {list(info.supported_versions)} is supported"
        if not info.endpoint.startswith("/"):
            return "endpoint is not absolute"
        if any(p.endpoint == info.endpoint for p in self.plugins.get(info.name, ())):
            return f"endpoint {info.endpoint} already registered for plugin {info.name}"
        return ""

    def _deregister(self, name: str, plugin: Plugin) -> None:
        self.plugins[name].remove(plugin)
        if not self.plugins[name]:
            del self.plugins[name]
            self._gone_since[name] = self.now

    # claims -----------------------------------------------------------------------------------------------------

    def prepare(self, pod: str, claims: list[ClaimKey], driver: str, *, timeout: float = RPC_S) -> list[str]:
        """SyncPod for one driver: one RPC with the claims that are not prepared; the CDI ids of all, or KubeletError."""
        for key in claims:
            for other in self.claims.values():
                if (other.key.namespace, other.key.name) == (key.namespace, key.name) and other.key.uid != key.uid:
                    raise KubeletError(f"old claim {other.key.uid} of that name is not unprepared yet")
            self.claims.setdefault(key.uid, PreparedClaim(key)).pods.add(pod)
        todo = [c for c in claims if not self.claims[c.uid].prepared]
        if todo:
            self._call_prepare(driver, todo, timeout)
        return [i for c in claims for _, _, _, ids in self.claims[c.uid].devices for i in ids]

    def _call_prepare(self, driver: str, todo: list[ClaimKey], timeout: float) -> None:
        response = self.rpc(driver, "NodePrepareResources", todo, timeout)
        failed = []
        for key in todo:
            if key.uid not in response.claims:
                continue
            entry = response.claims[key.uid]
            if entry.error:
                failed.append(f"{key.namespace}/{key.name}: {entry.error}")
                continue
            claim = self.claims[key.uid]
            claim.devices = [(driver, d.pool_name, d.device_name, tuple(d.cdi_device_ids)) for d in entry.devices]
            claim.prepared = True
        if unknown := set(response.claims) - {k.uid for k in todo}:
            raise KubeletError(f"unknown claims in the answer: {sorted(unknown)}")
        if skipped := len(todo) - len(response.claims):
            raise KubeletError(f"NodePrepareResources skipped {skipped} ResourceClaims")
        if failed:
            raise KubeletError("; ".join(failed))

    def unprepare(self, pod: str, claims: list[ClaimKey], driver: str, *, timeout: float = RPC_S) -> None:
        """The pod is done: claims that no other pod uses are unprepared; KubeletError keeps it Terminating."""
        last = []
        for key in claims:
            claim = self.claims.get(key.uid)
            if claim is None:
                continue
            if claim.pods - {pod}:
                claim.pods.discard(pod)
            else:
                last.append(key)
        if not last:
            return
        response = self.rpc(driver, "NodeUnprepareResources", last, timeout)
        if skipped := len(last) - len(response.claims):
            raise KubeletError(f"NodeUnprepareResources skipped {skipped} ResourceClaims")
        failed = []
        for key in last:
            if response.claims[key.uid].error:
                failed.append(response.claims[key.uid].error)
            else:
                del self.claims[key.uid]
        if failed:
            raise KubeletError("; ".join(failed))

    def rpc(self, driver: str, method: str, claims: list[ClaimKey], timeout: float = RPC_S) -> Any:
        """One raw call to the newest endpoint of a driver."""
        plugins = self.plugins.get(driver)
        if not plugins:
            raise KubeletError(f"DRA driver {driver} is not registered")
        plugin = plugins[-1]
        self.rpcs.append(method)
        return call(plugin.endpoint, plugin.version, method, claims, timeout)

    # PodResources -----------------------------------------------------------------------------------------------

    @property
    def pod_resources_socket(self) -> Path:
        """Where kubelet serves PodResources."""
        return self.root / "pod-resources" / "kubelet.sock"

    def serve_pod_resources(self) -> None:
        """Start the PodResources server and kubelet's device-plugin registration."""
        self.pod_resources_socket.parent.mkdir(parents=True, exist_ok=True)
        (self.root / "device-plugins").mkdir(exist_ok=True)
        self._server = grpc.server(ThreadPoolExecutor(2))
        podresources_v1_pb2_grpc.add_PodResourcesListerServicer_to_server(_PodResources(self), self._server)
        deviceplugin_v1beta1_pb2_grpc.add_RegistrationServicer_to_server(_Devices(self), self._server)
        self._server.add_insecure_port(f"unix:{self.pod_resources_socket}")
        self._server.add_insecure_port(f"unix:{self.root}/device-plugins/kubelet.sock")
        self._server.start()

    def stop(self) -> None:
        """Stop serving."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def pod_resources(self, namespace: str, name: str) -> Any:
        """The message for one pod, with kubelet's quirk: later devices of a claim repeat the earlier CDI ids."""
        pb = podresources_v1_pb2
        containers = []
        for container, uids in self.pods[namespace, name].items():
            dynamic = []
            for uid in uids:
                claim = self.claims.get(uid)
                if claim is None or not claim.prepared:
                    continue
                ids: list[str] = []
                resources = []
                for driver, pool, device, cdi in claim.devices:
                    ids += cdi
                    resources.append(
                        pb.ClaimResource(
                            cdi_devices=[pb.CDIDevice(name=i) for i in ids],
                            driver_name=driver,
                            pool_name=pool,
                            device_name=device,
                        )
                    )
                dynamic.append(
                    pb.DynamicResource(
                        claim_name=claim.key.name, claim_namespace=claim.key.namespace, claim_resources=resources
                    )
                )
            devices = [
                pb.ContainerDevices(resource_name=r, device_ids=i)
                for r, i in self.extra_devices.get((namespace, name), {}).get(container, ())
            ]
            containers.append(pb.ContainerResources(name=container, devices=devices, dynamic_resources=dynamic))
        return pb.PodResources(name=name, namespace=namespace, containers=containers)

    def watch_health(self, driver: str) -> tuple[grpc.Channel, Any]:
        """Kubelet's health stream; the caller closes the channel."""
        channel = _channel(self.plugins[driver][-1].endpoint)
        stub = dra_health_v1alpha1_pb2_grpc.DRAResourceHealthStub(channel)
        return channel, stub.NodeWatchResources(dra_health_v1alpha1_pb2.NodeWatchResourcesRequest())


def call(endpoint: str, version: str, method: str, claims: list[ClaimKey], timeout: float = RPC_S) -> Any:
    """One DRAPlugin call of a version."""
    pb, rpc = {
        "v1.DRAPlugin": (dra_v1_pb2, dra_v1_pb2_grpc),
        "v1beta1.DRAPlugin": (dra_v1beta1_pb2, dra_v1beta1_pb2_grpc),
    }[version]
    with _channel(endpoint) as channel:
        request = getattr(pb, f"{method}Request")(
            claims=[pb.Claim(namespace=c.namespace, name=c.name, uid=c.uid) for c in claims]
        )
        return getattr(rpc.DRAPluginStub(channel), method)(request, timeout=timeout)


class _PodResources(podresources_v1_pb2_grpc.PodResourcesListerServicer):
    def __init__(self, kubelet: FakeKubelet) -> None:
        self._kubelet = kubelet

    def List(self, request: Any, context: Any) -> Any:
        return podresources_v1_pb2.ListPodResourcesResponse(
            pod_resources=[self._kubelet.pod_resources(*key) for key in sorted(self._kubelet.pods)]
        )

    def GetAllocatableResources(self, request: Any, context: Any) -> Any:
        return podresources_v1_pb2.AllocatableResourcesResponse(cpu_ids=[0, 1])

    def Get(self, request: Any, context: Any) -> Any:
        key = (request.pod_namespace, request.pod_name)
        if key not in self._kubelet.pods:
            context.abort(grpc.StatusCode.UNKNOWN, f"pod {request.pod_name} in namespace {key[0]} not found")
        return podresources_v1_pb2.GetPodResourcesResponse(pod_resources=self._kubelet.pod_resources(*key))


class _Devices(deviceplugin_v1beta1_pb2_grpc.RegistrationServicer):
    def __init__(self, kubelet: FakeKubelet) -> None:
        self._kubelet = kubelet

    def Register(self, request: Any, context: Any) -> Any:
        if request.version != "v1beta1":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"requested API version {request.version!r}")
        self._kubelet.device_plugins.append((request.resource_name, request.endpoint))
        return deviceplugin_v1beta1_pb2.Empty()
