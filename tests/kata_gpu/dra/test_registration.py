"""Registration and sockets: dra.md 7, behaviours 1 to 13."""

import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from kata_gpu.core.claim import DRIVER
from kata_gpu.dra._pb import registration_v1_pb2, registration_v1_pb2_grpc
from kata_gpu.dra.server import PluginPaths
from kata_gpu.dra.socket import UnixServer
from kata_gpu.errors import InUse, Misconfigured
from kata_gpu.ops.deadline import Deadline
from tests.kata_gpu.dra.fake_kubelet import GET_INFO_S, call
from tests.kata_gpu.dra.world import World, address, gpu, key, numbered


def get_info(socket: Path) -> Any:
    """GetInfo, with kubelet's deadline."""
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        stub = registration_v1_pb2_grpc.RegistrationStub(channel)
        return stub.GetInfo(registration_v1_pb2.InfoRequest(), timeout=GET_INFO_S)


@numbered("dra-001")
def test_get_info_names_type_driver_endpoint_and_versions(world: World, case: None) -> None:
    world.serve()
    info = get_info(world.root / "plugins_registry" / f"{DRIVER}-reg.sock")
    assert (info.type, info.name) == ("DRAPlugin", DRIVER)
    assert info.endpoint == str(world.root / "plugins" / DRIVER / "dra.sock")
    assert list(info.supported_versions) == ["v1.DRAPlugin", "v1beta1.DRAPlugin", "v1alpha1.DRAResourceHealth"]


@numbered("dra-002")
def test_get_info_answers_while_prepare_blocks(world: World, case: None) -> None:
    class Stuck:
        started, go_on = threading.Event(), threading.Event()

        def prepare(self, ref: Any, deadline: Deadline) -> tuple[()]:
            self.started.set()
            assert self.go_on.wait(20)
            return ()

        def unprepare(self, uid: str, deadline: Deadline) -> None:
            raise AssertionError

    stuck = Stuck()
    world.serve(preparer=stuck)
    world.kubelet.scan()
    waiting = threading.Thread(target=world.kubelet.prepare, args=("pod", [key(world.claim(gpu(0)))], DRIVER))
    waiting.start()
    assert stuck.started.wait(5)
    slowest = 0.0
    for _ in range(5):
        before = time.monotonic()
        get_info(world.root / "plugins_registry" / f"{DRIVER}-reg.sock")
        slowest = max(slowest, time.monotonic() - before)
    stuck.go_on.set()
    waiting.join(10)
    assert slowest < 0.2


@numbered("dra-003")
def test_a_refused_registration_is_shown_and_we_keep_serving(world: World, case: None) -> None:
    server = world.serve()
    world.kubelet.notify(world.root / "plugins_registry" / f"{DRIVER}-reg.sock", False, "x")
    assert (server.registered.ok, server.registered.error) == (False, "x")
    world.kubelet.scan()
    assert server.registered.ok
    assert DRIVER in world.kubelet.plugins


@numbered("dra-004")
def test_dra_socket_accepts_before_the_registrar_socket_exists(
    world: World, case: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = []
    start = UnixServer.start

    def spy(self: UnixServer) -> None:
        start(self)
        order.append(self.path.name)

    monkeypatch.setattr(UnixServer, "start", spy)
    world.serve()
    assert order == ["dra.sock", f"{DRIVER}-reg.sock"]


@numbered("dra-005")
def test_stale_sockets_of_a_killed_process_are_replaced(world: World, case: None) -> None:
    import socket

    for path in (world.root / "plugins" / DRIVER / "dra.sock", world.root / "plugins_registry" / f"{DRIVER}-reg.sock"):
        path.parent.mkdir(parents=True, exist_ok=True)
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(path))
        stale.close()
    world.serve()
    world.kubelet.scan()
    assert DRIVER in world.kubelet.plugins


@numbered("dra-006")
def test_a_second_instance_is_refused_and_the_first_keeps_its_sockets(world: World, case: None) -> None:
    world.serve()
    world.kubelet.scan()
    with pytest.raises(InUse, match="another instance"):
        world.serve()
    world.kubelet.monitor()
    assert DRIVER in world.kubelet.plugins
    assert world.kubelet.prepare("pod", [key(world.claim(gpu(0)))], DRIVER)


@pytest.mark.parametrize("which", [pytest.param("reg", id="dra-007-registrar"), pytest.param("dra", id="dra-007-dra")])
def test_a_socket_deleted_from_outside_comes_back(world: World, which: str) -> None:
    server = world.serve()
    world.kubelet.scan()
    path = {
        "reg": world.root / "plugins_registry" / f"{DRIVER}-reg.sock",
        "dra": world.root / "plugins" / DRIVER / "dra.sock",
    }[which]
    path.unlink()
    assert server.heal()
    assert not server.heal()
    world.kubelet.monitor()
    assert world.kubelet.prepare("pod", [key(world.claim(gpu(0)))], DRIVER)


@numbered("dra-008")
def test_a_registry_that_was_removed_and_created_again_registers_again(world: World, case: None) -> None:
    server = world.serve()
    world.kubelet.scan()
    for path in world.kubelet.registry.iterdir():
        path.unlink()
    world.kubelet.registry.rmdir()
    world.kubelet.scan()
    assert not world.kubelet.plugins
    world.kubelet.registry.mkdir()
    assert server.heal()
    world.kubelet.scan()
    assert DRIVER in world.kubelet.plugins


@numbered("dra-009")
def test_stop_removes_own_sockets_only(world: World, case: None) -> None:
    world.serve()
    foreign = world.kubelet.registry / "other-reg.sock"
    foreign.write_text("")
    before = world.api.store.requests["delete", "resourceslices"]
    world.stop_all()
    assert [p.name for p in world.kubelet.registry.iterdir()] == ["other-reg.sock"]
    assert not (world.root / "plugins" / DRIVER / "dra.sock").exists()
    assert world.api.store.requests["delete", "resourceslices"] == before


@numbered("dra-010")
def test_two_instances_answer_alike_and_the_old_one_leaves_the_new_ones_sockets(world: World, case: None) -> None:
    old, new = "0000aaaa", "0000bbbb"
    first = world.serve(instance=old)
    world.serve(instance=new)
    world.kubelet.scan()
    assert len(world.kubelet.plugins[DRIVER]) == 2
    ref = key(world.claim(gpu(0)))
    endpoints = [p.endpoint for p in world.kubelet.plugins[DRIVER]]
    answers = [call(e, "v1.DRAPlugin", "NodePrepareResources", [ref]) for e in endpoints]
    assert answers[0] == answers[1]
    first.stop()
    assert [p.name for p in world.kubelet.registry.iterdir()] == [f"{DRIVER}-{new}-reg.sock"]
    world.kubelet.scan()
    assert world.kubelet.prepare("pod", [ref], DRIVER)


@numbered("dra-011")
def test_an_impossible_socket_path_is_refused_naming_the_limit(tmp_path: Path, case: None) -> None:
    uid = "5f0c8f8e-0000-4000-8000-000000000001"
    PluginPaths(kubelet_root=Path("/var/lib/kubelet"), driver="d" * 27, instance=uid).check()
    with pytest.raises(Misconfigured, match="107 bytes") as caught:
        PluginPaths(kubelet_root=Path("/var/lib/kubelet"), driver="d" * 28, instance=uid).check()
    assert "27 characters" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "share"),
    [
        pytest.param("v1.DRAPlugin", "s-1", id="dra-012-v1"),
        pytest.param("v1beta1.DRAPlugin", None, id="dra-012-v1beta1-no-share-id"),
    ],
)
def test_both_versions_answer(world: World, version: str, share: str | None) -> None:
    world.serve()
    ref = world.claim(gpu(0), shareID="s-1")
    endpoint = str(world.root / "plugins" / DRIVER / "dra.sock")
    device = call(endpoint, version, "NodePrepareResources", [key(ref)]).claims[ref.uid].devices[0]
    assert device.device_name == gpu(0)
    assert getattr(device, "share_id", None) == share
    assert call(endpoint, version, "NodeUnprepareResources", [key(ref)]).claims[ref.uid].error == ""


@numbered("dra-013")
def test_kubelet_restart_registers_again_without_touching_hardware(world: World, case: None) -> None:
    world.serve()
    world.kubelet.scan()
    ref = world.claim(gpu(0))
    first = world.kubelet.prepare("pod", [key(ref)], DRIVER)
    world.host.writes.clear()
    world.kubelet.restart()
    assert DRIVER in world.kubelet.plugins
    assert world.kubelet.prepare("pod", [key(ref)], DRIVER) == first
    assert world.host.writes == []
    assert address(0) not in world.host.open_by
