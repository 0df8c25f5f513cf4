"""What kubelet says that pods hold: every form of id, and the question itself over a real socket."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from kata_gpu.cli import world as cli_world
from kata_gpu.cli.kubelet import list_allocations
from kata_gpu.core.allocations import Allocation, allocated_devices
from kata_gpu.dra._pb import podresources_v1_pb2 as pb
from kata_gpu.dra._pb import podresources_v1_pb2_grpc as rpc
from kata_gpu.errors import InUse, Unavailable
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import hgx_h100
from kata_gpu.ops import setup
from kata_gpu.ops.observe import observe


@pytest.mark.parametrize(
    ("resource", "device_id", "means"),
    [
        ("cgpu.kata-gpu.dev", "cgpu.kata-gpu.dev/claim=1f0e-gpu-0000-17-00-0", True),
        ("cgpu.kata-gpu.dev/gpu", "gpu-0000-17-00-0", True),
        ("nvidia.com/pgpu", "0000:17:00.0", True),
        ("nvidia.com/pgpu", "vfio3", True),
        ("nvidia.com/pgpu", "1", True),
        ("nvidia.com/pgpu", "11", False),
        ("nvidia.com/pgpu", "vfio33", False),
        ("cgpu.kata-gpu.dev", "cgpu.kata-gpu.dev/claim=1f0e-gpu-0000-3d-00-0", False),
        ("example.com/nic", "1", False),
    ],
)
def test_ids_of_every_plugin(resource: str, device_id: str, means: bool) -> None:
    inventory = observe(SimKernel(hgx_h100(gpus=1, switches=0)))
    gpu = inventory.devices[0]
    gpu = replace(gpu, function=replace(gpu.function, vfio_cdev="vfio3"))
    allocations = [Allocation(pod="a/b", resource=resource, device_id=device_id)]
    found = allocated_devices(allocations, replace(inventory, devices=(gpu,)))
    assert found == ({gpu.function.address: "a/b"} if means else {})


class Kubelet(rpc.PodResourcesListerServicer):
    """Answers `List` with one pod of each kind, or with an error."""

    error: grpc.StatusCode | None = None
    empty = False

    def List(self, request: Any, context: Any) -> Any:
        del request
        if self.error is not None:
            context.abort(self.error, "no")
        if self.empty:
            return pb.ListPodResourcesResponse()
        plugin = pb.ContainerDevices(resource_name="nvidia.com/pgpu", device_ids=["1"])
        claim = pb.ClaimResource(driver_name="cgpu.kata-gpu.dev", cdi_devices=[pb.CDIDevice(name="k=u-gpu-x")])
        container = pb.ContainerResources(
            devices=[plugin], dynamic_resources=[pb.DynamicResource(claim_resources=[claim])]
        )
        return pb.ListPodResourcesResponse(
            pod_resources=[pb.PodResources(name="p", namespace="n", containers=[container])]
        )

    def Get(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, str(request))

    def GetAllocatableResources(self, request: Any, context: Any) -> Any:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, str(request))


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    """A kubelet on tmp_path/kubelet.sock."""
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = Kubelet()
    rpc.add_PodResourcesListerServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{tmp_path / 'kubelet.sock'}")
    server.start()
    yield servicer
    server.stop(None).wait()


def test_list_over_a_socket(kubelet: Kubelet, tmp_path: Path) -> None:
    assert list_allocations(tmp_path / "kubelet.sock") == [
        Allocation(pod="n/p", resource="nvidia.com/pgpu", device_id="1"),
        Allocation(pod="n/p", resource="cgpu.kata-gpu.dev", device_id="k=u-gpu-x"),
    ]
    assert kubelet.error is None


def test_commands_ask_kubelet_at_every_check(kubelet: Kubelet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wired as a command is: kubelet answers with IOMMU group 1 of a resource of ours, and the release is refused."""
    socket, file = tmp_path / "kubelet.sock", tmp_path / "host.sim"
    monkeypatch.setattr(cli_world, "POD_RESOURCES", socket)
    machine = hgx_h100(gpus=1, switches=0)
    machine.functions["0000:17:00.0"].group = 1
    machine.nodes[str(socket)] = "socket"
    kernel = SimKernel.create(machine, file)
    gpu = observe(kernel).devices[0].function.address
    node = cli_world.open_node(sim=file, state_dir=None, cdi_dir=None)
    kubelet.empty = True
    setup.bind(node, [gpu])
    kubelet.empty = False
    with pytest.raises(InUse, match="kubelet's allocation of pod n/p"):
        setup.release(node, [gpu])
    kubelet.error = grpc.StatusCode.INTERNAL
    with pytest.raises(Unavailable, match="kubelet does not list pod resources"):
        setup.release(node, [gpu])
    kubelet.error, kubelet.empty = None, True
    setup.release(node, [gpu])
    assert cli_world.open_node(sim=file, state_dir=None, cdi_dir=None, guarded=False).allocated is None


def test_an_error_is_not_nothing(kubelet: Kubelet, tmp_path: Path) -> None:
    kubelet.error = grpc.StatusCode.INTERNAL
    with pytest.raises(Unavailable):
        list_allocations(tmp_path / "kubelet.sock")


def test_a_socket_without_kubelet_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert list_allocations(tmp_path / "nobody.sock") == []
    assert "only open files tell" in capsys.readouterr().err
