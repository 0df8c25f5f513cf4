"""The in-use guard: every kind of holder is seen and named, and nothing is written while there is one."""

from collections.abc import Callable

import pytest

from kata_gpu.core.gpu import CcMode
from kata_gpu.errors import InUse, Unavailable
from kata_gpu.host.guard import Guard
from kata_gpu.host.simkernel.machine import Machine, Process
from kata_gpu.host.simkernel.presets import hgx_h100, mixed
from kata_gpu.ops import setup
from kata_gpu.ops.gc import collect
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
    guard = Guard(world.kernel, own_pid=1, allocated={gpu.address: "team-a/train-0"})
    with pytest.raises(InUse, match="kubelet's allocation of pod team-a/train-0"):
        guard.require_free([gpu])


def test_pod_names_replace_uids(world: World) -> None:
    _hold(world, "group", bound=True)
    gpu = observe(world.kernel).gpus[0].function
    guard = Guard(world.kernel, own_pid=1, pods={POD: "team-a/train-0"})
    with pytest.raises(InUse, match="of pod team-a/train-0 by /dev/vfio/"):
        guard.require_free([gpu])


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


def test_guard_that_cannot_see_refuses(world: World) -> None:
    """Without permission to look into other processes nothing may be changed."""

    class Blind:
        def __getattr__(self, name: str) -> object:
            return getattr(world.kernel, name)

        def listdir(self, path: str) -> list[str]:
            if path.startswith("/proc/"):
                raise PermissionError(13, "EACCES", path)
            return world.kernel.listdir(path)

    with world.kernel.edit() as machine:
        machine.processes[9] = Process(pid=9, comm="x", cmdline=["x"])
    with pytest.raises(Unavailable, match="cannot see who uses the devices"):
        Guard(Blind(), own_pid=1).require_free([observe(world.kernel).gpus[0].function])  # type: ignore[arg-type]


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
    ("cmdline", "owner"),
    [
        (["python3", "/usr/bin/k8s-cc-manager"], "NVIDIA cc-manager"),
        (["vfio-manage", "bind", "--all"], "NVIDIA vfio-manager"),
        (["/usr/bin/nvidia-sandbox-device-plugin"], "NVIDIA sandbox device plugin"),
        (["gpu-kubelet-plugin"], "NVIDIA DRA driver (passthrough)"),
    ],
    ids=["cc-manager", "vfio-manager", "sandbox-device-plugin", "dra"],
)
def test_other_managers_are_refused_by_name(world: World, cmdline: list[str], owner: str) -> None:
    with world.kernel.edit() as machine:
        machine.processes[500] = Process(pid=500, comm="x", cmdline=cmdline)
    with pytest.raises(InUse) as error:
        setup.setup(world.node, OFF)
    assert error.value.what == f"{owner} manages the devices of this node"
    assert status(world.node).reason.startswith(owner)
    assert world.modes()[GPU] == 1
    assert CcMode.ON in {d.cc_mode for d in status(world.node).inventory.devices}
