"""The in-use guard: every kind of holder is seen and named, and nothing is written while there is one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kata_gpu.core.gpu import CcMode
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import InUse, RebootNeeded, TimedOut, Unavailable
from kata_gpu.host.guard import Guard
from kata_gpu.host.owners import find_owners
from kata_gpu.host.simkernel.machine import Machine, Process
from kata_gpu.host.simkernel.presets import hgx_h100, mixed
from kata_gpu.host.vfio_device import VfioSession
from kata_gpu.ops import setup
from kata_gpu.ops.gc import collect
from kata_gpu.ops.node import observe_node
from kata_gpu.ops.node_devices import HostDevices
from kata_gpu.ops.observe import observe
from kata_gpu.ops.status import status
from tests.kata_gpu.node.conftest import OFF, ON, World

Make = Callable[[Machine], World]
GPU = "0000:17:00.0"
POD = "7d0c1f3e-2b4a-4c5d-8e6f-0a1b2c3d4e5f"
CGROUP = f"/kubepods/burstable/pod{POD.replace('-', '_')}/kata_x"
QEMU = ["/opt/kata/bin/qemu-system-x86_64", "-name", "sandbox-0123456789abcdef"]


@pytest.fixture
def world(make_world: Make) -> World:
    """A small board, set up."""
    world = make_world(hgx_h100(gpus=2, switches=1))
    setup.setup(world.node, ON)
    return world


def _hold(world: World, kind: str, *, bound: bool) -> None:
    function = world.machine.functions[GPU]
    target = str(function.group) if kind == "group" else GPU
    world.kernel.hold(4242, kind, target, cmdline=QEMU, cgroup=CGROUP, bound=bound)


@pytest.mark.parametrize(
    ("kind", "bound", "how"),
    [
        pytest.param("group", False, "/dev/vfio/", id="group-open"),
        pytest.param("group", True, "/dev/vfio/", id="group-attached"),
        pytest.param("cdev", False, "/dev/vfio/devices/vfio", id="cdev-open-only"),
        pytest.param("cdev", True, "/dev/vfio/devices/vfio", id="cdev-bound"),
        pytest.param("device", True, "anon_inode:[vfio-device]", id="device-file-only"),
    ],
)
@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda w: setup.reset(w.node), id="reset"),
        pytest.param(lambda w: setup.setup(w.node, OFF), id="mode-change"),
        pytest.param(lambda w: setup.release(w.node, [w.node_gpu()]), id="release"),
    ],
)
def test_every_holder_is_refused_by_name(
    world: World, kind: str, bound: bool, how: str, act: Callable[[World], object]
) -> None:
    """Refused with pid, command and pod; nothing was written."""
    _hold(world, kind, bound=bound)
    before, log = world.snapshot(), len(world.kernel.log)
    with pytest.raises(InUse) as error:
        act(world)
    assert error.value.exit_code == 3
    assert "process 4242 (/opt/kata/bin/qemu-system-x86_64" in str(error.value)
    assert POD in str(error.value)
    assert how in str(error.value)
    assert world.snapshot() == before
    assert len(world.kernel.log) == log


def test_other_devices_can_still_change(world: World) -> None:
    """A VM on one GPU does not keep another GPU from being released."""
    _hold(world, "group", bound=True)
    other = next(d.function.address for d in observe(world.kernel).gpus if str(d.function) != GPU)
    setup.release(world.node, [other])
    assert world.machine.functions[str(other)].driver is None
    assert world.machine.functions[GPU].driver == "vfio-pci"


def test_a_held_device_that_needs_no_change_is_no_obstacle(world: World) -> None:
    _hold(world, "cdev", bound=True)
    assert setup.setup(world.node, ON).plan.actions == ()
    report = status(world.node)
    assert report.state == "settled"
    assert [h.pid for h in report.holders[observe(world.kernel).gpus[0].function.address]] == [4242]


def test_kubelet_allocation_counts(world: World) -> None:
    gpu = observe(world.kernel).gpus[0].function
    guard = Guard(world.kernel, own_pid=1, allocated=lambda: {gpu.address: "team-a/train-0"})
    with pytest.raises(InUse, match="kubelet's allocation of pod team-a/train-0"):
        guard.require_free([gpu])


def test_an_allocation_after_the_start_of_a_command_counts(world: World) -> None:
    """Between kubelet's allocation and QEMU's open no file is open: kubelet is asked at the very moment."""
    gpu = observe(world.kernel).gpus[0].function.address
    given: dict[PciAddress, str] = {}
    node = replace(world.node, allocated=lambda: dict(given))
    given[gpu] = "team-a/train-0"
    before, log = world.snapshot(), len(world.kernel.log)
    acts: tuple[Callable[[], object], ...] = (
        lambda: setup.release(node, [gpu]),
        lambda: setup.reset(node),
        lambda: setup.setup(node, OFF),
    )
    for act in acts:
        with pytest.raises(InUse, match="kubelet's allocation of pod team-a/train-0"):
            act()
    assert world.snapshot() == before
    assert len(world.kernel.log) == log
    given.clear()
    setup.release(node, [gpu])
    assert world.machine.functions[GPU].driver is None


def test_the_claim_path_serves_what_kubelet_allocated(make_world: Make) -> None:
    """A claim's device is bound for its pod, and looked at and reset after it, while kubelet lists the pod."""
    world = make_world(hgx_h100(gpus=1, switches=0))
    gpu = observe(world.kernel).gpus[0].function.address
    devices = HostDevices(replace(world.node, allocated=lambda: {gpu: "team-a/train-0"}))
    devices.bind(str(gpu), deadline_s=10)
    assert world.machine.functions[GPU].driver == "vfio-pci"
    assert devices.holders(devices.observe(), [str(gpu)]) == {}


@pytest.mark.parametrize("logs", ["/var/log/pods", "/proc/1/root/var/log/pods"])
def test_pod_names_replace_uids(world: World, logs: str) -> None:
    _hold(world, "group", bound=True)
    with world.kernel.edit() as machine:
        machine.files[f"{logs}/team-a_train-0_{POD}/main/0.log"] = ""
    gpu = observe(world.kernel).gpus[0].function
    with pytest.raises(InUse, match="of pod team-a/train-0 by /dev/vfio/"):
        Guard(world.kernel, own_pid=1).require_free([gpu])


def test_a_command_line_cannot_play_with_the_terminal(world: World) -> None:
    function = world.machine.functions[GPU]
    world.kernel.hold(4242, "group", str(function.group), cmdline=["qemu", "\x1b[2J\nerror: all is well"])
    with pytest.raises(InUse) as error:
        setup.reset(world.node)
    assert str(error.value).isprintable()
    assert "qemu" in str(error.value)


def test_mapping_without_descriptor_is_seen(world: World) -> None:
    """A process may have closed every file and still map a BAR."""
    _hold(world, "device", bound=True)
    with world.kernel.edit() as machine:
        machine.processes[5555] = Process(pid=5555, comm="vmm", cmdline=["vmm"], maps_device=True)
        machine.handles[-1].pid = 1
    gpu = observe(world.kernel).gpus[0].function
    with pytest.raises(InUse, match="process 5555"):
        Guard(world.kernel, own_pid=1).require_free([gpu])


@pytest.mark.parametrize(
    ("files", "mapped"),
    [
        pytest.param([], ["/dev/vfio/devices/vfio1"], id="cdev-mapped-and-closed"),
        pytest.param([], ["/dev/vfio/devices/vfio1 (deleted)"], id="mapped-and-node-made-anew"),
        pytest.param(["/srv/jail/vm0/dev/vfio/devices/vfio1"], [], id="jail"),
        pytest.param(["/dev/vfio/devices/vfio1 (deleted)"], [], id="node-made-anew"),
    ],
)
def test_names_that_a_holder_may_go_by(world: World, files: list[str], mapped: list[str]) -> None:
    """Only its path tells of a cdev that is open: the path in another root, or of a node that is gone."""
    with world.kernel.edit() as machine:
        machine.processes[5555] = Process(pid=5555, comm="vmm", cmdline=["vmm"], files=files, mapped=mapped)
    first, second = (d.function for d in observe(world.kernel).gpus)
    assert first.vfio_cdev == "vfio1"
    with pytest.raises(InUse, match=r"process 5555 \(vmm\) by /dev/vfio/devices/vfio1$"):
        Guard(world.kernel, own_pid=1).require_free([first])
    Guard(world.kernel, own_pid=1).require_free([second])


def test_nvidia_driver_users_block_its_unbind(make_world: Make) -> None:
    """Unbinding nvidia.ko with a user never returns, and ending the user afterwards does not help."""
    machine = mixed()
    machine.modules.append("nvidia")
    machine.drivers.append("nvidia")
    for address in (GPU, "0000:3d:00.0"):
        machine.functions[address].driver = "nvidia"
    machine.nodes["/dev/nvidia0"] = "char-device"
    world = make_world(machine)
    with world.kernel.edit() as edited:
        edited.processes[77] = Process(
            pid=77, comm="nvidia-persiste", cmdline=["nvidia-persistenced"], files=["/dev/nvidia0"]
        )
    with pytest.raises(InUse, match="nvidia-persistenced"):
        setup.setup(world.node, ON)
    assert machine.functions[GPU].driver == "nvidia"


def test_looking_opens_nothing(world: World) -> None:
    """`status` must not make a VM fail that opens its group at the same instant."""

    class NoOpen:
        def __getattr__(self, name: str) -> object:
            assert name != "open", "a command that only looks opened a VFIO node"
            return getattr(world.kernel, name)

    guard = Guard(NoOpen(), own_pid=1)  # type: ignore[arg-type]
    assert not any(guard.holders(d.function for d in observe(world.kernel).devices).values())
    with pytest.raises(AssertionError, match="opened a VFIO node"):
        guard.require_free(d.function for d in observe(world.kernel).devices)


class Blind:
    """The simulated kernel, with one kind of look failing."""

    def __init__(self, world: World, look: str, answer: Callable[[str], Any]) -> None:
        self._kernel, self._look, self._answer = world.kernel, look, answer

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._kernel, name)
        if name != self._look:
            return real

        def look(path: str, **kwargs: Any) -> Any:
            answer = self._answer(path)
            if isinstance(answer, Exception):
                raise answer
            return real(path, **kwargs) if answer is None else answer

        return look


def _denied(fragment: str) -> Callable[[str], PermissionError | None]:
    return lambda path: PermissionError(13, "Permission denied", path) if fragment in path else None


@pytest.mark.parametrize(
    ("look", "answer", "code"),
    [
        pytest.param("listdir", _denied("/proc/4242/fd"), "guard-permission", id="descriptors-listed"),
        pytest.param("readlink", _denied("/proc/4242/fd/"), "guard-permission", id="descriptors-followed"),
        pytest.param("read", _denied("/proc/4242/maps"), "guard-permission", id="mappings"),
        pytest.param(
            "read", lambda p: OSError(5, "I/O error", p) if p.endswith("/maps") else None, "guard-permission",
            id="mappings-unreadable",
        ),
        pytest.param(
            "read", lambda p: b"x" * (1 << 26) if p.endswith("/maps") else None, "guard-maps", id="mappings-cut"
        ),
        pytest.param("listdir", _denied("/proc"), "guard-proc", id="processes"),
        pytest.param(
            "readlink", lambda p: "pid:[4026532281]" if p == "/proc/self/ns/pid" else None, "guard-pid-namespace",
            id="container",
        ),
        pytest.param("readlink", _denied("/proc/self/ns/pid"), "guard-pid-namespace", id="namespace-unreadable"),
    ],
)  # fmt: skip
def test_guard_that_cannot_see_refuses(world: World, look: str, answer: Callable[[str], Any], code: str) -> None:
    """A holder that may be there and is not seen: nothing may be changed. The cdev is only open, so no probe tells."""
    _hold(world, "cdev", bound=False)
    gpu = observe(world.kernel).gpus[0].function
    blind: Any = Blind(world, look, answer)
    with pytest.raises(Unavailable) as error:
        Guard(blind, own_pid=1).require_free([gpu])
    assert error.value.code == code


@pytest.mark.parametrize("path", ["/proc/4242/fd", "/proc/4242/fd/", "/proc/4242/maps"])
def test_a_process_that_ends_meanwhile_holds_nothing(world: World, path: str) -> None:
    with world.kernel.edit() as machine:
        machine.processes[4242] = Process(pid=4242, comm="x", cmdline=["x"], files=["/dev/null"])
    gpu = observe(world.kernel).gpus[0].function
    for look in ("listdir", "readlink", "read"):
        gone: Any = Blind(world, look, lambda p: ProcessLookupError(3, "No such process", p) if path in p else None)
        Guard(gone, own_pid=1).require_free([gpu])


def test_frozen_entries_of_running_pods(world: World) -> None:
    """A CDI entry whose device is in use is not rewritten by a collection."""
    _hold(world, "cdev", bound=True)
    name = "cgpu.kata-gpu.dev-gpu.json"
    before = world.node.cdi.get(name)
    assert before is not None
    world.node.cdi.put(name, before.replace(b"/dev/vfio/devices/vfio1", b"/dev/vfio/devices/vfio77"))
    broken = world.node.cdi.get(name)
    assert collect(world.node, dry_run=False).stale == {}
    assert world.node.cdi.get(name) == broken
    world.kernel.drop(4242)
    assert list(collect(world.node, dry_run=False).stale) == ["gpu-0000-17-00-0"]
    assert b"vfio77" not in (world.node.cdi.get(name) or b"")


def test_orphans_are_named(world: World) -> None:
    """A QEMU whose sandbox directory is gone holds the GPU for ever."""
    _hold(world, "cdev", bound=True)
    assert [h.pid for h in collect(world.node, dry_run=True).orphans.values()] == [4242]
    with world.kernel.edit() as machine:
        machine.files["/run/vc/sbs/0123456789abcdef/state"] = "running"
    assert not collect(world.node, dry_run=True).orphans


@pytest.mark.parametrize(
    ("cmdline", "pod", "owner"),
    [
        pytest.param(["python3", "/usr/bin/k8s-cc-manager"], "", "NVIDIA cc-manager", id="cc-manager"),
        pytest.param(
            ["/usr/bin/python3.12", "main.py"], "nvidia-cc-manager-x7k2p", "NVIDIA cc-manager", id="cc-manager-pod"
        ),
        pytest.param(["vfio-manage", "bind", "--all"], "", "NVIDIA vfio-manager", id="vfio-manager"),
        pytest.param(
            ["sleep", "infinity"], "nvidia-vfio-manager-2b9fw", "NVIDIA vfio-manager", id="vfio-manager-asleep"
        ),
        pytest.param(["/usr/bin/nvidia-sandbox-device-plugin"], "", "NVIDIA sandbox device plugin", id="device-plugin"),
        pytest.param(
            ["plugin"], "kata-device-plugin-9xk2c", "NVIDIA sandbox device plugin", id="kata-device-plugin-pod"
        ),
        pytest.param(["gpu-kubelet-plugin"], "", "NVIDIA DRA driver (passthrough)", id="dra"),
    ],
)
def test_other_managers_are_refused_by_name(world: World, cmdline: list[str], pod: str, owner: str) -> None:
    with world.kernel.edit() as machine:
        machine.processes[500] = Process(pid=500, comm="x", cmdline=cmdline, cgroup=CGROUP if pod else "/")
        if pod:
            machine.files[f"/var/log/pods/gpu-operator_{pod}_{POD}/c/0.log"] = ""
    with pytest.raises(InUse) as error:
        setup.setup(world.node, OFF)
    assert error.value.what == f"{owner} manages the devices of this node"
    assert pod in error.value.got
    assert status(world.node).reason.startswith(owner)
    assert world.modes()[GPU] == 1
    assert CcMode.ON in {d.cc_mode for d in status(world.node).inventory.devices}


@pytest.mark.parametrize(
    ("cmdline", "cgroup"),
    [
        pytest.param(["vim", "cc-manager"], "/", id="editor"),
        pytest.param(["grep", "vfio-manage"], "/", id="grep"),
        pytest.param(["python3", "main.py"], "/", id="some-python"),
        pytest.param(["sleep", "9"], "/kubepods/pod00000000-0000-4000-8000-000000000000/x", id="another-pod"),
    ],
)
def test_who_is_no_manager(world: World, cmdline: list[str], cgroup: str) -> None:
    """A name among arguments is not a program, and the logs of a pod that has ended are not a manager."""
    with world.kernel.edit() as machine:
        machine.processes[500] = Process(pid=500, comm="x", cmdline=cmdline, cgroup=cgroup)
        machine.files[f"/var/log/pods/gpu-operator_nvidia-vfio-manager-2b9fw_{POD}/c/0.log"] = ""
    assert find_owners(world.kernel) == {}


def test_reset_leaves_what_somebody_else_bound(make_world: Make) -> None:
    """vfio-pci.ids= or driverctl bound it: it is not ours to take from there."""
    machine = hgx_h100(gpus=2, switches=0)
    theirs = machine.functions["0000:3d:00.0"]
    theirs.driver, theirs.override, theirs.cdev = "vfio-pci", "vfio-pci", 0
    world = make_world(machine)
    gpu = observe(world.kernel).gpus[0].function.address
    setup.bind(world.node, [gpu])
    outcome = setup.reset(world.node)
    assert {str(a) for a in outcome.plan.touched} == {str(gpu)}
    assert outcome.plan.notes == ("0000:3d:00.0: on vfio-pci and not by us, left alone (`kata-gpu release` takes it)",)
    assert (theirs.driver, theirs.override) == ("vfio-pci", "vfio-pci")
    assert world.machine.functions[GPU].driver is None


def test_a_cdev_that_is_not_there_is_said(world: World) -> None:
    gpu = replace(observe(world.kernel).gpus[0].function, vfio_cdev=None)
    with VfioSession(world.kernel, iommufd=True) as session, pytest.raises(Unavailable) as error:
        session.open([gpu])
    assert error.value.code == "no-cdev"


@pytest.mark.parametrize("profile", ["debian-6.12", "ubuntu-6.17"], ids=["override-reads", "override-read-blocks"])
@pytest.mark.parametrize("kind", ["group", "cdev"])
def test_status_of_a_blocked_unbind_names_the_holder(make_world: Make, profile: str, kind: str) -> None:
    """Another agent unbinds a GPU that a VM holds: it looks free, is not, and nothing more is written to it."""
    world = make_world(hgx_h100(profile, gpus=2, switches=0))
    setup.setup(world.node, ON)
    _hold(world, kind, bound=True)
    if kind == "group":
        world.kernel.hold(4242, "device", GPU, cmdline=QEMU, cgroup=CGROUP, bound=True)
    with pytest.raises(TimedOut):
        world.kernel.write("/sys/bus/pci/drivers/vfio-pci/unbind", GPU.encode(), deadline_s=1)
    report = status(world.node)
    assert report.state == "degraded"
    assert "its unbind waits for process 4242" in report.reason
    assert [h.pid for h in report.holders[world.node_gpu()]] == [4242]
    writes = world.machine.writes
    with pytest.raises(RebootNeeded, match="4242"):
        setup.setup(world.node, ON)
    assert world.machine.writes == writes
    world.kernel.drop(4242)
    setup.setup(world.node, ON)
    assert status(world.node).state == "settled"


def test_a_wedge_is_not_over_where_nobody_can_tell(world: World) -> None:
    """Processes cannot be listed: the device stays wedged, and planning refuses it."""
    boot = observe(world.kernel).boot_id
    gpu = observe(world.kernel).gpus[0].function.address
    world.node.journal.set_wedged(boot, {gpu: "an unbind never returned"})
    with world.kernel.edit() as machine:
        machine.functions[GPU].driver = None
    blind: Any = Blind(world, "listdir", lambda p: OSError(5, "I/O error", p) if p == "/proc" else None)
    assert gpu in observe_node(replace(world.node, host=blind)).wedged
    assert gpu not in observe_node(world.node).wedged
