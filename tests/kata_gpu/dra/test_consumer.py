"""For whom a GPU is prepared: one pod, and one that runs in a VM. All else is refused before anything is touched."""

from collections.abc import Callable
from typing import Any

import pytest

from kata_gpu.core.claim import DRIVER, ClaimRef
from kata_gpu.core.lint.admission import one_pod_policy
from kata_gpu.errors import KataGpuError
from tests.kata_gpu.dra.fake_store import Object
from tests.kata_gpu.dra.world import CLAIMS, PODS, RUNTIME_CLASSES, World, gpu, numbered
from tests.kata_gpu.kata.cel import evaluate


def reserved(world: World, *consumers: Object) -> ClaimRef:
    """A claim whose `reservedFor` is exactly this."""
    ref = world.claim(gpu(0))
    claim = world.api.store.get(CLAIMS, "default", ref.name)
    claim["status"]["reservedFor"] = list(consumers)
    world.api.store.replace(CLAIMS, "default", ref.name, claim, status=True)
    return ref


def own_class(world: World, handler: str) -> ClaimRef:
    """The pod's RuntimeClass has a name of its own."""
    world.api.store.create(RUNTIME_CLASSES, "", {"metadata": {"name": "team"}, "handler": handler})
    return world.claim(gpu(0), runtime="team")


def without_pod(world: World) -> ClaimRef:
    ref = world.claim(gpu(0))
    world.api.store.delete(PODS, "default", "pod-1-0")
    return ref


def other_pod(world: World) -> ClaimRef:
    ref = without_pod(world)
    world.consumer("pod-1-0", "kata-nvidia-gpu-snp")
    return ref


def without_class(world: World) -> ClaimRef:
    ref = own_class(world, "kata-qemu-nvidia-gpu-tdx")
    world.api.store.delete(RUNTIME_CLASSES, "", "team")
    return ref


GROUP = {"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": "g", "uid": "u"}
REFUSED = [
    pytest.param(lambda w: w.claim(gpu(0), runtime=None), "pod-without-vm", id="dra-099-no-class"),
    pytest.param(lambda w: own_class(w, "runc"), "pod-without-vm", id="dra-099-handler-runc"),
    pytest.param(lambda w: own_class(w, "kata-qemu"), "pod-without-vm", id="dra-099-kata-without-gpus"),
    pytest.param(without_class, "api-404", id="dra-099-class-gone"),
    pytest.param(without_pod, "api-404", id="dra-099-pod-gone"),
    pytest.param(other_pod, "pod-replaced", id="dra-099-other-pod-of-the-name"),
    pytest.param(lambda w: reserved(w, GROUP), "consumer-not-a-pod", id="dra-099-pod-group"),
    pytest.param(reserved, "claim-not-reserved", id="dra-099-nobody"),
    pytest.param(
        lambda w: reserved(w, {"resource": "pods", "name": "../../secrets/s", "uid": "u"}),
        "consumer-name",
        id="dra-099-no-name",
    ),
]


@pytest.mark.parametrize(("make", "code"), REFUSED)
def test_refused_before_anything_is_touched(world: World, make: Callable[[World], ClaimRef], code: str) -> None:
    ref = make(world)
    with pytest.raises(KataGpuError) as caught:
        world.prepare(ref)
    assert caught.value.code == code
    assert (world.store.load().claims, world.host.writes, world.files()) == ((), [], [])


@numbered("dra-099-own-handler")
def test_a_class_of_another_name_tells_by_its_handler(world: World, case: None) -> None:
    assert world.prepare(own_class(world, "kata-qemu-nvidia-gpu-tdx"))[0].cdi_id


@numbered("dra-099-pods-unreadable")
@pytest.mark.parametrize("status", [403, 500])
def test_a_pod_that_cannot_be_read_gets_nothing(world: World, case: None, status: int) -> None:
    ref = world.claim(gpu(0))
    world.api.fail_next(status, resource="pods")
    with pytest.raises(KataGpuError, match=str(status)):
        world.prepare(ref)
    assert world.store.load().claims == ()
    assert world.prepare(ref)[0].cdi_id


@numbered("dra-023-any-pod")
def test_admin_access_asks_for_no_pod(world: World, case: None) -> None:
    world.prepare(world.claim(gpu(0), adminAccess=True, runtime=None))
    assert world.api.store.requests["get", "pods"] == 0


def status(*pods: str, **result: Any) -> Object:
    results = [{"request": "gpu", "driver": DRIVER, "pool": "n", "device": "gpu-0"} | result]
    return {
        "allocation": {"devices": {"results": results}},
        "reservedFor": [{"resource": "pods", "name": p, "uid": p} for p in pods],
    }


CHANGES = [
    pytest.param({}, status("a"), True, id="first"),
    pytest.param(status("a"), status("a", "b"), False, id="second"),
    pytest.param({}, status("a", "b"), False, id="two-at-once"),
    pytest.param(status("a", "b", "c"), status("a", "b"), True, id="fewer-of-an-older-time"),
    pytest.param(status("a", "b"), status("a", "c"), False, id="another"),
    pytest.param(status("a"), status(), True, id="none"),
    pytest.param(status("a"), {}, True, id="deallocated"),
    pytest.param(status("a"), status("a", "b", driver="nic.example.com"), True, id="other-driver"),
    pytest.param(status("a"), status("a", "b", adminAccess=True), True, id="admin-access"),
    pytest.param({}, {"reservedFor": [{"uid": "a"}, {"uid": "b"}]}, True, id="nothing-allocated"),
]


@pytest.mark.parametrize(("old", "new", "allowed"), CHANGES)
def test_admission_keeps_a_claim_to_one_pod(old: Object, new: Object, allowed: bool) -> None:
    spec = one_pod_policy()[0]["spec"]
    (rule,) = spec["validations"]
    assert spec["failurePolicy"] == "Fail"
    assert evaluate(rule["expression"], object={"status": new}, oldObject={"status": old}) == allowed
