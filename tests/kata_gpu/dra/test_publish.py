"""ResourceSlice publisher: dra.md 7, behaviours 65 to 79. All run on a real API server where one is given."""

from dataclasses import replace
from typing import Any

import pytest

from kata_gpu.core.allocatable import allocatables
from kata_gpu.core.api_errors import Refused
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.slices import TAINT, Features, Unfit, _value, offers_of, plan_slices, render_pool
from kata_gpu.errors import Malformed, Unavailable
from kata_gpu.ops.publish import SlicePublisher
from tests.kata_gpu.dra.fake_node import FakeNode
from tests.kata_gpu.dra.world import NODE, NODES, SLICES, World, address, gpu, numbered

pytestmark = pytest.mark.envtest


def slices(world: World) -> list[dict[str, Any]]:
    """What the API server has for this node."""
    return world.api.store.list(SLICES, fields=f"spec.nodeName={NODE}")[0]


def publish(world: World, publisher: SlicePublisher, unfit: dict[str, Unfit] | None = None) -> int:
    """One sync from the node of now; the number of writes."""
    inventory = world.host.observe()
    return publisher.sync(inventory, offers_of(inventory, allocatables(inventory), unfit or {})).writes


@pytest.fixture
def publisher(world: World) -> SlicePublisher:
    return SlicePublisher(world.kube, NODE)


def devices(world: World) -> dict[str, dict[str, Any]]:
    return {d["name"]: d for s in slices(world) for d in s["spec"].get("devices", [])}


@numbered("dra-065")
def test_first_publish(world: World, publisher: SlicePublisher, case: None) -> None:
    assert publish(world, publisher) == 1
    (made,) = slices(world)
    node = world.api.store.get(NODES, "", NODE)
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": NODE, "uid": node["metadata"]["uid"], "controller": True}
    ]
    assert made["metadata"]["generateName"] == f"00000-{DRIVER}-{NODE}-"
    assert made["metadata"]["name"].startswith(f"00000-{DRIVER}-{NODE}-")
    assert made["spec"]["nodeName"] == NODE
    assert made["spec"]["pool"] == {"name": NODE, "generation": 1, "resourceSliceCount": 1}
    first = made["spec"]["devices"][0]
    assert first["name"] == gpu(0)
    assert first["attributes"]["ccMode"] == {"string": "on"}
    assert first["attributes"]["resource.kubernetes.io/pciBusID"] == {"string": address(0)}
    assert first["attributes"]["resource.kubernetes.io/pcieRoot"] == {"string": "pci0000:16"}
    assert first["attributes"]["resource.kubernetes.io/numaNode"] == {"int": 0}
    assert first["capacity"] == {"addressableMemory": {"value": str(1 << 37)}}


@numbered("dra-066")
def test_no_change_no_write(world: World, publisher: SlicePublisher, case: None) -> None:
    unfit = {address(1): Unfit(code="reset-failed")}
    publish(world, publisher, unfit)
    before = slices(world)
    assert [publish(world, publisher, unfit) for _ in range(10)] == [0] * 10
    assert slices(world) == before
    assert publish(world, SlicePublisher(world.kube, NODE), unfit) == 0  # also after a restart


@numbered("dra-067")
def test_one_change_is_one_update_of_the_same_generation(world: World, publisher: SlicePublisher, case: None) -> None:
    publish(world, publisher)
    world.host.modes[address(0)] = CcMode.OFF
    assert publish(world, publisher) == 1
    (made,) = slices(world)
    assert made["spec"]["pool"]["generation"] == 1
    assert devices(world)[gpu(0)]["attributes"]["ccMode"] == {"string": "off"}


@numbered("dra-067-new-generation")
def test_another_number_of_slices_is_a_new_generation(world: World, publisher: SlicePublisher, case: None) -> None:
    publish(world, publisher)
    big = FakeNode(gpus=0)
    for index in range(129):
        big.add(1 + index, group=index)
    world.host.functions, world.host.modes = big.functions, big.modes
    assert publish(world, publisher) == 2
    assert [s["spec"]["pool"] for s in slices(world)] == [{"name": NODE, "generation": 2, "resourceSliceCount": 2}] * 2
    assert publish(world, publisher) == 0


@numbered("dra-068")
def test_a_deleted_slice_comes_back(world: World, publisher: SlicePublisher, case: None) -> None:
    publish(world, publisher)
    world.api.store.delete_collection(SLICES, f"spec.nodeName={NODE}")
    assert publish(world, publisher) == 1
    assert len(devices(world)) == 8


@numbered("dra-069")
def test_an_edited_slice_is_restored_once(world: World, publisher: SlicePublisher, case: None) -> None:
    publish(world, publisher)
    (made,) = slices(world)
    made["spec"]["devices"][0]["attributes"]["ccMode"] = {"string": "off"}
    made["spec"]["devices"][1]["attributes"]["foreign"] = {"bool": True}
    world.api.store.replace(SLICES, "", made["metadata"]["name"], made)
    assert publish(world, publisher) == 1
    assert devices(world)[gpu(0)]["attributes"]["ccMode"] == {"string": "on"}
    assert "foreign" not in devices(world)[gpu(1)]["attributes"]
    assert publish(world, publisher) == 0


@numbered("dra-070")
def test_a_lost_race_is_read_again(world: World, publisher: SlicePublisher, case: None) -> None:
    publish(world, publisher)
    stale = slices(world)
    touched = slices(world)[0]
    touched["metadata"]["labels"] = {"by": "somebody"}
    world.api.store.replace(SLICES, "", touched["metadata"]["name"], touched)
    world.host.modes[address(0)] = CcMode.OFF
    inventory = world.host.observe()
    publisher.sync(inventory, offers_of(inventory, allocatables(inventory), {}), current=stale)
    assert devices(world)[gpu(0)]["attributes"]["ccMode"] == {"string": "off"}
    assert slices(world)[0]["metadata"]["labels"] == {"by": "somebody"}


@pytest.mark.parametrize("status", [pytest.param(403, id="dra-070-forbidden"), pytest.param(422, id="dra-070-invalid")])
def test_a_refusal_reaches_the_operator_and_prepare_still_works(
    world: World, publisher: SlicePublisher, status: int
) -> None:
    world.api.fail_next(status, resource="resourceslices", times=2)
    with pytest.raises(Refused) as caught:
        publish(world, publisher)
    assert caught.value.code == f"api-{status}"
    assert world.prepare(world.claim(gpu(0)))[0].device == gpu(0)


@pytest.mark.gates_closed
@numbered("dra-073")
def test_dropped_taints_are_noticed_and_the_device_left_out(
    world: World, publisher: SlicePublisher, case: None
) -> None:
    unfit = {address(3): Unfit(code="reset-failed")}
    publish(world, publisher, unfit)
    assert gpu(3) not in devices(world)
    assert len(devices(world)) == 7
    assert [publish(world, publisher, unfit) for _ in range(3)] == [0, 0, 0]


def many(count: int, *, tainted: bool) -> list[dict[str, Any]]:
    node = FakeNode(gpus=0)
    for index in range(count):
        node.add(1 + index, group=index)
    inventory = node.observe()
    unfit = {"0000:01:00.0": Unfit(code="x")} if tainted else {}
    return render_pool(inventory, offers_of(inventory, allocatables(inventory), unfit), node=NODE, features=Features())


@pytest.mark.parametrize(
    ("count", "tainted", "sizes"),
    [
        pytest.param(64, True, [64], id="dra-074-64-tainted"),
        pytest.param(65, True, [64, 1], id="dra-074-65-tainted"),
        pytest.param(128, False, [128], id="dra-074-128"),
        pytest.param(129, False, [128, 1], id="dra-074-129"),
        pytest.param(0, False, [0], id="dra-074-empty-pool"),
    ],
)
def test_split(count: int, tainted: bool, sizes: list[int]) -> None:
    specs = many(count, tainted=tainted)
    assert [len(s["devices"]) for s in specs] == sizes
    plan = plan_slices([], specs, pool=NODE, owner={"name": NODE, "uid": "u"}, settled={})
    assert [c["spec"]["pool"] for c in plan.creates] == [
        {"name": NODE, "generation": 1, "resourceSliceCount": len(sizes)}
    ] * len(sizes)


@numbered("dra-075")
def test_attribute_limits_hold_before_sending(world: World, case: None) -> None:
    inventory = world.host.observe()
    long = replace(inventory.devices[0], product="H" * 90)
    inventory = replace(inventory, devices=(long, *inventory.devices[1:]))
    offers = offers_of(inventory, allocatables(inventory), {})
    (spec,) = render_pool(inventory, offers, node=NODE, features=Features())
    for device in spec["devices"]:
        assert len(device["attributes"]) + len(device["capacity"]) <= 32
        for name, value in device["attributes"].items():
            assert len(name.rsplit("/", 1)[-1]) <= 32
            assert all(len(v) <= 64 for v in value.values() if isinstance(v, str))
    assert spec["devices"][0]["attributes"]["productName"] == {"string": "H" * 64}
    with pytest.raises(Malformed):
        _value("n" * 33, 1)


@numbered("dra-075-same-names-everywhere")
def test_every_device_has_the_same_attributes(world: World, case: None) -> None:
    world.host.__init__(gpus=2, switches=2, mode=CcMode.PPCIE)  # type: ignore[misc]
    inventory = world.host.observe()
    specs = render_pool(inventory, offers_of(inventory, allocatables(inventory), {}), node=NODE, features=Features())
    names = [
        {n for n in d["attributes"] if not n.startswith("resource.kubernetes.io/")}
        for s in specs
        for d in s.get("devices", [])
    ]
    assert len(names) == 5
    assert all(n == names[0] for n in names)


@numbered("dra-076")
def test_two_nodes_leave_each_other_alone(world: World, publisher: SlicePublisher, case: None) -> None:
    world.api.store.create(NODES, "", {"metadata": {"name": "node-b"}})
    other = SlicePublisher(world.kube, "node-b")
    publish(world, other)
    theirs = world.api.store.list(SLICES, fields="spec.nodeName=node-b")[0]
    publish(world, publisher)
    world.host.functions.clear()
    publish(world, publisher)
    assert world.api.store.list(SLICES, fields="spec.nodeName=node-b")[0] == theirs


@numbered("dra-077")
def test_a_node_object_created_again_becomes_the_owner(world: World, publisher: SlicePublisher, case: None) -> None:
    publish(world, publisher)
    world.api.store.delete(NODES, "", NODE)
    node = world.api.store.create(NODES, "", {"metadata": {"name": NODE}})
    assert publish(world, publisher) == 1
    assert slices(world)[0]["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"]
    assert publish(world, publisher) == 0


@numbered("dra-078")
def test_a_taint_keeps_its_time_and_goes_with_its_reason(world: World, publisher: SlicePublisher, case: None) -> None:
    unfit = {address(0): Unfit(code="device-dead", evict=True)}
    publish(world, publisher, unfit)
    (taint,) = devices(world)[gpu(0)]["taints"]
    assert (taint["key"], taint["value"], taint["effect"]) == (TAINT, "device-dead", "NoExecute")
    when = taint["timeAdded"]
    world.host.modes[address(5)] = CcMode.OFF
    assert publish(world, publisher, unfit) == 1
    assert devices(world)[gpu(0)]["taints"][0]["timeAdded"] == when
    assert publish(world, publisher) == 1
    assert "taints" not in devices(world)[gpu(0)]


@numbered("dra-079")
def test_hot_plug_changes_no_other_name(world: World, publisher: SlicePublisher, case: None) -> None:
    publish(world, publisher)
    before = set(devices(world))
    world.host.add(0x20, group=99)
    publish(world, publisher)
    assert set(devices(world)) == before | {"gpu-0000-20-00-0"}
    world.host.remove(address(4))
    publish(world, publisher)
    assert set(devices(world)) == (before | {"gpu-0000-20-00-0"}) - {gpu(4)}


@numbered("dra-073-counters")
def test_the_board_needs_counters(world: World, publisher: SlicePublisher, case: None) -> None:
    world.host.__init__(gpus=8, switches=4, mode=CcMode.PPCIE)  # type: ignore[misc]
    publish(world, publisher)
    shared, pool = slices(world)
    assert len(shared["spec"]["sharedCounters"][0]["counters"]) == 12
    group = devices(world)["ppcie-0"]
    assert len(group["consumesCounters"][0]["counters"]) == 12
    assert group["attributes"]["ppcieMode"] == {"string": "on"}
    assert pool["spec"]["pool"] == shared["spec"]["pool"]
    assert len(pool["spec"]["devices"]) == 13


@pytest.mark.gates_closed
@numbered("dra-073-no-counters")
def test_without_counters_the_board_is_not_offered(world: World, publisher: SlicePublisher, case: None) -> None:
    world.host.__init__(gpus=8, switches=4, mode=CcMode.PPCIE)  # type: ignore[misc]
    publish(world, publisher)
    assert len(devices(world)) == 12
    assert "ppcie-0" not in devices(world)
    assert {d["attributes"]["ppcieGroup"]["string"] for d in devices(world).values()} != {"none"}
    assert publish(world, publisher) == 0


@numbered("dra-071-publish-later")
def test_api_down_is_unavailable_and_the_next_sync_publishes(
    world: World, publisher: SlicePublisher, case: None
) -> None:
    world.api.go_down()
    with pytest.raises(Unavailable):
        publish(world, publisher)
    world.api.down = False
    assert publish(world, publisher) == 1
