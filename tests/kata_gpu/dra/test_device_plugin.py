"""Device-plugin mode, and the loop beside NVIDIA's driver."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from kata_gpu.core.allocatable import OfferKind, allocatables
from kata_gpu.core.beside_nvidia import COMPANION, NVIDIA_SOCKET
from kata_gpu.core.cdi import render_spec
from kata_gpu.core.gpu import CcMode, Kind
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.slices import Unfit, offers_of
from kata_gpu.dra._pb import deviceplugin_v1beta1_pb2 as pb
from kata_gpu.dra._pb import deviceplugin_v1beta1_pb2_grpc as rpc
from kata_gpu.dra.device_plugin import DevicePlugin
from kata_gpu.dra.other_modes import CompanionClaims, NvidiaMode, unfit_for_nvidia
from kata_gpu.errors import Misconfigured
from kata_gpu.host.real import RealHost
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.report import CONDITION
from tests.kata_gpu.dra.fake_node import NOW
from tests.kata_gpu.dra.fake_store import KINDS
from tests.kata_gpu.dra.test_beside_nvidia import nvidia_slice, nvidia_socket, rules
from tests.kata_gpu.dra.world import CLAIMS, NODE, NODES, SLICES, World, address, gpu


@pytest.fixture
def plugin(world: World) -> Iterator[DevicePlugin]:
    """Serving GPUs to the world's kubelet, registered."""
    world.kubelet.serve_pod_resources()
    made = DevicePlugin(world.root / "device-plugins", OfferKind.GPU, world.host.observe)
    made.start()
    tell(made, world)
    assert made.heal()
    yield made
    made.stop()


def tell(plugin: DevicePlugin, world: World, unfit: dict[str, Unfit] | None = None) -> None:
    inventory = world.host.observe()
    plugin.update(offers_of(inventory, allocatables(inventory), unfit or {}))


def stub(world: World) -> tuple[grpc.Channel, Any]:
    ((_, endpoint),) = set(world.kubelet.device_plugins)
    channel = grpc.insecure_channel(f"unix:{world.root}/device-plugins/{endpoint}")
    return channel, rpc.DevicePluginStub(channel)


def test_registration_names_the_cdi_kind(world: World, plugin: DevicePlugin) -> None:
    assert world.kubelet.device_plugins == [("cgpu.kata-gpu.dev/gpu", "cgpu-gpu.sock")]
    assert not plugin.heal()


def test_list_and_watch_sends_all_and_each_change(world: World, plugin: DevicePlugin) -> None:
    channel, client = stub(world)
    stream = client.ListAndWatch(pb.Empty())
    first = next(stream)
    assert [d.ID for d in first.devices] == [gpu(i) for i in range(8)]
    assert {d.health for d in first.devices} == {"Healthy"}
    assert [d.topology.nodes[0].ID for d in first.devices] == [0, 0, 0, 0, 1, 1, 1, 1]
    tell(plugin, world, {address(2): Unfit(code="device-dead")})
    assert [d.ID for d in next(stream).devices if d.health == "Unhealthy"] == [gpu(2)]
    channel.close()


def test_allocate_names_cdi_devices_that_the_static_spec_defines(world: World, plugin: DevicePlugin) -> None:
    channel, client = stub(world)
    request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=[gpu(0), gpu(1)])])
    (row,) = client.Allocate(request, timeout=5).container_responses
    assert [d.name for d in row.cdi_devices] == [f"cgpu.kata-gpu.dev/gpu={gpu(i)}" for i in (0, 1)]
    assert [(d.host_path, d.permissions) for d in row.devices] == [
        ("/dev/vfio/devices/vfio0", "rw"),
        ("/dev/vfio/devices/vfio1", "rw"),
    ]
    spec = render_spec(Kind.GPU, world.host.observe().devices, iommufd=True) or ""
    assert '"kind": "cgpu.kata-gpu.dev/gpu"' in spec
    assert f'"name": "{gpu(0)}"' in spec
    channel.close()


@pytest.mark.parametrize("device", [gpu(3), "gpu-0000-ff-00-0"])
def test_allocate_refuses_what_must_not_be_used(world: World, plugin: DevicePlugin, device: str) -> None:
    tell(plugin, world, {address(3): Unfit(code="device-dead")})
    channel, client = stub(world)
    request = pb.AllocateRequest(container_requests=[pb.ContainerAllocateRequest(devices_ids=[device])])
    with pytest.raises(grpc.RpcError) as caught:
        client.Allocate(request, timeout=5)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    channel.close()


def test_kubelet_restart_removes_all_sockets_and_registers_again(world: World, plugin: DevicePlugin) -> None:
    world.kubelet.stop()
    for path in (world.root / "device-plugins").iterdir():
        path.unlink()
    assert not plugin.heal()
    world.kubelet.serve_pod_resources()
    assert plugin.heal()
    assert world.kubelet.device_plugins == [("cgpu.kata-gpu.dev/gpu", "cgpu-gpu.sock")] * 2
    channel, client = stub(world)
    assert len(next(client.ListAndWatch(pb.Empty())).devices) == 8
    channel.close()


def test_a_board_in_ppcie_mode_is_not_given_away_in_parts(world: World, plugin: DevicePlugin) -> None:
    world.host.__init__(gpus=2, switches=1, mode=CcMode.PPCIE)  # type: ignore[misc]
    tell(plugin, world)
    channel, client = stub(world)
    assert {d.health for d in next(client.ListAndWatch(pb.Empty())).devices} == {"Unhealthy"}
    channel.close()


# beside NVIDIA's driver


def test_the_loop_beside_nvidia_marks_publishes_and_cleans_up(world: World) -> None:
    policy = NodePolicy.everything(CcMode.OFF)
    beside = NvidiaMode(
        world.host, RealHost(), world.kube, node=NODE, kubelet_root=world.root,  # type: ignore[arg-type]
        served=world.companion(), policy=lambda: policy,
    )  # fmt: skip
    nvidia_socket(world.root)
    nvidia_slice(world, [0, 1])
    world.host.modes[address(1)] = CcMode.OFF
    beside.start()
    picture = beside.step(NOW)
    assert rules(world) == {"gpu-vfio-0": "cc-mode-on"}
    assert [o.device.name for o in picture.offers if o.unfit] == [gpu(i) for i in range(8) if i != 1]
    assert "gpu-0000-17-00-0 is on" in picture.problems["policy"]
    assert "modes are not changed beside NVIDIA's DRA driver" in condition(world)["message"]
    registered = beside.registered
    world.kubelet.scan()
    assert (registered, beside.registered) == (False, True)
    (companions,) = world.api.store.list(SLICES, fields=f"spec.driver={COMPANION}")[0]
    assert len(companions["spec"]["devices"]) == 2
    before = world.api.store.version
    beside.step(NOW)
    assert world.api.store.version == before
    (world.root / NVIDIA_SOCKET).unlink()
    with pytest.raises(Misconfigured, match="not on this node"):
        beside.step(NOW)
    assert rules(world) == {}
    assert world.api.store.list(SLICES, fields=f"spec.driver={COMPANION}")[0][0]["spec"]["devices"] == []


def condition(world: World) -> dict[str, Any]:
    rows = world.api.store.get(NODES, "", NODE)["status"]["conditions"]
    return next(c for c in rows if c["type"] == CONDITION)


def test_companions_hand_nothing_over(world: World) -> None:
    ref = world.claim(gpu(0), mode=None, driver=COMPANION)
    claims = CompanionClaims(world.kube, NODE)
    (device,) = claims.prepare(ref, Deadline.after(10))
    assert (device.device, device.cdi_id) == (gpu(0), "")
    claims.unprepare(ref.uid, Deadline.after(10))
    assert world.api.store.get(CLAIMS, "default", ref.name)["metadata"]["uid"] == ref.uid


def test_what_their_driver_must_not_touch(world: World) -> None:
    world.host.modes |= {address(0): CcMode.OFF, address(1): CcMode.DEVTOOLS}
    found = unfit_for_nvidia(world.host.observe())
    assert address(0) not in found
    assert found[address(1)] == "cc-mode-on"
    assert KINDS["resource.k8s.io/v1beta2", "devicetaintrules"].kind == "DeviceTaintRule"
