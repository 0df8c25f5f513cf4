"""Health stream: dra.md 7, behaviours 87 to 90."""

import time
from itertools import islice
from typing import Any

import pytest

from kata_gpu.core.claim import DRIVER
from kata_gpu.dra._pb import dra_health_v1alpha1_pb2 as pb
from kata_gpu.dra.health import MAX_MESSAGE, REFRESH_S, TIMEOUT_S, DeviceHealth, Health, cut
from kata_gpu.dra.server import PluginPaths, PluginServer
from kata_gpu.dra.service import DraService
from tests.kata_gpu.dra.fake_node import NOW
from tests.kata_gpu.dra.world import NODE, World, numbered

GOOD = DeviceHealth(device="gpu-a", healthy=True)
BAD = DeviceHealth(device="gpu-b", healthy=False, message="config space reads ffff")
LOST = DeviceHealth(device="gpu-c", healthy=None)


@pytest.fixture
def health(world: World) -> Health:
    """Served, registered, with three devices, refreshing every 50 ms."""
    made = Health(NODE, lambda: NOW, refresh_s=0.05)
    made.update((GOOD, BAD, LOST))
    server = PluginServer(
        PluginPaths(kubelet_root=world.root, driver=DRIVER), DraService(world.preparer(), world.calls), made
    )
    server.start()
    world.servers.append(server)
    world.kubelet.scan()
    return made


def states(message: Any) -> dict[str, int]:
    return {d.device.device_name: d.health for d in message.devices}


ALL = {"gpu-a": pb.HEALTHY, "gpu-b": pb.UNHEALTHY, "gpu-c": pb.UNKNOWN}


@numbered("dra-087")
def test_every_message_is_the_complete_list(world: World, health: Health, case: None) -> None:
    channel, stream = world.kubelet.watch_health(DRIVER)
    assert states(next(stream)) == ALL
    health.update((GOOD, LOST))
    for message in islice(stream, 10):
        if len(message.devices) == 2:
            break
    assert states(message) == {"gpu-a": pb.HEALTHY, "gpu-c": pb.UNKNOWN}
    channel.close()


@numbered("dra-088")
def test_it_is_refreshed_without_changes(world: World, health: Health, case: None) -> None:
    channel, stream = world.kubelet.watch_health(DRIVER)
    messages = list(islice(stream, 4))
    assert [states(m) for m in messages] == [ALL] * 4
    assert REFRESH_S <= 15
    device = messages[0].devices[0]
    assert (device.health_check_timeout_seconds, device.last_updated_time) == (TIMEOUT_S, int(NOW.timestamp()))
    assert device.device.pool_name == NODE
    channel.close()


@numbered("dra-089")
def test_a_closed_stream_leaves_no_thread_and_the_next_gets_the_full_list(
    world: World, health: Health, case: None
) -> None:
    for _ in range(6):  # more than may be open at once
        channel, stream = world.kubelet.watch_health(DRIVER)
        assert states(next(stream)) == ALL
        channel.close()
        until = time.monotonic() + 5
        while health.streams and time.monotonic() < until:
            time.sleep(0.01)
        assert health.streams == 0


@pytest.mark.parametrize(
    "message",
    [
        pytest.param("x" * 1025, id="dra-090-ascii"),
        pytest.param("é" * 600, id="dra-090-two-bytes"),
        pytest.param("a" + "\N{SNOWMAN}" * 400, id="dra-090-three-bytes"),
        pytest.param("short", id="dra-090-short"),
    ],
)
def test_messages_are_cut_between_characters(message: str) -> None:
    text = cut(message)
    assert len(text.encode()) <= MAX_MESSAGE
    assert message.startswith(text.removesuffix("..."))
    assert (text == message) == (len(message.encode()) <= MAX_MESSAGE)


@numbered("dra-089-shutdown")
def test_shutdown_ends_streams(world: World, health: Health, case: None) -> None:
    channel, stream = world.kubelet.watch_health(DRIVER)
    next(stream)
    before = time.monotonic()
    world.stop_all()
    assert time.monotonic() - before < 5
    channel.close()
