"""Kubelet's folder is wiped under a running driver, as its reinstallation does: noticed, and rebuilt meanwhile."""

import shutil
from pathlib import Path

import pytest

from kata_gpu.core.claim import DRIVER
from kata_gpu.dra.server import INSTANCE_LOCK
from kata_gpu.errors import InUse, TimedOut, Unavailable
from kata_gpu.host.claim_file import CHECKPOINT, KEEP_CORRUPT, LOCK, ClaimFileStore
from tests.kata_gpu.dra.fake_kubelet import KubeletError
from tests.kata_gpu.dra.test_agent import wait
from tests.kata_gpu.dra.test_process import Child
from tests.kata_gpu.dra.test_process import child as child
from tests.kata_gpu.dra.world import World, gpu, key, numbered


def test_a_folder_that_is_gone_is_made_again_to_be_locked(tmp_path: Path) -> None:
    store = ClaimFileStore(tmp_path / "plugins" / "d")
    shutil.rmtree(tmp_path / "plugins")
    with store.locked(1):
        assert (tmp_path / "plugins" / "d" / LOCK).exists()
    assert (tmp_path / "plugins" / "d").stat().st_mode & 0o777 == 0o700


def test_where_there_can_be_no_folder_the_error_says_so(tmp_path: Path) -> None:
    store = ClaimFileStore(tmp_path / "plugins" / "d")
    shutil.rmtree(tmp_path / "plugins")
    (tmp_path / "plugins").write_text("")
    with pytest.raises(Unavailable, match=LOCK) as caught, store.locked(1):
        pytest.fail("locked")
    assert caught.value.code == "claims-lock"
    with pytest.raises(Unavailable, match=LOCK):
        ClaimFileStore(tmp_path / "plugins" / "e")


def test_a_lock_file_that_was_removed_locks_nothing(tmp_path: Path) -> None:
    """Two processes must not both have the lock: one by the file of before, one by the file of now."""
    first, second, third = (ClaimFileStore(tmp_path) for _ in range(3))
    with first.locked(1):
        (tmp_path / LOCK).unlink()
        with second.locked(1), pytest.raises(TimedOut), third.locked(0.05):
            pytest.fail("locked twice")


def test_a_broken_checkpoint_is_put_away_whatever_lies_beside_it(tmp_path: Path) -> None:
    store = ClaimFileStore(tmp_path)
    (tmp_path / "checkpoint.corrupt-of-monday.json").mkdir()
    with pytest.raises(Unavailable) as caught:
        store.set_aside()
    assert (caught.value.code, caught.value.where) == ("checkpoint-aside", str(tmp_path / CHECKPOINT))
    for number in range(1, 12):
        (tmp_path / CHECKPOINT).write_bytes(b"?")
        assert store.set_aside() == f"checkpoint.corrupt-{number:06d}.json"
    assert len(list(tmp_path.glob("checkpoint.corrupt-0*"))) == KEEP_CORRUPT
    assert (tmp_path / "checkpoint.corrupt-of-monday.json").is_dir()


def test_a_checkpoint_that_was_removed_is_not_an_empty_one(world: World) -> None:
    """The device of its claim would be given to the next pod."""
    store = world.store
    first, second = world.claim(gpu(0)), world.claim(gpu(0))
    world.prepare(first, store=store)
    shutil.rmtree(world.root / "plugins")
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            world.prepare(second, store=store)
        assert caught.value.code == "checkpoint-lost"
    with pytest.raises(Unavailable):
        world.unprepare(first, store=store)
    world.recover(store=store)
    with pytest.raises(InUse, match=first.name):
        world.prepare(second, store=store)
    assert world.prepare(first, store=store)
    world.unprepare(first, store=store)
    assert world.prepare(second, store=store)


def test_the_lock_of_an_instance_is_taken_again_or_lost(world: World) -> None:
    server = world.serve()
    shutil.rmtree(world.root / "plugins")
    assert server.heal()
    assert (world.root / "plugins" / DRIVER / INSTANCE_LOCK).exists()
    assert not server.heal()
    shutil.rmtree(world.root / "plugins")
    world.serve()
    with pytest.raises(InUse):
        server.heal()


@pytest.mark.timeout(90)
@numbered("dra-058-wiped")
def test_the_agent_rebuilds_sockets_and_claims_while_it_runs(child: Child, case: None) -> None:
    child.start("standalone")
    wait(child.ready, timeout_s=30)
    kubelet, device = child.world.kubelet, child.pool()[0]
    held, late = child.world.claim(device), child.world.claim(device)
    kubelet.prepare("p", [key(held)], DRIVER)
    plugins = child.world.root / "plugins"
    shutil.rmtree(plugins)
    shutil.rmtree(child.world.root / "plugins_registry")
    child.wait((plugins / DRIVER / CHECKPOINT).exists)
    child.wait(child.ready)
    assert [c.ref.uid for c in child.world.store.load().claims] == [held.uid]
    with pytest.raises(KubeletError, match="device-held"):
        kubelet.prepare("q", [key(late)], DRIVER)
    kubelet.unprepare("p", [key(held)], DRIVER)
    kubelet.prepare("q", [key(late)], DRIVER)


@pytest.mark.timeout(90)
def test_an_agent_that_cannot_serve_ends_to_be_started_with_other_mounts(child: Child) -> None:
    child.start("standalone")
    wait(child.ready, timeout_s=30)
    plugins = child.world.root / "plugins"
    shutil.rmtree(plugins)
    plugins.write_text("")
    process = child.process
    assert process is not None
    child.wait(lambda: process.poll() is not None)
    assert process.returncode == 8
    assert "socket-bind" in (child.tmp / "log").read_text()
    child.process = None
