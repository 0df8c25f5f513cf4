"""PodResources bridge: dra.md 7, behaviours 91 to 96, with Kata's own reading of the answer."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from kata_gpu.core.claim import DRIVER
from kata_gpu.core.podresources import parse_cdi_name
from kata_gpu.dra._pb import podresources_v1_pb2 as pb
from kata_gpu.dra._pb import podresources_v1_pb2_grpc as rpc
from kata_gpu.dra.bridge import MAX_MESSAGE, Bridge, promised_by
from kata_gpu.dra.socket import UnixServer
from kata_gpu.errors import Malformed
from tests.kata_gpu.dra.fake_kubelet import ClaimKey, FakeKubelet, PreparedClaim
from tests.kata_gpu.dra.world import World, gpu, key, numbered

Serve = Callable[..., Path]


@pytest.fixture
def serve(world: World) -> Iterator[Serve]:
    """Start a bridge before the world's kubelet; returns its socket."""
    running: list[tuple[UnixServer, Bridge]] = []

    def start(allowed: frozenset[str] = frozenset({DRIVER})) -> Path:
        bridge = Bridge(world.kubelet.pod_resources_socket, allowed, promised_by(world.store.load))
        server = UnixServer(world.root / "bridge.sock", bridge.register, workers=4)
        server.start()
        running.append((server, bridge))
        return server.path

    yield start
    for server, bridge in running:
        server.stop(0)
        bridge.close()


def ask(path: Path, pod: str = "pod-1-0", namespace: str = "default", *, timeout: float = 5) -> Any:
    """`Get`, with Kata's receive limit."""
    with grpc.insecure_channel(f"unix:{path}", options=(("grpc.max_receive_message_length", MAX_MESSAGE),)) as channel:
        request = pb.GetPodResourcesRequest(pod_name=pod, pod_namespace=namespace)
        return rpc.PodResourcesListerStub(channel).Get(request, timeout=timeout).pod_resources


def kata_names(pod: Any) -> list[str]:
    """What Kata makes of it: resource name, `=`, device id, over `devices` only."""
    return [f"{d.resource_name}={i}" for c in pod.containers for d in c.devices for i in d.device_ids]


def running_pod(world: World, *devices: str) -> list[str]:
    """A pod with one claim, prepared through the driver as kubelet does it."""
    world.serve()
    world.kubelet.scan()
    ref = world.claim(*devices)
    ids = world.kubelet.prepare("pod-1-0", [key(ref)], DRIVER)
    world.kubelet.pods["default", "pod-1-0"] = {"main": [ref.uid], "side": [ref.uid]}
    return ids


@numbered("dra-091")
def test_claims_become_devices_once_and_device_plugins_pass(world: World, serve: Serve, case: None) -> None:
    ids = running_pod(world, gpu(0), gpu(1))
    world.kubelet.extra_devices["default", "pod-1-0"] = {"main": [("nvidia.com/pgpu", ["7"])]}
    world.kubelet.serve_pod_resources()
    names = kata_names(ask(serve()))
    assert names == ["nvidia.com/pgpu=7", *ids]
    for name in ids:
        kind, device = parse_cdi_name(name)
        assert f"{kind}={device}" == name


@numbered("dra-092")
def test_only_allowed_drivers_are_translated(world: World, serve: Serve, case: None) -> None:
    ids = running_pod(world, gpu(0))
    other = PreparedClaim(ClaimKey("default", "nic", "nic-uid"), prepared=True)
    other.devices = [("nic.example.com", "p", "nic0", ("example.com/nic=nic0",))]
    world.kubelet.claims["nic-uid"] = other
    world.kubelet.pods["default", "pod-1-0"]["main"].append("nic-uid")
    world.kubelet.serve_pod_resources()
    assert kata_names(ask(serve())) == ids


@numbered("dra-093")
def test_kubelets_error_code_is_passed_on(world: World, serve: Serve, case: None) -> None:
    world.kubelet.serve_pod_resources()
    with pytest.raises(grpc.RpcError) as caught:
        ask(serve(), pod="unknown")
    assert caught.value.code() is grpc.StatusCode.UNKNOWN  # as kubelet answers
    assert "unknown" in str(caught.value.details())


@numbered("dra-094")
def test_without_kubelet_unavailable_at_once_and_recovery_without_restart(
    world: World, serve: Serve, case: None
) -> None:
    ids = running_pod(world, gpu(0))
    path = serve()
    before = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        ask(path)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert time.monotonic() - before < 2
    world.kubelet.serve_pod_resources()
    for _ in range(60):
        try:
            assert kata_names(ask(path)) == ids
            break
        except grpc.RpcError:
            time.sleep(0.05)
    else:
        pytest.fail("the bridge did not find kubelet again")


@numbered("dra-094-not-listed")
def test_a_prepared_device_that_kubelet_does_not_list_refuses(world: World, serve: Serve, case: None) -> None:
    running_pod(world, gpu(0))
    world.kubelet.pods["default", "pod-1-0"] = {"main": []}  # the gate for dynamic resources is off
    world.kubelet.serve_pod_resources()
    with pytest.raises(grpc.RpcError) as caught:
        ask(serve())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "claim-not-listed" in str(caught.value.details())


@numbered("dra-094-second-pod")
def test_a_second_pod_of_a_claim_gets_no_vm(world: World, serve: Serve, case: None) -> None:
    """It joined after the driver had looked, and kubelet does not call the driver for it."""
    ids = running_pod(world, gpu(0))
    (claim,) = world.kubelet.claims.values()
    assert world.kubelet.prepare("pod-1-1", [claim.key], DRIVER) == ids
    world.kubelet.pods["default", "pod-1-1"] = {"main": [claim.key.uid]}
    world.kubelet.serve_pod_resources()
    path = serve()
    assert kata_names(ask(path)) == ids
    with pytest.raises(grpc.RpcError) as caught:
        ask(path, pod="pod-1-1")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "claim-of-another-pod" in str(caught.value.details())


@numbered("dra-094-no-id")
def test_a_claimed_device_without_an_id_refuses(world: World, serve: Serve, case: None) -> None:
    running_pod(world, gpu(0))
    (claim,) = world.kubelet.claims.values()
    claim.devices = [(DRIVER, "node-a", gpu(0), ())]
    world.kubelet.serve_pod_resources()
    with pytest.raises(grpc.RpcError) as caught:
        ask(serve())
    assert "claim-without-device" in str(caught.value.details())


@numbered("dra-094-checkpoint")
def test_an_unreadable_checkpoint_refuses(world: World, serve: Serve, case: None) -> None:
    running_pod(world, gpu(0))
    world.kubelet.serve_pod_resources()
    (world.root / "plugins" / DRIVER / "checkpoint.json").write_bytes(b"?")
    with pytest.raises(grpc.RpcError) as caught:
        ask(serve())
    assert "checkpoint-json" in str(caught.value.details())


@numbered("dra-095")
def test_a_killed_bridge_leaves_its_socket_and_sandboxes_fail(world: World, case: None, tmp_path: Path) -> None:
    path = world.root / "b.sock"
    command = [sys.executable, "-c", "from kata_gpu.cli.main import main; main()", "bridge", "run", "--socket", str(path),
               "--kubelet-root", str(world.root)]  # fmt: skip
    running_pod(world, gpu(0))
    world.kubelet.serve_pod_resources()
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if path.is_socket():
                break
            time.sleep(0.05)
        assert len(kata_names(ask(path))) == 1
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert path.is_socket()
    with pytest.raises(grpc.RpcError) as caught:
        ask(path)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@numbered("dra-095-clean-stop")
def test_a_clean_stop_leaves_the_socket_too(world: World, case: None) -> None:
    bridge = Bridge(world.kubelet.pod_resources_socket, frozenset({DRIVER}), promised_by(world.store.load))
    server = UnixServer(world.root / "b.sock", bridge.register, workers=1)
    server.start()
    server.stop(0)
    bridge.close()
    assert server.path.is_socket()
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(server.path))


@numbered("dra-096")
def test_200_pods_with_8_devices(world: World, serve: Serve, case: None) -> None:
    kubelet: FakeKubelet = world.kubelet
    for index in range(200):
        uid = f"uid-{index}"
        claim = PreparedClaim(ClaimKey("default", f"c{index}", uid), prepared=True)
        claim.devices = [(DRIVER, "node-a", f"d{n}", (f"cgpu.kata-gpu.dev/claim={uid}-d{n}",)) for n in range(8)]
        kubelet.claims[uid] = claim
        kubelet.pods["default", f"p{index}"] = {"main": [uid]}
    kubelet.serve_pod_resources()
    path = serve()
    taken = []
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stub = rpc.PodResourcesListerStub(channel)
        for index in range(200):
            before = time.perf_counter()
            response = stub.Get(pb.GetPodResourcesRequest(pod_name=f"p{index}", pod_namespace="default"), timeout=5)
            taken.append(time.perf_counter() - before)
            assert len(kata_names(response.pod_resources)) == 8
        size = stub.List(pb.ListPodResourcesRequest(), timeout=5).ByteSize()
    assert sorted(taken)[197] < 0.05
    assert size < MAX_MESSAGE


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, id=f"dra-082-{i}")
        for i, n in enumerate(("", "a/b", "a/b=", "=x", "a=b", "1a/b=c", "a/b=c=d", "a/b=c ", "a/b=-c", "a/b=c-"))
    ],
)
def test_names_that_kata_could_not_resolve_are_refused(name: str) -> None:
    with pytest.raises(Malformed):
        parse_cdi_name(name)
