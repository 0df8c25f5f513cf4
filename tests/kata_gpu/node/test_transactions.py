"""Crash anywhere, fail anywhere: the node is as before or as after, never between, and status says which."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_gpu.core.gpu import CcMode
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import InUse, KataGpuError, LockedOutOfBand, RolledBack, TimedOut, Unavailable
from kata_gpu.host.simkernel.kernel import Crashed, SimKernel
from kata_gpu.host.simkernel.machine import Machine
from kata_gpu.host.simkernel.presets import hgx_b200, hgx_h100, mixed
from kata_gpu.ops import setup
from kata_gpu.ops.observe import observe
from kata_gpu.ops.recover import recover
from kata_gpu.ops.status import status
from tests.kata_gpu.node.conftest import OFF, ON, PPCIE, World

Make = Callable[[Machine], World]
EVERY = 9  # of the steps, one in so many with a process of its own; the first test has all of them


def _small(profile: str = "ubuntu-6.17") -> Machine:
    return hgx_h100(profile, gpus=2, switches=1)


def _devices(world: World) -> list[PciAddress]:
    return [d.function.address for d in observe(world.kernel).devices]


def _gpus(world: World) -> list[PciAddress]:
    return [d.function.address for d in observe(world.kernel).gpus]


PLANS: dict[str, tuple[Callable[[], Machine], NodePolicy | None, Callable[[World], object]]] = {
    "cold-to-on": (_small, None, lambda w: setup.setup(w.node, ON)),
    "cold-to-on-groups": (lambda: _small("debian-6.12"), None, lambda w: setup.setup(w.node, ON)),
    "cold-to-ppcie": (_small, None, lambda w: setup.setup(w.node, PPCIE)),
    "on-to-ppcie": (_small, ON, lambda w: setup.setup(w.node, PPCIE)),
    "ppcie-to-off": (_small, PPCIE, lambda w: setup.setup(w.node, OFF)),
    "on-to-reset": (_small, ON, lambda w: setup.reset(w.node)),
    "mixed-cold-to-on": (mixed, None, lambda w: setup.setup(w.node, ON)),
    "mixed-on-to-reset": (mixed, ON, lambda w: setup.reset(w.node)),
    "bind": (mixed, None, lambda w: setup.bind(w.node, _devices(w))),
    "release": (mixed, ON, lambda w: setup.release(w.node, _devices(w))),
    "mode": (_small, OFF, lambda w: setup.set_mode(w.node, _gpus(w), CcMode.DEVTOOLS)),
}


def _start(make_world: Make, name: str) -> tuple[World, Callable[[World], object]]:
    machine, first, act = PLANS[name]
    world = make_world(machine())
    if first is not None:
        setup.setup(world.node, first)
    return world, act


@pytest.mark.parametrize("name", PLANS)
def test_kill_after_every_step(make_world: Make, tmp_path: Path, name: str) -> None:
    """kill -9 before each write of a plan; then `recover`, or a run that recovers first."""
    start, act = _start(make_world, name)
    before = start.snapshot()
    world = start.clone(tmp_path / "whole")
    steps = world.machine.writes
    act(world)
    after, steps = world.snapshot(), world.machine.writes - steps
    assert before != after
    assert steps > 8
    outcomes = set()
    for k in range(steps):
        world = start.clone(tmp_path / f"step-{k}")
        world.machine.crash_after = world.machine.writes + k
        with pytest.raises(Crashed):
            act(world)
        world = world.restarted(world.kernel.crash())
        open_before = world.node.journal.open_transaction()
        assert (status(world.node).state == "between") is (open_before is not None)
        recover(world.node)
        found = world.snapshot()
        assert found in (before, after), f"between, after step {k}"
        report = status(world.node)
        assert report.state != "between"
        assert not report.stale
        if open_before is not None:
            assert found == before
            assert report.last["outcome"] == "undone"
        outcomes.add("before" if found == before else "after")
        act(world)
        assert world.snapshot() == after, f"not repaired, after step {k}"
    assert "before" in outcomes


@pytest.mark.parametrize("name", PLANS)
def test_sigkill_of_a_process(make_world: Make, tmp_path: Path, name: str) -> None:
    """The same with a process of its own, which the kernel kills, and only files left of it."""
    start, act = _start(make_world, name)
    before, began = start.snapshot(), start.machine.writes
    whole = start.clone(tmp_path / "whole")
    act(whole)
    after, steps = whole.snapshot(), whole.machine.writes - began
    for k in {*range(0, steps, EVERY), steps - 1}:
        base = tmp_path / f"step-{k}"
        world = start.clone(base)
        path = base / "host.sim"
        base.mkdir(exist_ok=True)
        world.machine.crash_after = began + k
        SimKernel.create(world.machine, path)
        pid = os.fork()
        if pid == 0:
            act(world.restarted(SimKernel(path=path)))
            os._exit(0)
        _, ended = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(ended)
        assert os.WTERMSIG(ended) == signal.SIGKILL
        kernel = SimKernel(path=path)
        kernel.machine.crash_after = None
        world = world.restarted(kernel)
        open_before = world.node.journal.open_transaction()
        assert (status(world.node).state == "between") is (open_before is not None)
        recover(world.node)
        found = world.snapshot()
        assert found == before if open_before is not None else found in (before, after)
        assert status(world.node).state != "between"


def test_kill_during_recovery(make_world: Make) -> None:
    """Recovery itself may be killed at every step."""
    world, act = _start(make_world, "on-to-ppcie")
    before = world.snapshot()
    for k in range(0, 40, 3):
        world, act = _start(make_world, "on-to-ppcie")
        world.machine.crash_after = world.machine.writes + 25
        with pytest.raises(Crashed):
            act(world)
        world = world.restarted(world.kernel.crash())
        world.machine.crash_after = world.machine.writes + k
        try:
            recover(world.node)
        except Crashed:
            world = world.restarted(world.kernel.crash())
            recover(world.node)
        assert world.snapshot() == before
        world.machine.crash_after = None


def test_reboot_in_the_middle(make_world: Make) -> None:
    """Bindings die with the boot, CC modes do not: recovery brings the modes back and leaves no binding behind."""
    for k in range(4, 60, 4):
        world, act = _start(make_world, "cold-to-ppcie")
        modes = world.modes()
        world.machine.crash_after = world.machine.writes + k
        try:
            act(world)
        except Crashed:
            pass
        else:
            break
        rebooted = world.restarted(world.kernel.crash().reboot())
        recover(rebooted.node)
        assert rebooted.modes() == modes
        assert rebooted.node.cdi.names() == []
        assert not any(f.driver == "vfio-pci" for f in rebooted.machine.functions.values())


def _rebooted_in_the_middle(make_world: Make) -> tuple[World, dict[str, int]]:
    """All modes are switched, the journal is open, and the machine starts again; with the modes that were before."""
    whole, act = _start(make_world, "cold-to-ppcie")
    act(whole)
    world, act = _start(make_world, "cold-to-ppcie")
    modes = world.modes()
    world.machine.crash_after = whole.machine.writes - 3
    with pytest.raises(Crashed):
        act(world)
    assert world.modes() != modes
    return world.restarted(world.kernel.crash().reboot()), modes


def test_kill_during_recovery_after_a_reboot(make_world: Make, tmp_path: Path) -> None:
    """Recovery lends itself the devices; killed at any step, the next one still knows where they were."""
    start, modes = _rebooted_in_the_middle(make_world)
    bindings = start.bindings()
    steps = start.clone(tmp_path / "whole")
    began = steps.machine.writes
    recover(steps.node)
    total = steps.machine.writes - began
    assert total > 20
    for k in range(total):
        world = start.clone(tmp_path / f"step-{k}")
        world.machine.crash_after = world.machine.writes + k
        with pytest.raises(Crashed):
            recover(world.node)
        world = world.restarted(world.kernel.crash())
        recover(world.node)
        assert world.modes() == modes
        assert world.bindings() == bindings, f"after step {k}"
        assert world.node.journal.open_transaction() is None


def test_a_failed_recovery_tells_its_first_error_and_gives_everything_back(make_world: Make) -> None:
    """One device refuses its mode and another one does not let go: the third is back, and the first reason is told."""
    world, modes = _rebooted_in_the_middle(make_world)
    bindings = world.bindings()
    first, stuck, third = (f for f in world.machine.functions.values() if f.chip is not None)
    assert first.chip is not None
    first.chip.faults["fsp"] = 0x55
    stuck.faults["unbind"] = "hang"
    with pytest.raises(KataGpuError) as error:
        recover(world.node)
    assert error.value.code == "fsp-refused"
    assert (first.driver, third.driver) == (None, None)
    assert world.node.journal.open_transaction() is not None
    assert list(map(str, world.node.journal.origins(world.machine.boot_id))) == [stuck.address]
    assert stuck.override == "vfio-pci"
    stuck.faults.clear()
    stuck.pending = ""
    first.chip.faults.clear()
    recover(world.node)
    assert world.bindings() == bindings
    assert world.modes() == modes


@pytest.mark.parametrize("name", PLANS)
def test_second_run_writes_nothing(make_world: Make, name: str) -> None:
    world, act = _start(make_world, name)
    act(world)
    writes, log = world.machine.writes, len(world.kernel.log)
    act(world)
    assert (world.machine.writes, len(world.kernel.log)) == (writes, log)


def test_dry_run_writes_nothing(make_world: Make) -> None:
    world = make_world(_small())
    outcome = setup.setup(world.node, ON, dry_run=True)
    assert len(outcome.plan.actions) == 6
    assert world.machine.writes == 0
    assert not world.node.state.path.exists()


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize(
    ("fault", "value"),
    [("fsp", 0x55), ("boot", "never"), ("reset", "error"), ("reset", "noop"), ("dead", True)],
    ids=["fsp-refuses", "never-boots", "reset-fails", "reset-does-nothing", "dead"],
)
def test_ppcie_fault_leaves_none_mixed(make_world: Make, k: int, fault: str, value: object) -> None:
    """One device of the board fails at any stage: all are back, or only it is in doubt and nothing is offered."""
    world = make_world(_small())
    setup.setup(world.node, ON)
    before = world.snapshot()
    address, chip = [(f.address, f.chip) for f in world.machine.functions.values() if f.chip is not None][k]
    chip.faults[fault] = value
    with pytest.raises(KataGpuError) as error:
        setup.setup(world.node, PPCIE)
    others = {a: m for a, m in world.modes().items() if a != address}
    assert others == {a: m for a, m in before["modes"].items() if a != address}  # type: ignore[attr-defined]
    if isinstance(error.value, RolledBack):
        assert world.node.journal.open_transaction() is None
    else:
        assert error.value.code == "undo-failed"
        assert status(world.node).state == "between"
        assert world.node.cdi.names() == []
        chip.faults.clear()
        recover(world.node)
    assert world.snapshot() == before


def test_fsp_fault_in_the_middle_of_a_device(make_world: Make) -> None:
    """The FSP takes one setting and refuses the next, also on the way back: both reasons are told."""
    world = make_world(hgx_h100())
    setup.setup(world.node, ON)
    before = world.snapshot()
    chip = world.machine.functions["0000:98:00.0"].chip
    assert chip is not None
    chip.faults.update(fsp=0x1E3, fsp_writes_left=1)
    with pytest.raises(Unavailable, match="firmware does not know this setting; undoing it failed as well"):
        setup.setup(world.node, PPCIE)
    assert world.node.cdi.names() == []
    assert {m for a, m in world.modes().items() if a != "0000:98:00.0"} == {0, 1}
    chip.faults.clear()
    recover(world.node)
    assert world.snapshot() == before


def test_out_of_band_lock_changes_nothing(make_world: Make) -> None:
    world = make_world(_small())
    before = world.snapshot()
    chip = world.machine.functions["0000:3d:00.0"].chip
    assert chip is not None
    chip.faults["locked"] = True
    with pytest.raises(LockedOutOfBand) as error:
        setup.setup(world.node, ON)
    assert error.value.exit_code == 7
    assert world.snapshot() == before
    assert status(world.node).last["outcome"] == "undone"


def test_interrupted_switch_of_another_tool_is_repaired(make_world: Make) -> None:
    """The invalid state (debug bit without CC bit) is cured by setting any mode."""
    world = make_world(_small())
    setup.setup(world.node, OFF)
    chip = world.machine.functions["0000:17:00.0"].chip
    assert chip is not None
    chip.knobs[6], chip.active = 1, 2
    setup.setup(world.node, ON)
    assert world.modes()["0000:17:00.0"] == 1


def test_a_mode_changed_behind_our_back_is_found_by_probe(make_world: Make) -> None:
    from kata_gpu.ops.node import observe_node, read_modes

    world = make_world(_small())
    setup.setup(world.node, ON)
    chip = world.machine.functions["0000:17:00.0"].chip
    assert chip is not None
    chip.knobs[8], chip.active = 0, 0
    inventory = read_modes(world.node, observe_node(world.node).inventory)
    assert inventory.device(inventory.gpus[0].function.address).cc_mode is CcMode.OFF
    assert len(setup.setup(world.node, ON).plan.actions) == 3
    assert world.modes()["0000:17:00.0"] == 1


def test_bind_failure_rolls_back(make_world: Make) -> None:
    world = make_world(mixed())
    before = world.snapshot()
    world.machine.functions["0000:3d:00.0"].faults["probe"] = "EINVAL"
    with pytest.raises(RolledBack, match="EINVAL"):
        setup.setup(world.node, ON)
    assert world.snapshot() == before


def test_wedged_unbind_is_reported_and_never_retried(make_world: Make) -> None:
    """An unbind that never returns: timeout, the journal stays open, later runs refuse with the reason."""
    world = make_world(mixed())
    world.machine.functions["0000:3d:00.1"].faults["unbind"] = "hang"
    with pytest.raises(TimedOut):
        setup.setup(world.node, ON)
    assert status(world.node).state == "between"
    writes = [line for line, _ in world.kernel.log if "unbind" in line]
    with pytest.raises(KataGpuError):
        setup.setup(world.node, ON)
    assert [line for line, _ in world.kernel.log if "unbind" in line] == writes


def test_guard_inside_the_transaction(make_world: Make) -> None:
    """A VM that takes a device between guard and unbind is still safe: it is asked again right before."""
    world = make_world(_small())
    setup.setup(world.node, ON)
    function = world.machine.functions["0000:17:00.0"]
    world.kernel.hold(4242, "group", str(function.group), cmdline=["qemu"], bound=True)
    before = world.snapshot()
    with pytest.raises(InUse):
        setup.reset(world.node)
    assert world.snapshot() == before


def test_per_gpu_policy_on_a_mixed_node(make_world: Make) -> None:
    world = make_world(mixed())
    outcome = setup.setup(world.node, ON)
    assert outcome.plan.notes == ("0000:3d:00.0 A10: not CC capable, passed through without protection",)
    assert world.snapshot()["bindings"]["0000:3d:00.1"] == ("vfio-pci", "vfio-pci")  # type: ignore[index]
    labels = status(world.node).labels
    assert (labels["nvidia.com/cc.mode.state"], labels["nvidia.com/cc.ready.state"]) == ("on", "true")


def test_blackwell_switches_over_its_own_mailbox(make_world: Make) -> None:
    world = make_world(hgx_b200())
    setup.setup(world.node, ON)
    assert set(world.modes().values()) == {1}


def test_reset_restores_native_drivers(make_world: Make) -> None:
    world = make_world(mixed())
    before = world.snapshot()
    setup.setup(world.node, ON)
    setup.reset(world.node)
    assert world.snapshot() == before


def test_missing_module_is_loaded(make_world: Make) -> None:
    machine = _small()
    machine.modules.remove("vfio_pci")
    machine.drivers.remove("vfio-pci")
    world = make_world(machine)
    setup.setup(world.node, ON)
    assert "vfio_pci" in machine.modules
    assert status(world.node).state == "settled"
