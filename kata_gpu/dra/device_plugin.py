"""Device plugin v1beta1 for one resource: ListAndWatch, Allocate with CDI ids and nodes, registration with kubelet."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import structlog

from kata_gpu.core.allocatable import Allocatable, OfferKind
from kata_gpu.core.cdi import node_paths
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.plugin_devices import PluginDevice, allocate, plugin_devices, resource_of
from kata_gpu.core.slices import Offer
from kata_gpu.dra._pb import deviceplugin_v1beta1_pb2 as pb
from kata_gpu.dra._pb import deviceplugin_v1beta1_pb2_grpc as rpc
from kata_gpu.dra.socket import UnixServer
from kata_gpu.errors import KataGpuError, Unavailable

VERSION = "v1beta1"
REGISTER_S = 5.0
WORKERS = 4
KUBELET = "kubelet.sock"


class DevicePlugin(rpc.DevicePluginServicer):
    """One resource. `update` is told the offers of every pass; kubelet's restart is seen by its socket's inode."""

    def __init__(self, directory: Path, kind: OfferKind, observe: Callable[[], Inventory]) -> None:
        self._directory = directory
        self._kind = kind
        self._observe = observe
        self._changed = threading.Condition()
        self._offers: tuple[Offer, ...] = ()
        self._devices: tuple[PluginDevice, ...] = ()
        self._closed = False
        self._kubelet_inode: tuple[int, int] | None = None
        self._server = UnixServer(directory / f"cgpu-{kind}.sock", self._register_with, workers=WORKERS)
        self._log = structlog.get_logger("device-plugin")

    def start(self) -> None:
        """Serve; `heal` registers."""
        self._server.start()

    def heal(self) -> bool:
        """Serve again after kubelet removed all sockets, register after it came back. True when registered now."""
        if self._server.lost:
            self._server.start()
        try:
            stat = (self._directory / KUBELET).stat()
        except OSError:
            self._kubelet_inode = None
            return False
        if (stat.st_dev, stat.st_ino) == self._kubelet_inode:
            return False
        self._register()
        self._kubelet_inode = (stat.st_dev, stat.st_ino)
        return True

    @property
    def registered(self) -> bool:
        """Whether the kubelet that runs now knows us, as far as its socket tells."""
        return self._kubelet_inode is not None

    def update(self, offers: tuple[Offer, ...]) -> None:
        """Devices of the node; a change goes to kubelet at once."""
        devices = plugin_devices(offers, self._kind)
        with self._changed:
            self._offers = offers
            if devices != self._devices:
                self._devices = devices
                self._changed.notify_all()

    def stop(self) -> None:
        """End streams, take the socket away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.unpublish()
        self._server.stop(1.0)

    def GetDevicePluginOptions(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """No options: placement hints come with each device's NUMA node."""
        return pb.DevicePluginOptions()

    def GetPreferredAllocation(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Not announced."""
        return pb.PreferredAllocationResponse()

    def PreStartContainer(self, request: Any, context: Any) -> Any:  # noqa: ARG002, N802
        """Not announced."""
        return pb.PreStartContainerResponse()

    def ListAndWatch(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: ARG002, N802
        """The complete list, and again at each change."""

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        if not context.add_callback(wake):
            return
        sent: tuple[PluginDevice, ...] | None = None
        while True:
            devices = self._next(sent, context)
            if devices is None:
                return
            yield pb.ListAndWatchResponse(devices=[_device(d) for d in devices])
            sent = devices

    def Allocate(self, request: Any, context: Any) -> Any:  # noqa: N802
        """CDI ids for the runtime, device nodes of now for runtimes without CDI. An unfit device fails the pod."""
        response = pb.AllocateResponse()
        try:
            inventory = self._observe()
            with self._changed:
                offers = {o.device.name: o for o in self._offers}
            for wanted in request.container_requests:
                known: dict[str, Allocatable] = {n: o.device for n, o in offers.items()}
                names = allocate(wanted.devices_ids, known, self._kind)
                row = response.container_responses.add(cdi_devices=[pb.CDIDevice(name=n) for n in names])
                for device in wanted.devices_ids:
                    _require_fit(offers[device])
                    for path in _paths(inventory, known[device]):
                        row.devices.add(container_path=path, host_path=path, permissions="rw")
        except KataGpuError as exc:
            self._log.error("allocate-refused", code=exc.code, error=str(exc))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{exc.code}: {exc}")
        return response

    def _next(self, sent: tuple[PluginDevice, ...] | None, context: Any) -> tuple[PluginDevice, ...] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._devices != sent or self._closed or not context.is_active())
            return None if self._closed or not context.is_active() else self._devices

    def _register(self) -> None:
        request = pb.RegisterRequest(
            version=VERSION,
            endpoint=self._server.path.name,
            resource_name=resource_of(self._kind),
            options=pb.DevicePluginOptions(),
        )
        with grpc.insecure_channel(f"unix:{self._directory / KUBELET}") as channel:
            try:
                rpc.RegistrationStub(channel).Register(request, timeout=REGISTER_S)
            except grpc.RpcError as exc:
                raise Unavailable(
                    "plugin-registration", "kubelet did not register the plugin", where=request.resource_name, got=exc
                ) from exc
        self._log.info("registered", resource=request.resource_name)

    def _register_with(self, server: grpc.Server) -> None:
        rpc.add_DevicePluginServicer_to_server(self, server)


def _device(device: PluginDevice) -> pb.Device:
    row = pb.Device(ID=device.id, health="Healthy" if device.healthy else "Unhealthy")
    if device.numa is not None and device.numa >= 0:
        row.topology.nodes.add(ID=device.numa)
    return row


def _require_fit(offer: Offer) -> None:
    if offer.unfit is not None:
        raise Unavailable(
            "device-unfit", "the device must not be used now", where=offer.device.name, got=offer.unfit.code
        )


def _paths(inventory: Inventory, device: Allocatable) -> tuple[str, ...]:
    now = {str(d.function.address): d for d in inventory.devices}
    return tuple(
        path
        for address in device.addresses
        if address in now
        for path in node_paths(now[address], iommufd=inventory.iommufd)
    )
