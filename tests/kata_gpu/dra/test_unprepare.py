"""NodeUnprepareResources: dra.md 7, behaviours 44 to 55."""

from typing import Any

import pytest

from kata_gpu.core.claim import DRIVER
from kata_gpu.core.claim_cdi import file_name
from kata_gpu.errors import InUse, RolledBack, TimedOut, Unavailable
from kata_gpu.host.claim_cdi_dir import ClaimCdiDir
from kata_gpu.ops.deadline import Deadline
from tests.kata_gpu.dra.fake_kubelet import ClaimKey, KubeletError
from tests.kata_gpu.dra.fake_node import wedged
from tests.kata_gpu.dra.world import World, address, config, gpu, key, numbered


@numbered("dra-044")
def test_everything_of_the_claim_is_gone(world: World, case: None) -> None:
    world.serve()
    world.kubelet.scan()
    ref = world.claim(gpu(0))
    world.kubelet.prepare("pod", [key(ref)], DRIVER)
    response = world.kubelet.rpc(DRIVER, "NodeUnprepareResources", [key(ref)])
    assert {uid: r.error for uid, r in response.claims.items()} == {ref.uid: ""}
    assert (world.files(), world.store.load().claims) == ([], ())
    assert world.host.writes == [f"reset {address(0)}"]
    assert world.host.functions[address(0)].driver == "vfio-pci"  # stays there between claims


@pytest.mark.parametrize(
    "policy",
    [pytest.param("always", id="dra-044-reset-always"), pytest.param("onError", id="dra-044-reset-on-error")],
)
def test_reset_policy(world: World, policy: str) -> None:
    ref = world.claim(gpu(0), configs=[config("FromClass", requireMode="on", resetPolicy=policy)])
    world.prepare(ref)
    world.unprepare(ref)
    expected = [f"reset {address(0)}"] * 2 if policy == "always" else []
    assert world.host.writes == expected


@numbered("dra-045")
def test_an_unknown_claim_is_success(world: World, case: None) -> None:
    world.serve()
    world.kubelet.scan()
    response = world.kubelet.rpc(DRIVER, "NodeUnprepareResources", [ClaimKey("default", "x", "never-seen")])
    assert response.claims["never-seen"].error == ""


@numbered("dra-046")
def test_repeating_is_success(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    world.unprepare(ref)
    world.host.writes.clear()
    world.unprepare(ref)
    assert world.host.writes == []


@pytest.mark.envtest
@numbered("dra-047")
def test_a_claim_deleted_while_running_needs_the_checkpoint_only(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    world.forget(ref)
    world.unprepare(ref)
    assert (world.files(), world.store.load().claims) == ([], ())


@pytest.mark.envtest
@numbered("dra-048")
def test_a_claim_created_again_under_its_name(world: World, case: None) -> None:
    old = world.claim(gpu(0), name="same")
    world.prepare(old)
    world.forget(old)
    new = world.claim(gpu(0), name="same")
    with pytest.raises(InUse, match=old.uid):
        world.prepare(new)
    world.forget(new)
    elsewhere = world.claim(gpu(1), name="same")
    assert world.prepare(elsewhere)[0].device == gpu(1)
    world.unprepare(old)
    world.forget(elsewhere)
    again = world.claim(gpu(0), name="same")
    assert world.prepare(again)[0].device == gpu(0)


@numbered("dra-049")
def test_a_vm_that_still_runs_keeps_everything(world: World, case: None) -> None:
    ref = world.claim(gpu(0), gpu(1))
    world.prepare(ref)
    world.host.open_by[address(1)] = ("qemu-system-x86[4242]",)
    with pytest.raises(InUse) as caught:
        world.unprepare(ref)
    assert "4242" in caught.value.got
    assert world.files() == [file_name(ref.uid)]
    assert world.host.writes == []
    world.host.open_by.clear()
    world.unprepare(ref)
    assert world.files() == []


@numbered("dra-050")
def test_a_missing_cdi_file_is_success(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    (world.tmp / "cdi" / file_name(ref.uid)).unlink()
    world.unprepare(ref)
    assert world.store.load().claims == ()


@numbered("dra-051")
def test_a_cdi_file_that_cannot_be_removed_is_an_error(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)

    class ReadOnly(ClaimCdiDir):
        """EROFS."""

        def remove(self, name: str) -> None:
            raise Unavailable("cdi-remove", "cannot remove the CDI file", got="Read-only file system")

    with pytest.raises(Unavailable, match="Read-only"):
        world.unprepare(ref, cdi=ReadOnly(world.tmp / "cdi"))
    assert world.store.load().entry(ref.uid) is not None
    world.unprepare(ref)
    assert world.store.load().claims == ()


@numbered("dra-051-directory-in-the-way")
def test_unlink_errors_of_the_kernel_are_not_swallowed(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    path = world.tmp / "cdi" / file_name(ref.uid)
    path.unlink()
    path.mkdir()
    with pytest.raises(Unavailable) as caught:
        world.unprepare(ref)
    assert caught.value.code == "cdi-remove"


@numbered("dra-052")
def test_a_gpu_that_left_does_not_hold_its_pod(world: World, case: None) -> None:
    ref = world.claim(gpu(0), gpu(1))
    world.prepare(ref)
    world.host.remove(address(0))
    world.unprepare(ref)
    assert world.host.writes == [f"reset {address(1)}"]
    assert (world.files(), world.store.load().claims) == ([], ())


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(RolledBack("reset-failed", "the function did not come back", where=address(0)), id="dra-053"),
        pytest.param(wedged(address(0)), id="dra-053-blocked"),
    ],
)
def test_a_failed_reset_ends_the_claim_and_sets_the_device_aside(world: World, error: Any) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    world.host.reset_error[address(0)] = error
    world.unprepare(ref)
    checkpoint = world.store.load()
    assert checkpoint.claims == ()
    assert error.code in checkpoint.quarantine[0].reason
    with pytest.raises(Unavailable, match="set aside"):
        world.prepare(world.claim(gpu(0)))


@numbered("dra-053-deadline")
def test_no_time_left_before_the_reset_is_no_verdict_on_the_device(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.prepare(ref)
    clock = iter([0.0, 0.0, 100.0])
    with pytest.raises(TimedOut):
        world.preparer().unprepare(ref.uid, Deadline.after(40, lambda: next(clock)))
    assert world.store.load().quarantine == ()
    world.unprepare(ref)
    assert world.store.load().claims == ()


@numbered("dra-054")
def test_a_half_prepared_claim_is_rolled_back(world: World, case: None) -> None:
    ref = world.claim(gpu(0), configs=[config("FromClass", requireMode="on", resetPolicy="onError")])
    world.host.unbind(address(0))
    world.host.bind_error[address(0)] = wedged(address(0))
    with pytest.raises(TimedOut):
        world.prepare(ref)
    world.host.bind_error.clear()
    world.unprepare(ref)
    assert world.host.writes[-1] == f"reset {address(0)}"  # something went wrong: even onError resets
    assert (world.files(), world.store.load().claims) == ([], ())


@numbered("dra-055")
def test_the_api_is_not_contacted(world: World, case: None) -> None:
    world.serve()
    world.kubelet.scan()
    ref = world.claim(gpu(0))
    world.kubelet.prepare("pod", [key(ref)], DRIVER)
    before = sum(world.api.store.requests.values())
    world.api.go_down()
    world.kubelet.unprepare("pod", [key(ref)], DRIVER)
    assert sum(world.api.store.requests.values()) == before
    assert world.files() == []


@numbered("dra-049-pod-stays-terminating")
def test_kubelet_sees_the_error_and_retries(world: World, case: None) -> None:
    world.serve()
    world.kubelet.scan()
    ref = world.claim(gpu(0))
    world.kubelet.prepare("pod", [key(ref)], DRIVER)
    world.host.open_by[address(0)] = ("qemu[1]",)
    with pytest.raises(KubeletError, match="device-open"):
        world.kubelet.unprepare("pod", [key(ref)], DRIVER)
    world.host.open_by.clear()
    world.kubelet.unprepare("pod", [key(ref)], DRIVER)
    assert ref.uid not in world.kubelet.claims
