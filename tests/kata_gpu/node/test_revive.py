"""Devices that fell off the bus: woken, or reset with their slot and found again; or told to be beyond that."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import InUse, RebootNeeded, TimedOut
from kata_gpu.host.simkernel.kernel import Crashed
from kata_gpu.host.simkernel.machine import Function, Machine
from kata_gpu.host.simkernel.presets import hgx_h100, mixed
from kata_gpu.ops import setup
from kata_gpu.ops.recover import recover
from kata_gpu.ops.revive import revive
from kata_gpu.ops.status import status
from tests.kata_gpu.node.conftest import ON, World

Make = Callable[[Machine], World]
GPU = PciAddress.parse("0000:17:00.0")


def _gpu(world: World) -> Function:
    return world.machine.functions[str(GPU)]


def _with_a_dead_gpu(make_world: Make) -> World:
    """A node that was set up; its first GPU answers all ones since, and a function-level reset does not reach it."""
    world = make_world(hgx_h100(gpus=2, switches=0))
    setup.setup(world.node, ON)
    chip = _gpu(world).chip
    assert chip is not None
    chip.faults["dead"] = "until-bus-reset"
    return world


@pytest.fixture
def dead(make_world: Make) -> World:
    return _with_a_dead_gpu(make_world)


def test_a_bus_reset_brings_it_back(dead: World) -> None:
    """And nothing else is touched; afterwards its mode counts as unknown until it has been read."""
    other = dead.machine.functions["0000:3d:00.0"].chip
    assert other is not None
    resets = other.resets
    assert revive(dead.node, GPU) == "0000:17:00.0 answers again after a reset of its bus"
    assert _gpu(dead).resets == ["flr", "bus"]
    assert other.resets == resets
    assert dead.node.journal.removed(dead.machine.boot_id) == {}
    assert status(dead.node).state == "degraded"
    setup.setup(dead.node, ON)
    assert status(dead.node).state == "settled"
    assert dead.modes()[str(GPU)] == 1


def test_a_device_that_answers_is_left_alone(dead: World) -> None:
    writes = dead.machine.writes
    assert revive(dead.node, PciAddress.parse("0000:3d:00.0")) == "0000:3d:00.0 answers: nothing to do"
    assert dead.machine.writes == writes


def test_a_device_without_power_is_woken(dead: World) -> None:
    gpu = _gpu(dead)
    assert gpu.chip is not None
    gpu.chip.faults.clear()
    gpu.faults["cold"] = True
    assert revive(dead.node, GPU) == "0000:17:00.0 was in D3cold and woke up"
    assert [line for line, _ in dead.kernel.log if line.endswith(("/reset", "/remove"))] == []


def test_a_held_device_is_refused(dead: World) -> None:
    """A VM may still run on what is dead to us: whoever ends it decides."""
    dead.kernel.hold(4242, "group", str(_gpu(dead).group), cmdline=["qemu"], bound=True)
    writes = dead.machine.writes
    with pytest.raises(InUse, match="4242"):
        revive(dead.node, GPU)
    assert dead.machine.writes == writes


def test_beyond_a_bus_reset(dead: World) -> None:
    """The kernel does not come back in time, and the device stays out of the plans."""
    chip = _gpu(dead).chip
    assert chip is not None
    chip.faults["dead"] = True
    with pytest.raises(TimedOut) as error:
        revive(dead.node, GPU)
    assert error.value.exit_code == 6
    assert "power-cycle" in error.value.hint


def test_a_shared_bus_is_not_reset(make_world: Make) -> None:
    """The kernel offers no bus reset where another function is on it: that one would lose its state."""
    world = make_world(mixed())
    setup.setup(world.node, ON)
    gpu = world.machine.functions["0000:3d:00.0"]
    gpu.offered_resets = gpu.resets = ["flr"]
    gpu.faults["dead-config"] = True
    assert gpu.chip is not None
    gpu.chip.faults["dead"] = True
    with pytest.raises(RebootNeeded) as error:
        revive(world.node, PciAddress.parse(gpu.address))
    assert error.value.exit_code == 4
    assert "cannot be reset alone" in error.value.got


def test_killed_anywhere_the_device_is_found_again(make_world: Make, tmp_path: Path) -> None:
    """kill -9 before every write: `recover` enumerates what is missing, and the next try succeeds."""
    whole = _with_a_dead_gpu(make_world)
    began = whole.machine.writes
    revive(whole.node, GPU)
    steps = whole.machine.writes - began
    assert steps >= 8
    missing = 0
    for k in range(steps):
        world = _with_a_dead_gpu(make_world)
        world.machine.crash_after = world.machine.writes + k
        with pytest.raises(Crashed):
            revive(world.node, GPU)
        world = world.restarted(world.kernel.crash())
        gone = str(GPU) not in world.machine.functions
        missing += gone
        assert recover(world.node).startswith("enumerated again: 0000:17:00.0") or not gone
        revive(world.node, GPU)
        setup.setup(world.node, ON)
        assert status(world.node).state == "settled", f"after step {k}"
        assert _gpu(world).resets == ["flr", "bus"]
    assert missing
