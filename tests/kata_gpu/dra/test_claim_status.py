"""`status.devices`: told once, after the fact, and needed by nobody (dra.md 2.3, 2.6, 6.2)."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kata_gpu.core.claim import DRIVER
from kata_gpu.core.claim_status import MAX_DATA, render_claim_status
from kata_gpu.core.gpu import CcMode
from kata_gpu.ops.claim_status import ClaimStatus
from tests.kata_gpu.dra.fake_node import NOW
from tests.kata_gpu.dra.test_agent import Loop
from tests.kata_gpu.dra.world import CLAIMS, NODE, World, address, gpu

AT = "2026-11-21T00:00:00Z"


def told(world: World, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = world.api.store.get(CLAIMS, "default", name)["status"].get("devices") or []
    return rows


def run(world: World, status: ClaimStatus) -> int:
    return status.run(world.store.load(), world.host.observe(), NOW)


def conditions(row: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in row["conditions"]}


@pytest.mark.envtest
def test_a_prepared_claim_says_what_it_has(world: World) -> None:
    ref, waiting = world.claim(gpu(0), gpu(1)), world.claim(gpu(2))
    world.prepare(ref)
    status = ClaimStatus(world.kube)
    assert [run(world, status) for _ in range(3)] == [1, 0, 0]
    first, second = told(world, ref.name)
    assert (first["driver"], first["pool"], first["device"], second["device"]) == (DRIVER, NODE, gpu(0), gpu(1))
    assert first["data"] == {"bdf": [address(0)], "ccMode": "on", "vfio": ["/dev/vfio/devices/vfio0"]}
    assert conditions(first) == {"Ready": ("True", "Prepared"), "ConfidentialMode": ("True", "On")}
    assert {c["lastTransitionTime"] for c in first["conditions"]} == {AT}
    assert told(world, waiting.name) == []


@pytest.mark.envtest
def test_a_restart_changes_no_object_and_the_allocation_stays(world: World) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    run(world, ClaimStatus(world.kube))
    before = world.api.store.get(CLAIMS, "default", ref.name)
    run(world, ClaimStatus(world.kube))
    assert (
        world.api.store.get(CLAIMS, "default", ref.name)["metadata"]["resourceVersion"]
        == (before["metadata"]["resourceVersion"])
    )
    assert before["status"]["allocation"]["devices"]["results"][0]["device"] == gpu(0)


@pytest.mark.envtest
def test_what_changes_is_said_once_with_its_time(world: World) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    status = ClaimStatus(world.kube)
    run(world, status)
    world.host.remove(address(0))
    later = NOW + timedelta(hours=1)
    assert [status.run(world.store.load(), world.host.observe(), later) for _ in range(2)] == [1, 0]
    (row,) = told(world, ref.name)
    assert conditions(row) == {"Ready": ("False", "DeviceGone"), "ConfidentialMode": ("Unknown", "Unreadable")}
    assert {c["lastTransitionTime"] for c in row["conditions"]} == {"2026-11-21T01:00:00Z"}
    world.unprepare(ref)
    assert run(world, status) == 0


@pytest.mark.envtest
@pytest.mark.parametrize("again", [False, True], ids=["gone", "replaced"])
def test_a_claim_that_is_gone_is_nobody_to_tell(world: World, again: bool) -> None:
    ref = world.claim(gpu(0), name="same")
    world.prepare(ref)
    world.forget(ref)
    if again:
        world.claim(gpu(1), name="same")
    status = ClaimStatus(world.kube)
    assert [run(world, status) for _ in range(2)] == [0, 0]
    if again:
        assert told(world, "same") == []


def test_a_refusal_touches_neither_prepare_nor_the_nodes_readiness(world: World) -> None:
    loop = Loop(world)
    loop.step()
    refs = [world.claim(gpu(0)), world.claim(gpu(1))]
    for ref in refs:
        world.prepare(ref)
    world.api.fail_next(403, resource="resourceclaims")
    picture = loop.step()
    assert list(picture.problems) == ["status"]
    assert loop.condition() == ("True", "Ready")
    assert [len(told(world, r.name)) for r in refs] == [0, 1]
    world.unprepare(refs[0])
    assert loop.step(minutes=1).problems == {}


MODES = [
    (CcMode.ON, ("True", "On")),
    (CcMode.PPCIE, ("True", "Ppcie")),
    (CcMode.DEVTOOLS, ("False", "Devtools")),
    (CcMode.OFF, ("False", "Off")),
    (None, ("Unknown", "Unreadable")),
]


@pytest.mark.parametrize(("mode", "expected"), MODES)
def test_only_a_protected_mode_is_called_confidential(
    world: World, mode: CcMode | None, expected: tuple[str, str]
) -> None:
    world.prepare(world.claim(gpu(0)))
    world.host.modes[address(0)] = mode
    (entry,) = world.store.load().claims
    body = render_claim_status(entry, world.host.observe(), NOW)
    assert body is not None
    assert conditions(body["status"]["devices"][0])["ConfidentialMode"] == expected


def test_admin_access_is_not_mentioned(world: World) -> None:
    world.prepare(world.claim(gpu(0), adminAccess=True))
    (entry,) = world.store.load().claims
    assert render_claim_status(entry, world.host.observe(), NOW) is None


def test_data_stays_within_its_bound(world: World) -> None:
    world.prepare(world.claim(gpu(0)))
    (entry,) = world.store.load().claims
    many = replace(entry.devices[0], addresses=tuple(f"{i:04x}:00:00.0" for i in range(800)), share_id="s")
    body = render_claim_status(replace(entry, devices=(many,)), world.host.observe(), NOW)
    assert body is not None
    (row,) = body["status"]["devices"]
    assert "data" not in row
    assert row["shareID"] == "s"
    assert len(json.dumps(list(many.addresses))) > MAX_DATA
