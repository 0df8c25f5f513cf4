"""NodePrepareResources: dra.md 7, behaviours 14 to 43."""

import errno
import os
import threading
from typing import Any

import pytest

from kata_gpu.core.claim import DRIVER, ClaimRef
from kata_gpu.core.claim_cdi import claim_of, device_id, file_name, parse_claim_file
from kata_gpu.core.gpu import CcMode
from kata_gpu.errors import InUse, KataGpuError, Malformed, Misconfigured, RolledBack, TimedOut, Unavailable
from kata_gpu.host.claim_cdi_dir import ClaimCdiDir
from kata_gpu.ops.deadline import Deadline
from tests.kata_gpu.dra.fake_kubelet import ClaimKey, KubeletError
from tests.kata_gpu.dra.fake_node import busy, wedged
from tests.kata_gpu.dra.world import CLAIMS, REQUEST, World, address, config, gpu, key, numbered


@numbered("dra-014")
def test_one_device(world: World, case: None) -> None:
    world.serve()
    world.kubelet.scan()
    ref = world.claim(gpu(0))
    response = world.kubelet.rpc(DRIVER, "NodePrepareResources", [key(ref)])
    assert list(response.claims) == [ref.uid]
    (device,) = response.claims[ref.uid].devices
    assert (device.pool_name, device.device_name, list(device.request_names)) == ("node-a", gpu(0), ["gpu"])
    assert list(device.cdi_device_ids) == [f"cgpu.kata-gpu.dev/claim={ref.uid}-{gpu(0)}"]
    written = parse_claim_file((world.tmp / "cdi" / file_name(ref.uid)).read_bytes(), ref.uid)
    assert written.devices == {gpu(0): ("/dev/vfio/devices/vfio0",)}


@numbered("dra-015")
def test_each_claim_of_a_batch_has_its_answer(world: World, case: None) -> None:
    world.serve()
    world.kubelet.scan()
    refs = [world.claim(gpu(0)), ClaimRef(namespace="default", name="no-such", uid="u-2"), world.claim(gpu(1))]
    with pytest.raises(KubeletError, match=r"default/no-such: api-404"):
        world.kubelet.prepare("pod", [key(r) for r in refs], DRIVER)
    assert [world.kubelet.claims[r.uid].prepared for r in refs] == [True, False, True]


@numbered("dra-016")
def test_repeating_changes_nothing(world: World, case: None) -> None:
    ref = world.claim(gpu(0), gpu(1))
    first = world.prepare(ref)
    path = world.tmp / "cdi" / file_name(ref.uid)
    before, gets = path.stat(), world.api.store.requests["get", "resourceclaims"]
    world.host.writes.clear()
    assert world.prepare(ref) == first
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert world.host.writes == []
    assert world.api.store.requests["get", "resourceclaims"] == gets


def unallocated(world: World) -> ClaimRef:
    made = world.api.store.create(
        CLAIMS, "default", {"metadata": {"name": "raw"}, "spec": {"devices": {"requests": [REQUEST]}}}
    )
    return ClaimRef(namespace="default", name="raw", uid=made["metadata"]["uid"])


REFUSED = [
    pytest.param(
        lambda w: ClaimRef(namespace="default", name=w.claim(gpu(0)).name, uid="other"),
        "claim-replaced",
        id="dra-017",
        marks=pytest.mark.envtest,
    ),
    pytest.param(unallocated, "claim-not-allocated", id="dra-018", marks=pytest.mark.envtest),
    pytest.param(
        lambda w: ClaimRef(namespace="default", name="absent", uid="u"),
        "api-404",
        id="dra-019",
        marks=pytest.mark.envtest,
    ),
    pytest.param(lambda w: w.claim(gpu(0), pods=2), "claim-shared", id="dra-026", marks=pytest.mark.envtest),
    pytest.param(lambda w: w.claim("gpu-0000-ff-00-0"), "device-unknown", id="dra-027"),
]


@pytest.mark.parametrize(("make", "code"), REFUSED)
def test_refused_without_side_effect(world: World, make: Any, code: str) -> None:
    ref = make(world)
    with pytest.raises(KataGpuError) as caught:
        world.prepare(ref)
    assert caught.value.code == code
    assert world.store.load().claims == ()
    assert world.host.writes == []
    assert world.files() == []


@pytest.mark.envtest
@numbered("dra-020")
def test_api_down_is_an_error_in_time_and_prepared_claims_need_no_api(world: World, case: None) -> None:
    ready, late = world.claim(gpu(0)), world.claim(gpu(1))
    first = world.prepare(ready)
    world.api.go_down()
    with pytest.raises(Unavailable) as caught:
        world.prepare(late)
    assert caught.value.code == "api-unreachable"
    assert world.store.load().entry(late.uid) is None
    assert world.prepare(ready) == first
    world.api.down = False
    assert world.prepare(late)[0].device == gpu(1)


@pytest.mark.envtest
@numbered("dra-021")
def test_results_of_other_drivers_are_left_alone(world: World, case: None) -> None:
    nic = {"request": "nic", "driver": "nic.example.com", "pool": "node-a", "device": "nic0"}
    configs = [config("FromClass", requireMode="on"), config("FromClaim", driver="nic.example.com", mtu=9000)]
    ref = world.claim(gpu(0), configs=configs, others=[nic])
    assert [d.device for d in world.prepare(ref)] == [gpu(0)]


@numbered("dra-022")
def test_sub_request_is_reported_by_its_base_name(world: World, case: None) -> None:
    (device,) = world.prepare(world.claim(gpu(0), request="gpu/big"))
    assert device.request == "gpu"


@numbered("dra-023")
def test_admin_access_gets_no_lock_and_no_node(world: World, case: None) -> None:
    admin, user = world.claim(gpu(0), adminAccess=True), world.claim(gpu(0))
    (device,) = world.prepare(admin)
    assert (device.cdi_id, device.addresses) == ("", ())
    assert world.files() == []
    assert world.prepare(user)[0].cdi_id
    world.unprepare(admin)
    assert world.store.load().holder(address(0)) is not None


@numbered("dra-024")
def test_double_allocation_is_refused_naming_the_holder(world: World, case: None) -> None:
    first, second = world.claim(gpu(0)), world.claim(gpu(0))
    world.prepare(first)
    with pytest.raises(InUse) as caught:
        world.prepare(second)
    assert caught.value.got == str(first)
    world.unprepare(first)
    assert world.prepare(second)[0].device == gpu(0)


@pytest.mark.parametrize(
    "same", [pytest.param(False, id="dra-025-different-gpus"), pytest.param(True, id="dra-025-same-claim")]
)
def test_concurrent_calls(world: World, same: bool) -> None:
    refs = [world.claim(gpu(0))] * 2 if same else [world.claim(gpu(0)), world.claim(gpu(1))]
    preparer = world.preparer()
    answers: list[Any] = [None, None]

    def work(index: int) -> None:
        answers[index] = preparer.prepare(refs[index], Deadline.after(40))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert [a[0].device for a in answers] == [gpu(0), gpu(0 if same else 1)]
    assert len(world.files()) == (1 if same else 2)


@numbered("dra-028")
def test_a_device_removed_before_prepare(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.host.remove(address(0))
    with pytest.raises(Unavailable, match=gpu(0)):
        world.prepare(ref)
    assert world.changes  # the publisher is told, the device leaves the pool


def foreign_nic(world: World) -> None:
    nic = world.host.add(0x18, group=0)
    world.host.change(nic, vendor=0x8086, device=0x1572, class_code=0x020000, driver="i40e", vfio_cdev=None)


def no_iommufd(world: World) -> None:
    world.host.iommufd = False


HOST_REFUSES = [
    pytest.param(lambda w: w.host.modes.update({address(0): CcMode.OFF}), "mode-differs", "off", id="dra-029-off"),
    pytest.param(lambda w: w.host.modes.update({address(0): None}), "mode-differs", "unknown", id="dra-029-unreadable"),
    pytest.param(foreign_nic, "group-foreign", "0000:18:00.0", id="dra-030"),
    pytest.param(no_iommufd, "iommufd-missing", "", id="dra-031"),
    pytest.param(
        lambda w: w.host.open_by.update({address(0): ("qemu[77]",)}), "device-open", "qemu[77]", id="dra-049-prepare"
    ),
]


@pytest.mark.parametrize(("break_host", "code", "got"), HOST_REFUSES)
def test_an_unfit_device_is_refused_before_any_write(world: World, break_host: Any, code: str, got: str) -> None:
    ref = world.claim(gpu(0))
    break_host(world)
    with pytest.raises(KataGpuError) as caught:
        world.prepare(ref)
    assert caught.value.code == code
    assert got in caught.value.got
    assert (world.host.writes, world.store.load().claims, world.files()) == ([], (), [])


@pytest.mark.parametrize(
    "driver", [pytest.param(d, id=f"dra-032-{d or 'unbound'}") for d in ("nvidia", "nouveau", None)]
)
def test_a_device_on_another_driver_is_bound_and_checked_again(world: World, driver: str | None) -> None:
    ref = world.claim(gpu(0))
    world.host.unbind(address(0), driver)
    world.prepare(ref)
    assert world.host.writes == [f"bind {address(0)}"]
    assert world.host.functions[address(0)].driver == "vfio-pci"
    assert b"/dev/vfio/devices/vfio8" in (world.cdi.read(file_name(ref.uid)) or b"")


@numbered("dra-033")
def test_a_wedged_unbind_keeps_the_intent_and_the_retry_goes_on(world: World, case: None) -> None:
    ref = world.claim(gpu(0))
    world.host.unbind(address(0), "nvidia")
    world.host.bind_error[address(0)] = wedged(address(0))
    with pytest.raises(TimedOut):
        world.prepare(ref)
    entry = world.store.load().entry(ref.uid)
    assert entry is not None
    assert entry.state == "preparing"
    with pytest.raises(InUse):
        world.prepare(world.claim(gpu(0)))
    world.host.bind_error.clear()
    assert world.prepare(ref)[0].device == gpu(0)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(busy(address(0)), id="dra-034"),
        pytest.param(RolledBack("vfio-node", "no /dev/vfio/devices node within 5 s", where=address(0)), id="dra-035"),
    ],
)
def test_a_refused_bind_leaves_nothing_behind(world: World, error: KataGpuError) -> None:
    ref = world.claim(gpu(1), gpu(0))
    world.host.unbind(address(0), "nvidia")
    world.host.bind_error[address(0)] = error
    with pytest.raises(RolledBack):
        world.prepare(ref)
    assert world.store.load().claims == ()
    assert world.files() == []
    world.host.bind_error.clear()
    assert len(world.prepare(ref)) == 2


BAD_CONFIG: list[Any] = [
    pytest.param(config("FromClaim", color="red"), "config-field", id="dra-036-unknown-field"),
    pytest.param(config("FromClaim", kind="Other"), "config-kind", id="dra-036-unknown-kind"),
    pytest.param(config("FromClaim", requireMode="always"), "config-value", id="dra-036-bad-mode"),
    pytest.param(config("FromClaim", ppcie="true"), "config-value", id="dra-036-bad-type"),
    pytest.param(config("FromClaim", resetPolicy="onError"), "config-class-only", id="dra-036-tenant-waives-reset"),
    pytest.param(config("FromClaim", apiDevice=True), "config-class-only", id="dra-036-tenant-takes-iommufd"),
    pytest.param(config("FromNowhere", ppcie=True), "config-source", id="dra-036-unknown-source"),
]


@pytest.mark.parametrize(("row", "code"), BAD_CONFIG)
def test_bad_configuration_is_refused(world: World, row: dict[str, Any], code: str) -> None:
    with pytest.raises(Malformed) as caught:
        world.prepare(world.claim(gpu(0), configs=[row]))
    assert caught.value.code == code
    assert world.store.load().claims == ()


@pytest.mark.parametrize(
    ("configs", "mode", "good"),
    [
        pytest.param([config("FromClaim", requireMode="devtools"), config("FromClass", requireMode="on")], CcMode.DEVTOOLS, True, id="dra-036-claim-over-class"),
        pytest.param([config("FromClass", requireMode="on"), config("FromClass", requireMode="devtools")], CcMode.DEVTOOLS, True, id="dra-036-later-over-earlier"),
        pytest.param([config("FromClass", requireMode="on"), config("FromClaim", resetPolicy="always")], CcMode.DEVTOOLS, False, id="dra-036-fieldwise"),
        pytest.param([config("FromClass", requireMode="on", requests=["other"])], CcMode.OFF, True, id="dra-036-other-request"),
        pytest.param([config("FromClaim", driver="gpu.nvidia.com", anything=1)], CcMode.OFF, True, id="dra-036-wrong-driver-ignored"),
    ],
)  # fmt: skip
def test_configurations_merge(world: World, configs: list[dict[str, Any]], mode: CcMode, good: bool) -> None:
    world.host.modes[address(0)] = mode
    ref = world.claim(gpu(0), configs=configs)
    if good:
        assert world.prepare(ref)
    else:
        with pytest.raises(Misconfigured, match="mode"):
            world.prepare(ref)


@numbered("dra-037")
def test_an_exhausted_deadline_is_an_error_and_leaves_a_consistent_state(world: World, case: None) -> None:
    clock = [0.0]
    ref = world.claim(gpu(0))

    class Slow:
        """Every look at the host takes 30 s."""

        def __getattr__(self, name: str) -> Any:
            def slow(*args: Any, **kwargs: Any) -> Any:
                clock[0] += 30
                return getattr(world.host, name)(*args, **kwargs)

            return slow

    world.host.unbind(address(0))
    with pytest.raises(TimedOut):
        world.preparer(devices=Slow()).prepare(ref, Deadline.after(43, lambda: clock[0]))
    assert world.host.writes == []
    assert world.prepare(ref)[0].device == gpu(0)
    assert len(world.store.load().claims) == 1


@numbered("dra-043")
def test_a_missing_cdi_directory_is_created(world: World, case: None) -> None:
    assert not (world.tmp / "cdi").exists()
    ref = world.claim(gpu(0))
    world.prepare(ref)
    assert (world.tmp / "cdi").stat().st_mode & 0o777 == 0o755
    assert [claim_of(n) for n in world.files()] == [ref.uid]


@numbered("dra-043-not-a-directory")
def test_an_impossible_cdi_directory_is_a_clear_error(world: World, case: None) -> None:
    (world.tmp / "cdi").write_text("in the way")
    ref = world.claim(gpu(0))
    with pytest.raises(Unavailable) as caught:
        world.prepare(ref)
    assert caught.value.code == "cdi-write"
    entry = world.store.load().entry(ref.uid)
    assert entry is None or entry.state == "preparing"
    (world.tmp / "cdi").unlink()
    assert world.prepare(ref)[0].device == gpu(0)


class Full:
    """A disk that is full: the n-th write, fsync or rename below a directory fails, as do all after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, after: int) -> None:
        self.left = after
        real = getattr(os, call)

        def full(*args: Any, **kwargs: Any) -> Any:
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.left -= 1
            return real(*args, **kwargs)

        monkeypatch.setattr(os, call, full)


@pytest.mark.parametrize("call", [pytest.param(c, id=f"dra-041-{c}") for c in ("write", "fsync", "rename")])
def test_a_full_disk_at_the_cdi_file(world: World, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = world.claim(gpu(0))

    class Cdi(ClaimCdiDir):
        """Full as soon as a CDI file is written."""

        def write(self, name: str, content: bytes) -> None:
            with monkeypatch.context() as patch:
                Full(patch, call, 0)
                super().write(name, content)

    with pytest.raises(Unavailable, match="No space left"):
        world.prepare(ref, cdi=Cdi(world.tmp / "cdi"))
    assert world.files() == []
    assert world.store.load().claims == ()
    assert world.prepare(ref)[0].device == gpu(0)


@pytest.mark.parametrize("call", [pytest.param(c, id=f"dra-042-{c}") for c in ("write", "fsync", "rename")])
def test_a_full_disk_at_the_checkpoint_comes_before_any_hardware_action(
    world: World, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = world.claim(gpu(0))
    world.host.unbind(address(0), "nvidia")
    with monkeypatch.context() as patch:
        Full(patch, call, 0)
        with pytest.raises(Unavailable, match="No space left"):
            world.prepare(ref)
    assert (world.host.writes, world.files()) == ([], [])
    assert sorted(p.name for p in (world.root / "plugins" / DRIVER).iterdir()) == ["serialize.lock"]
    assert world.prepare(ref)[0].device == gpu(0)


@numbered("dra-024-group-and-member")
def test_a_ppcie_group_and_its_member_exclude_each_other(world: World, case: None) -> None:
    world.host.__init__(gpus=2, switches=1, mode=CcMode.PPCIE)  # type: ignore[misc]
    group, single = world.claim("ppcie-0", mode="ppcie"), world.claim(gpu(0), mode="ppcie")
    with pytest.raises(Misconfigured, match="as a whole"):
        world.prepare(single)
    (held,) = world.prepare(group)
    assert held.addresses == (address(0), address(1), "0000:05:00.0")
    assert held.cdi_id == device_id(group.uid, "ppcie-0")
    nodes = parse_claim_file(world.cdi.read(file_name(group.uid)) or b"", group.uid).devices["ppcie-0"]
    assert len(nodes) == 3
    with pytest.raises(InUse):
        world.prepare(single)


@numbered("dra-017-hostile-uid")
def test_a_uid_that_is_a_path_never_reaches_the_disk(world: World, case: None) -> None:
    world.serve()
    world.kubelet.scan()
    response = world.kubelet.rpc(DRIVER, "NodePrepareResources", [ClaimKey("default", "x", "../../etc/passwd")])
    assert response.claims["../../etc/passwd"].error.startswith("claim-uid:")
