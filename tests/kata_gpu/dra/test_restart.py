"""Restart, reboot and broken checkpoints: dra.md 7, behaviours 38 to 40 and 56 to 64."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata_gpu.core.checkpoint import Checkpoint, ClaimState, render_checkpoint
from kata_gpu.core.claim import DRIVER, ClaimRef
from kata_gpu.core.claim_cdi import claim_of, file_name, render_claim
from kata_gpu.dra.bridge import promised_by
from kata_gpu.errors import InUse, KataGpuError, Misconfigured, Unavailable
from kata_gpu.host.claim_file import CHECKPOINT, PREVIOUS
from kata_gpu.ops.deadline import Deadline
from tests.kata_gpu.dra.world import World, address, config, gpu, key, numbered


class Killed(BaseException):
    """Kill -9: no handler of ours may run. Not an Exception, as nothing may catch it."""


class KillAt:
    """Ports that die before the n-th effect, and count effects."""

    def __init__(self, world: World, at: int) -> None:
        self.count = 0
        self.at = at
        self.ports = {
            "store": self._wrap(world.store, {"save"}),
            "cdi": self._wrap(world.cdi, {"write", "remove"}),
            "devices": self._wrap(world.host, {"bind", "reset"}),
        }

    def _wrap(self, port: Any, effects: set[str]) -> Any:
        kill = self

        class Wrapped:
            def __getattr__(self, name: str) -> Any:
                real = getattr(port, name)
                if name not in effects:
                    return real

                def effect(*args: Any, **kwargs: Any) -> Any:
                    kill.step()
                    result = real(*args, **kwargs)
                    kill.step()
                    return result

                return effect

        return Wrapped()

    def step(self) -> None:
        """Die here, or go on."""
        self.count += 1
        if self.count == self.at:
            raise Killed


def state(world: World) -> dict[str, Any]:
    """What must be equal after any crash: promises, CDI content, drivers."""
    return {
        "claims": {c.ref.uid: (c.state, tuple(d.cdi_id for d in c.devices)) for c in world.store.load().claims},
        "files": {n: json.loads((world.tmp / "cdi" / n).read_bytes()) for n in world.files()},
        "drivers": {a: f.driver for a, f in world.host.functions.items()},
    }


def steps(world: World, work: Callable[[KillAt], object]) -> int:
    """How many crash points a run has."""
    kill = KillAt(world, -1)
    work(kill)
    return kill.count


CRASHES = [
    pytest.param(1, id="dra-063-before-intent"),
    pytest.param(2, id="dra-038-after-intent"),
    pytest.param(3, id="dra-063-before-bind"),
    pytest.param(4, id="dra-039-between-bind-and-cdi"),
    pytest.param(5, id="dra-063-before-cdi"),
    pytest.param(6, id="dra-040-after-cdi"),
    pytest.param(7, id="dra-063-before-prepared"),
    pytest.param(8, id="dra-063-after-prepared"),
]


@pytest.mark.parametrize("at", CRASHES)
def test_prepare_killed_at_every_step(world: World, at: int) -> None:
    ref = world.claim(gpu(0))
    world.host.unbind(address(0), "nvidia")
    with pytest.raises(Killed):
        world.prepare(ref, **KillAt(world, at).ports)
    world.recover()
    with_crash = world.prepare(ref)
    assert [d.cdi_id for d in with_crash] == [f"cgpu.kata-gpu.dev/claim={ref.uid}-{gpu(0)}"]
    assert world.host.writes == [f"bind {address(0)}"] * 1  # one bind in all: never a second unbind
    assert [claim_of(n) for n in world.files()] == [ref.uid]
    (entry,) = world.store.load().claims
    assert entry.state is ClaimState.PREPARED


@numbered("dra-063-complete")
def test_the_crash_points_above_are_all_there_are(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.host.unbind(address(0), "nvidia")
    assert steps(world, lambda kill: world.prepare(ref, **kill.ports)) == len(CRASHES)


@pytest.mark.parametrize("at", [pytest.param(n, id=f"dra-063-unprepare-{n}") for n in range(1, 7)])
def test_unprepare_killed_at_every_step(world: World, at: int) -> None:
    ref, other = world.claim(gpu(0)), world.claim(gpu(1))
    world.prepare(ref)
    world.prepare(other)
    kill = KillAt(world, at)
    with pytest.raises(Killed):
        world.unprepare(ref, **kill.ports)
    world.recover()
    world.unprepare(ref)
    assert [c.ref.uid for c in world.store.load().claims] == [other.uid]
    assert [claim_of(n) for n in world.files()] == [other.uid]
    assert world.prepare(world.claim(gpu(0)))[0].device == gpu(0)


@pytest.mark.parametrize(
    "call", [pytest.param(c, id=f"dra-063-{c}") for c in ("open", "write", "fsync", "rename", "link")]
)
def test_killed_at_every_system_call(world: World, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepare and unprepare in a loop, dying before the n-th call of one kind, for every n there is."""
    real, at = getattr(os, call), 0
    ref = world.claim(gpu(0), gpu(1))
    finished = False
    while not finished:
        at += 1
        left = [at]

        def dying(*args: Any, _left: list[int] = left, **kwargs: Any) -> Any:
            _left[0] -= 1
            if _left[0] == 0:
                raise Killed
            return real(*args, **kwargs)

        preparer = world.preparer()
        with monkeypatch.context() as patch:
            patch.setattr(os, call, dying)
            try:
                preparer.prepare(ref, Deadline.after(40))
                preparer.unprepare(ref.uid, Deadline.after(40))
                finished = True
            except Killed:
                pass
        world.recover()
        assert len(world.prepare(ref)) == 2
        assert world.files() == [file_name(ref.uid)]
        world.unprepare(ref)
        assert (world.files(), world.store.load()) == ([], Checkpoint())
    assert at > 2


@numbered("dra-056")
def test_a_restarted_plugin_answers_as_before(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    first = world.prepare(ref)
    world.forget(ref)
    assert world.recover().rebuilt == ()
    world.host.writes.clear()
    assert world.prepare(ref) == first
    assert world.host.writes == []


@pytest.mark.parametrize(
    "deleted", [pytest.param(False, id="dra-057-prepare"), pytest.param(True, id="dra-057-unprepare")]
)
def test_reboot(world: World, deleted: bool) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    old = json.loads(world.cdi.read(file_name(ref.uid)) or b"")
    world.host.reboot()
    for path in (world.tmp / "cdi").iterdir():
        path.unlink()
    world.recover()
    world.host.writes.clear()
    if deleted:
        world.forget(ref)
        world.unprepare(ref)
        assert (world.host.writes, world.store.load().claims) == ([], ())
    else:
        assert world.prepare(ref)[0].cdi_id.endswith(gpu(0))
        new = json.loads(world.cdi.read(file_name(ref.uid)) or b"")
        assert new != old  # another vfio number


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data.replace(b'"prepared"', b'"preparinG"'[:10])


def no_checksum(data: bytes) -> bytes:
    body = json.loads(data)
    del body["sha256"]
    return json.dumps(body).encode()


def other_schema(data: bytes) -> bytes:
    return data.replace(b'"schema":1', b'"schema":0')


CORRUPT = [
    pytest.param(truncated, id="dra-058-truncated"),
    pytest.param(lambda _d: b"not json", id="dra-058-bad-json"),
    pytest.param(flipped, id="dra-058-bad-checksum"),
    pytest.param(no_checksum, id="dra-058-no-checksum"),
    pytest.param(other_schema, id="dra-058-wrong-schema"),
    pytest.param(lambda _d: b"[" * 100_000, id="dra-058-deep"),
    pytest.param(lambda _d: b"", id="dra-058-empty"),
]


@pytest.mark.parametrize("damage", CORRUPT)
def test_a_broken_checkpoint_is_set_aside_and_rebuilt(world: World, damage: Callable[[bytes], bytes]) -> None:
    sure, doubtful = world.claim(gpu(0)), world.claim(gpu(1))
    first = world.prepare(sure)
    world.prepare(doubtful)
    world.forget(doubtful)
    world.host.open_by[address(2)] = ("qemu[9]",)
    path = world.root / "plugins" / DRIVER / CHECKPOINT
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(KataGpuError):
        world.store.load()
    done = world.recover()
    assert done.set_aside == "checkpoint.corrupt-000001.json"
    assert set(done.rebuilt) == {sure.uid, doubtful.uid}
    assert set(done.quarantined) == {address(1), address(2)}
    assert world.prepare(sure) == first
    with pytest.raises(InUse):
        world.prepare(world.claim(gpu(0)))
    world.host.open_by.clear()
    for quarantined in (1, 2):
        with pytest.raises(KataGpuError):
            world.prepare(world.claim(gpu(quarantined)))
    world.unprepare(doubtful)
    world.serve()
    world.kubelet.scan()
    assert DRIVER in world.kubelet.plugins


@numbered("dra-058-removed")
def test_a_checkpoint_that_was_removed_is_rebuilt_with_its_pods(world: World, case: None) -> None:
    """A reinstalled kubelet wipes the plugins' directories; our pods run on, and what they hold is theirs."""
    ref = world.claim(gpu(0))
    first = world.prepare(ref)
    before = world.store.load()
    for name in (CHECKPOINT, PREVIOUS):
        (world.root / "plugins" / DRIVER / name).unlink()
    (world.tmp / "cdi" / file_name("not a uid")).write_text("{}")  # somebody else's, whatever it looks like
    done = world.recover()
    assert (done.set_aside, done.orphans, done.rebuilt, done.quarantined) == ("", (), (ref.uid,), ())
    assert (world.tmp / "cdi" / file_name("not a uid")).exists()
    assert promised_by(world.store.load)() == promised_by(lambda: before)() == {first[0].cdi_id: "default/pod-1-0"}
    with pytest.raises(InUse):
        world.prepare(world.claim(gpu(0)))
    assert world.prepare(ref) == first


@numbered("dra-058-api-down")
def test_rebuilding_without_the_api_uses_the_previous_generation_and_doubts(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    world.prepare(world.claim(gpu(1)))
    (world.root / "plugins" / DRIVER / CHECKPOINT).write_bytes(b"?")
    world.api.go_down()
    done = world.recover(listed=lambda: frozenset({f"cgpu.kata-gpu.dev/claim=gone-{gpu(5)}"}))
    assert set(done.quarantined) == {address(0), address(1), address(5)}
    entry = world.store.load().entry(ref.uid)
    assert entry is not None
    assert entry.ref == ref
    world.unprepare(ref)


@numbered("dra-058-two-files-one-gpu")
def test_two_files_that_name_one_gpu_set_it_aside(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    world.cdi.write(file_name("other"), render_claim("other", {gpu(0): ("/dev/vfio/devices/vfio0",)}))
    (world.root / "plugins" / DRIVER / CHECKPOINT).write_bytes(b"?")
    assert address(0) in world.recover().quarantined


@numbered("dra-060")
def test_a_newer_checkpoint_is_refused_and_left_alone(world: World, case: None) -> None:
    path = world.root / "plugins" / DRIVER / CHECKPOINT
    assert world.store.load() == Checkpoint()
    newer = render_checkpoint(Checkpoint()).replace(b'"schema":1', b'"schema":2')
    path.write_bytes(newer)
    with pytest.raises(Misconfigured, match="newer driver"):
        world.recover()
    with pytest.raises(Misconfigured):
        world.prepare(world.claim(gpu(0)))
    assert path.read_bytes() == newer


@numbered("dra-061")
def test_orphans_of_ours_go_and_files_of_others_stay(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    orphan = file_name("left-over")
    world.cdi.write(orphan, render_claim("left-over", {gpu(3): ("/dev/vfio/devices/vfio3",)}))
    foreign = world.tmp / "cdi" / "k8s.gpu.nvidia.com-claim_1.yaml"
    foreign.write_text("theirs")
    assert world.recover().orphans == (orphan,)
    assert world.files() == sorted([file_name(ref.uid), foreign.name])


@numbered("dra-062")
def test_a_renumbered_vfio_node_is_written_again(world: World, case: None) -> None:
    ref = world.claim(gpu(0), configs=[config("FromClass", requireMode="on", apiDevice=True)])
    first = world.prepare(ref)
    world.host.change(address(0), vfio_cdev="vfio77")
    assert world.prepare(ref) == first
    written = world.cdi.read(file_name(ref.uid)) or b""
    assert b"/dev/vfio/devices/vfio77" in written
    assert b"/dev/iommu" in written
    world.host.change(address(0), vfio_cdev="vfio78")
    world.preparer().refresh(Deadline.after(5))
    assert b"/dev/vfio/devices/vfio78" in (world.cdi.read(file_name(ref.uid)) or b"")


@numbered("dra-064")
def test_a_vm_that_died_without_any_call_finds_node_and_cdi(world: World, case: None) -> None:
    world.serve()
    world.kubelet.scan()
    ref = world.claim(gpu(0))
    ids = world.kubelet.prepare("pod", [key(ref)], DRIVER)
    calls = len(world.kubelet.rpcs)
    assert world.kubelet.prepare("pod", [key(ref)], DRIVER) == ids  # kubelet sends nothing: it counts as prepared
    assert len(world.kubelet.rpcs) == calls
    assert world.files() == [file_name(ref.uid)]


@numbered("dra-059-in-use-device-left")
def test_a_prepared_device_that_left_is_an_error_not_a_crash(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    world.host.remove(address(0))
    with pytest.raises(Unavailable, match="left the node"):
        world.prepare(ref)


def test_checkpoint_store_keeps_the_previous_generation(world: World, tmp_path: Path) -> None:
    one = ClaimRef(namespace="a", name="b", uid="c")
    world.prepare(world.claim(gpu(0)))
    previous = world.store.load_previous()
    assert previous is not None
    assert previous.claims[0].state is ClaimState.PREPARING
    assert one.uid not in {c.ref.uid for c in previous.claims}
