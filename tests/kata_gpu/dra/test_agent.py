"""The agent: one loop over policy, devices, claims and API; and the whole as a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from kata_gpu.core.api_errors import Gone
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.claim_cdi import file_name
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.node_policy import Drain, NodePolicy
from kata_gpu.core.slices import TAINT
from kata_gpu.dra.watch import SliceWatch
from kata_gpu.errors import Malformed, Unavailable
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import hgx_h100
from kata_gpu.host.uevents import concerns_us
from kata_gpu.ops import setup
from kata_gpu.ops.agent import Agent, Parts
from kata_gpu.ops.claim_status import ClaimStatus
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.modes import CORDONED_BY, MAX_ATTEMPTS, ModeChanger, Phase
from kata_gpu.ops.node import Node as HostNode
from kata_gpu.ops.node_devices import HostDevices
from kata_gpu.ops.publish import SLICES as SLICES_PATH
from kata_gpu.ops.publish import SlicePublisher
from kata_gpu.ops.reconcile_claims import GRACE, ClaimReconciler
from kata_gpu.ops.report import CONDITION, NodeReporter
from kata_gpu.ports import JsonObject
from tests.kata_gpu.dra.fake_kubelet import FakeKubelet
from tests.kata_gpu.dra.fake_node import NOW
from tests.kata_gpu.dra.fake_store import KINDS
from tests.kata_gpu.dra.world import NODE, NODES, PODS, SLICES, World, address, gpu, key, numbered

EVENTS = KINDS["v1", "events"]
POD = {"containers": [{"name": "c", "image": "i"}]}
BUDGETS = KINDS["policy/v1", "poddisruptionbudgets"]


@dataclass
class Blind:
    """A watch that knows nothing: every publish reads."""

    news: bool = False

    def known(self) -> list[JsonObject] | None:
        return None

    def changed(self) -> bool:
        news, self.news = self.news, False
        return news


@dataclass
class Loop:
    """An agent over the world, its clock, and switches for what it sees."""

    world: World
    now: datetime = NOW
    bridge: bool = True
    dead: frozenset[str] = frozenset()
    listed: frozenset[str] = frozenset()
    kubelet_up: bool = True
    slices: Blind = field(default_factory=Blind)
    modes: ModeChanger | None = None
    policy: NodePolicy | None = None
    devices: Any = None
    agent: Agent = field(init=False)

    def __post_init__(self) -> None:
        world, devices = self.world, self.devices or self.world.host
        preparer = world.preparer(devices=devices)
        self.agent = Agent(
            Parts(
                devices=devices,
                store=world.store,
                preparer=preparer,
                publisher=SlicePublisher(world.kube, NODE),
                reconciler=ClaimReconciler(world.store, world.kube, preparer, devices, self.ids),
                reporter=NodeReporter(world.kube, NODE),
                status=ClaimStatus(world.kube),
                slices=self.slices,
                modes=self.modes,
                policy=lambda: self.policy,
                bridge_up=lambda: self.bridge,
                dead=self.fallen,
            )
        )

    def fallen(self, inventory: Inventory) -> frozenset[str]:
        return self.dead

    def ids(self) -> frozenset[str]:
        if not self.kubelet_up:
            raise Unavailable("kubelet", "down")
        return self.listed

    def step(self, **delta: float) -> Any:
        """One pass, later."""
        self.now += timedelta(**delta) if delta else timedelta(seconds=10)
        return self.agent.step(self.now)

    def pool(self) -> dict[str, Any]:
        """Devices in the API."""
        found = self.world.api.store.list(SLICES, fields=f"spec.nodeName={NODE}")[0]
        return {d["name"]: d for s in found for d in s["spec"].get("devices", [])}

    def taints(self) -> dict[str, str]:
        """Device -> reason."""
        return {n: t["value"] for n, d in self.pool().items() for t in d.get("taints", []) if t["key"] == TAINT}

    def condition(self) -> tuple[str, str]:
        """Status and reason of our condition."""
        status = self.world.api.store.get(NODES, "", NODE).get("status", {})
        row = next(c for c in status.get("conditions", []) if c["type"] == CONDITION)
        return row["status"], row["reason"]


@pytest.fixture
def loop(world: World) -> Loop:
    return Loop(world)


def writes(world: World) -> int:
    """Requests that change something."""
    return sum(n for (verb, _), n in world.api.store.requests.items() if verb not in {"get", "list", "watch"})


def test_first_pass_publishes_labels_and_reports(loop: Loop) -> None:
    picture = loop.step()
    assert (picture.published, picture.problems) == (True, {})
    assert len(loop.pool()) == 8
    assert loop.condition() == ("True", "Ready")
    labels = loop.world.api.store.get(NODES, "", NODE)["metadata"]["labels"]
    assert labels == {
        "nvidia.com/cc.mode.state": "on",
        "nvidia.com/cc.ready.state": "true",
        "kata-gpu.dev/cc-mode": "on",
        "kata-gpu.dev/tee": "snp",
    }


def test_an_hour_without_news_writes_nothing(loop: Loop) -> None:
    loop.step()
    before = writes(loop.world)
    for _ in range(360):
        loop.step()
    assert writes(loop.world) == before


@numbered("dra-068-agent")
def test_a_slice_wipe_of_kubelet_is_repaired_after_its_event(loop: Loop, case: None) -> None:
    loop.step()
    loop.world.api.store.delete_collection(SLICES, f"spec.nodeName={NODE}")
    loop.step()
    assert loop.pool() == {}  # nobody told us yet
    loop.slices.news = True
    loop.step()
    assert len(loop.pool()) == 8


@numbered("dra-070-agent")
def test_a_refusal_backs_off_tells_the_operator_once_and_recovers(loop: Loop, case: None) -> None:
    loop.world.api.fail_next(403, resource="resourceslices", times=3)
    pictures = [loop.step(seconds=1) for _ in range(20)]
    assert "slices" in pictures[0].problems
    assert loop.condition() == ("True", "Ready")
    assert pictures[-1].problems == {}
    events = loop.world.api.store.list(EVENTS)[0]
    assert [e["reason"] for e in events] == ["SlicesRefused"]
    gets = loop.world.api.store.requests["list", "resourceslices"]
    assert gets <= 5


@pytest.mark.envtest
@numbered("dra-071")
def test_api_down_at_start_serves_prepared_claims_and_publishes_later(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    first = world.prepare(ref)
    world.api.go_down()
    world.recover()
    world.serve()
    world.kubelet.scan()
    assert world.kubelet.prepare("pod", [key(ref)], DRIVER) == [first[0].cdi_id]
    loop = Loop(world)
    assert "slices" in loop.step().problems
    world.api.down = False
    picture = loop.step(minutes=6)
    assert (picture.published, picture.problems) == (True, {})
    assert len(loop.pool()) == 8


@pytest.mark.envtest
@numbered("dra-072")
def test_a_lost_watch_and_410_lead_to_a_new_list(world: World, case: None) -> None:
    woken: list[int] = []
    publisher = SlicePublisher(world.kube, NODE)
    watch = SliceWatch(world.kube, publisher, lambda: woken.append(1))
    world.api.store.create(SLICES, "", slice_of("a"))
    watch.start()
    wait(lambda: watch.known() is not None)
    first = world.kube.list(SLICES_PATH, timeout_s=5)[1]
    assert [s["metadata"]["name"] for s in watch.known() or []] == ["a"]
    world.api.store.create(SLICES, "", slice_of("b"))
    world.api.store.create(SLICES, "", slice_of("other", node="node-z"))
    wait(lambda: len(watch.known() or []) == 2)
    for loss in (world.api.drop_watches, world.api.store.compact):
        loss()
        if loss == world.api.store.compact:
            with pytest.raises(Gone):
                next(world.kube.watch(SLICES_PATH, resource_version=first, timeout_s=5))
        world.api.store.delete(SLICES, "", "b")
        wait(lambda: [s["metadata"]["name"] for s in watch.known() or []] == ["a"])
        world.api.store.create(SLICES, "", slice_of("b"))
        wait(lambda: len(watch.known() or []) == 2)
    assert watch.changed()
    watch.stop()


def slice_of(name: str, *, node: str = NODE) -> dict[str, Any]:
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
    return {"metadata": {"name": name}, "spec": {"driver": DRIVER, "nodeName": node, "pool": pool, "devices": []}}


def wait(condition: Callable[[], bool], *, timeout_s: float = 10) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.02)


UNFIT = [
    pytest.param(lambda lp: setattr(lp, "bridge", False), "bridge-down", 8, id="dra-095-node-is-tainted"),
    pytest.param(lambda lp: setattr(lp, "dead", frozenset({address(2)})), "device-dead", 1, id="dra-078-dead"),
    pytest.param(lambda lp: lp.world.host.unbind(address(2)), "not-bound", 1, id="dra-079-unbound"),
    pytest.param(lambda lp: lp.world.host.modes.update({address(2): None}), "mode-unknown", 1, id="dra-029-agent"),
    pytest.param(lambda lp: setattr(lp.world.host, "iommufd", False), "iommufd-missing", 8, id="dra-031-agent"),
]


@pytest.mark.parametrize(("break_it", "reason", "count"), UNFIT)
def test_what_must_not_be_allocated_is_tainted(
    loop: Loop, break_it: Callable[[Loop], None], reason: str, count: int
) -> None:
    loop.step()
    assert loop.taints() == {}
    break_it(loop)
    loop.step()
    assert list(loop.taints().values()) == [reason] * count
    assert loop.condition() == ("False", "DevicesUnfit")


@numbered("dra-059")
def test_a_stale_entry_ends_after_its_grace_and_never_in_use(loop: Loop, case: None) -> None:
    world = loop.world
    ref = world.claim(gpu(0))
    (held,) = world.prepare(ref)
    world.forget(ref)
    loop.listed = frozenset({held.cdi_id})
    loop.step()
    loop.step(minutes=11)
    loop.step(minutes=11)
    assert world.store.load().entry(ref.uid) is not None
    loop.listed = frozenset()
    world.host.open_by[address(0)] = ("qemu[1]",)
    loop.step(minutes=11)
    loop.step(minutes=11)
    assert world.store.load().entry(ref.uid) is not None
    world.host.open_by.clear()
    loop.step(minutes=11)
    assert (world.store.load().claims, world.files()) == ((), [])


def test_a_claim_whose_device_left_does_not_keep_other_steps_from_running(loop: Loop) -> None:
    world = loop.world
    refs = [world.claim(gpu(0)), world.claim(gpu(1))]
    for ref in refs:
        world.prepare(ref)
    world.host.remove(address(0))
    world.host.change(address(1), vfio_cdev="vfio99")
    picture = loop.step()
    assert list(picture.problems) == ["refresh"]
    assert b"vfio99" in (world.cdi.read(file_name(refs[1].uid)) or b"")
    assert len(loop.pool()) == 7
    world.unprepare(refs[0])
    assert loop.step(minutes=6).problems == {}


@numbered("dra-059-at-once")
def test_a_claim_that_is_gone_now_is_not_ended_now(loop: Loop, case: None) -> None:
    ref = loop.world.claim(gpu(0))
    loop.world.prepare(ref)
    loop.step()
    loop.world.forget(ref)
    loop.step(minutes=11)
    assert loop.world.store.load().entry(ref.uid) is not None
    assert timedelta(minutes=10) <= GRACE


def test_a_quarantined_device_comes_back_after_a_good_reset(loop: Loop) -> None:
    world = loop.world
    world.store.save(world.store.load().with_quarantine(address(0), "reset-failed", NOW))
    world.host.open_by[address(0)] = ("qemu[1]",)
    loop.step()
    assert loop.taints() == {gpu(0): "quarantined"}
    world.host.open_by.clear()
    loop.step(minutes=11)
    assert loop.taints() == {}
    assert world.host.writes == [f"reset {address(0)}"]


def test_uevents_of_other_subsystems_wake_nobody() -> None:
    assert concerns_us(b"add@/devices/pci0000:16\0ACTION=add\0SUBSYSTEM=pci\0")
    assert not concerns_us(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=net\0")


# mode changes, on the simulated kernel


@dataclass
class Modes:
    """A loop whose devices are those of a simulated host."""

    loop: Loop
    kernel: SimKernel
    node: HostNode

    @property
    def store(self) -> Any:
        return self.loop.world.api.store

    def modes(self) -> set[CcMode | None]:
        return {d.cc_mode for d in HostDevices(self.node).observe().gpus}

    def pod(self, *, labels: dict[str, str] | None = None) -> str:
        """A pod with a claim on the first GPU, prepared."""
        world = self.loop.world
        name = HostDevices(self.node).observe().gpus[0].name
        ref = world.claim(name, mode=None)
        world.preparer(devices=HostDevices(self.node)).prepare(ref, Deadline.after(40))
        pod = world.store.load().claims[0].pod
        self.store.merge(PODS, "default", pod, {"metadata": {"labels": labels or {}}})
        return str(ref.uid)


TO_ON = NodePolicy.everything(CcMode.ON)


def modes(world: World, tmp_path: Path, *, drain: bool, policy: NodePolicy = TO_ON) -> Modes:
    kernel = SimKernel(hgx_h100(gpus=2, switches=0))
    node = HostNode(host=kernel, state=DurableDir(tmp_path / "state"), cdi=DurableDir(tmp_path / "static-cdi"))
    setup.setup(node, NodePolicy.everything(CcMode.OFF))
    changer = ModeChanger(node, world.store, world.kube, name=NODE, drain=drain)
    loop = Loop(world, modes=changer, policy=policy, devices=HostDevices(node))
    return Modes(loop, kernel, node)


def cordoned(world: World) -> bool:
    node = world.api.store.get(NODES, "", NODE)
    return bool(node.get("spec", {}).get("unschedulable"))


def test_a_free_node_is_switched_at_once(world: World, tmp_path: Path) -> None:
    sim = modes(world, tmp_path, drain=False)
    picture = sim.loop.step()
    assert picture.problems == {}
    assert picture.modes.phase is Phase.SETTLED
    assert sim.modes() == {CcMode.ON}
    assert {d["attributes"]["ccMode"]["string"] for d in sim.loop.pool().values()} == {"on"}
    assert (sim.loop.taints(), cordoned(world)) == ({}, False)
    assert world.store.load().quarantine == ()


def test_a_busy_node_waits_cordoned_and_tainted(world: World, tmp_path: Path) -> None:
    sim = modes(world, tmp_path, drain=False)
    uid = sim.pod()
    picture = sim.loop.step()
    assert picture.modes.phase is Phase.WAITING
    assert sim.modes() == {CcMode.OFF}
    assert cordoned(world)
    assert set(sim.loop.taints().values()) == {"mode-transition"}
    world.preparer(devices=HostDevices(sim.node)).unprepare(uid, Deadline.after(40))
    sim.loop.step()
    assert sim.modes() == {CcMode.ON}
    assert not cordoned(world)
    assert CORDONED_BY not in world.api.store.get(NODES, "", NODE)["metadata"].get("annotations", {})


@pytest.mark.parametrize("by", ["flag", "policy"])
def test_drain_respects_disruption_budgets(world: World, tmp_path: Path, by: str) -> None:
    policy = replace(TO_ON, drain=Drain.EVICT if by == "policy" else Drain.NEVER)
    sim = modes(world, tmp_path, drain=by == "flag", policy=policy)
    sim.pod(labels={"app": "llm"})
    budget = {
        "metadata": {"name": "llm"},
        "spec": {"selector": {"matchLabels": {"app": "llm"}}},
        "status": {"disruptionsAllowed": 0},
    }
    sim.store.create(BUDGETS, "default", budget)
    sim.store.merge(BUDGETS, "default", "llm", {"status": {"disruptionsAllowed": 0}}, status=True)
    picture = sim.loop.step()
    assert "disruption budget" in picture.modes.reason
    assert len(sim.store.list(PODS)[0]) == 1
    sim.store.merge(BUDGETS, "default", "llm", {"status": {"disruptionsAllowed": 1}}, status=True)
    sim.loop.step()
    assert sim.store.list(PODS)[0] == []


def test_an_agent_that_may_not_evict_waits_and_says_so(world: World, tmp_path: Path) -> None:
    """The right to it is installed only where it is wanted."""
    sim = modes(world, tmp_path, drain=True)
    sim.pod()
    world.api.fail_next(403, resource="pods")
    picture = sim.loop.step()
    assert (picture.modes.phase, picture.problems) == (Phase.WAITING, {})
    assert "kata-gpu-node-evict" in picture.modes.reason
    sim.loop.step()
    assert sim.store.list(PODS)[0] == []


def test_a_damaged_state_file_stops_claims_and_scheduling_until_a_person_has_looked(
    world: World, tmp_path: Path
) -> None:
    sim = modes(world, tmp_path, drain=False)
    assert sim.loop.step().problems == {}
    devices, ref = HostDevices(sim.node), world.claim(next(iter(sim.loop.pool())))
    file = tmp_path / "state" / "modes.json"
    good, damaged = file.read_bytes(), b"[" * 100_000
    file.write_bytes(damaged)
    picture = sim.loop.step()
    assert str(file) in picture.problems["observe"]
    assert set(sim.loop.taints().values()) == {"state-unreadable"}
    assert sim.loop.condition() == ("False", "StepFailing")
    with pytest.raises(Malformed, match=str(file)):
        world.preparer(devices=devices).prepare(ref, Deadline.after(40))
    assert file.read_bytes() == damaged
    file.write_bytes(good)
    assert sim.loop.step(minutes=1).problems == {}
    assert (sim.loop.taints(), sim.loop.condition()) == ({}, ("True", "Ready"))
    assert world.preparer(devices=devices).prepare(ref, Deadline.after(40))


def test_an_operators_cordon_stays(world: World, tmp_path: Path) -> None:
    world.api.store.merge(NODES, "", NODE, {"spec": {"unschedulable": True}})
    sim = modes(world, tmp_path, drain=False)
    sim.loop.step()
    assert sim.modes() == {CcMode.ON}
    assert cordoned(world)


def test_failing_switches_are_bounded_and_reported(world: World, tmp_path: Path) -> None:
    sim = modes(world, tmp_path, drain=False)
    with sim.kernel.edit() as machine:
        for function in machine.functions.values():
            if function.chip is not None:
                function.chip.faults["locked"] = True
    picture = sim.loop.step()
    assert picture.modes.phase is Phase.WAITING
    ref = world.claim(HostDevices(sim.node).observe().gpus[0].name, mode=None)
    preparer = world.preparer(devices=HostDevices(sim.node))
    with pytest.raises(Unavailable, match="mode change"):
        preparer.prepare(ref, Deadline.after(40))
    for _ in range(MAX_ATTEMPTS + 2):
        picture = sim.loop.step(minutes=20)
    assert picture.modes.phase is Phase.FAILED
    assert set(sim.loop.taints().values()) == {"mode-failed"}
    assert sim.loop.condition() == ("False", "ModeFailed")
    assert "ModeFailed" in {e["reason"] for e in sim.store.list(EVENTS)[0]}


# the whole as a process


def get(port: int, path: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as exc:
        return exc.code, exc.read()
    except OSError:
        return 0, b""


@pytest.mark.timeout(60)
def test_the_process(world: World, tmp_path: Path) -> None:
    """Start, register, prepare, metrics, memory, SIGTERM."""
    sim = tmp_path / "host.json"
    kernel = SimKernel(hgx_h100(), path=sim)
    with kernel.edit():
        pass
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "apiVersion: config.kata-gpu.dev/v1alpha1\nkind: NodePolicy\ndevices:\n  - select: all\n    mode: on\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-c", "from kata_gpu.cli.main import main; main()", "agent", "run", "--node-name", NODE,
        "--server", world.api.url, "--kubelet-root", str(world.root), "--cdi-dir", str(tmp_path / "cdi"),
        "--policy", str(policy), "--sim", str(sim), "--listen", f"127.0.0.1:{port}",
    ]  # fmt: skip
    log = (tmp_path / "log").open("wb")
    child = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        kubelet: FakeKubelet = world.kubelet

        def ready() -> bool:
            assert child.poll() is None, (tmp_path / "log").read_text()
            kubelet.scan()
            return get(port, "/readyz")[0] == 200

        wait(ready, timeout_s=20)
        (made,) = world.api.store.list(SLICES, fields=f"spec.nodeName={NODE}")[0]
        assert {d["attributes"]["ccMode"]["string"] for d in made["spec"]["devices"]} >= {"on"}
        ref = world.claim("gpu-0000-17-00-0")
        ids = kubelet.prepare("pod", [key(ref)], DRIVER)
        assert (tmp_path / "cdi" / f"cgpu.kata-gpu.dev-claim_{ref.uid}.json").is_file()
        assert ids == [f"cgpu.kata-gpu.dev/claim={ref.uid}-gpu-0000-17-00-0"]
        kubelet.unprepare("pod", [key(ref)], DRIVER)
        metrics = get(port, "/metrics")[1].decode()
        assert 'kata_gpu_claim_calls_total{call="prepare",code="ok"} 1.0' in metrics
        assert get(port, "/healthz")[0] == 200
        rss = psutil.Process(child.pid).memory_info().rss / 2**20
        print(f"agent RSS {rss:.1f} MiB")
        assert rss < 90
    finally:
        os.kill(child.pid, signal.SIGTERM)
        code = child.wait(20)
        log.close()
    assert code == 0, (tmp_path / "log").read_text()
    assert list(world.kubelet.registry.iterdir()) == []
    assert world.api.store.list(SLICES)[0] != []
    for line in (tmp_path / "log").read_text().splitlines():
        json.loads(line)
