"""A node on a simulated kernel, with every durable write counted, so that a crash can be put at any of them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kata_gpu.core.cdi import device_nodes, parse_spec
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.pci import PciAddress
from kata_gpu.host.durable import DurableDir, replace_file
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.machine import Machine
from kata_gpu.ops.node import Node
from kata_gpu.ops.observe import observe

ON = NodePolicy.everything(CcMode.ON)
OFF = NodePolicy.everything(CcMode.OFF)
PPCIE = NodePolicy.everything(CcMode.PPCIE)


class CountedDir(DurableDir):
    """A directory whose writes are steps of the simulated kernel: a crash can come before each. Not synced: speed."""

    def __init__(self, path: Path, kernel: SimKernel) -> None:
        super().__init__(path)
        self.kernel = kernel

    def put(self, name: str, data: bytes) -> None:
        self.kernel._count()
        self.path.mkdir(parents=True, exist_ok=True)
        replace_file(self.path / name, data, durable=False)

    def remove(self, name: str) -> None:
        self.kernel._count()
        (self.path / name).unlink(missing_ok=True)


@dataclass
class World:
    """A simulated kernel and a node on it."""

    kernel: SimKernel
    node: Node

    @property
    def machine(self) -> Machine:
        return self.kernel.machine

    def node_gpu(self) -> PciAddress:
        """Address of the first GPU."""
        return observe(self.kernel).gpus[0].function.address

    def restarted(self, kernel: SimKernel) -> "World":
        """A new process on the same host."""
        state, cdi = (CountedDir(d.path, kernel) for d in (self.node.state, self.node.cdi))
        return World(kernel, replace(self.node, host=kernel, state=state, cdi=cdi))

    def clone(self, base: Path) -> "World":
        """The same host and state once more, in directories below `base`."""
        machine = Machine.from_json(json.loads(json.dumps(self.machine.to_json())))
        for directory, name in ((self.node.state, "state"), (self.node.cdi, "cdi")):
            if directory.path.exists():
                shutil.copytree(directory.path, base / name)
        kernel = SimKernel(machine)
        state, cdi = (CountedDir(base / name, kernel) for name in ("state", "cdi"))
        return World(kernel, replace(self.node, host=kernel, state=state, cdi=cdi))

    def modes(self) -> dict[str, int]:
        """Active mode register of every chip."""
        return {f.address: f.chip.active for f in self.machine.functions.values() if f.chip is not None}

    def bindings(self) -> dict[str, tuple[str | None, str | None]]:
        """Driver and override of every function."""
        return {f.address: (f.driver, f.override) for f in self.machine.functions.values()}

    def snapshot(self) -> dict[str, object]:
        """What must be as before or as after: drivers, overrides, active modes, and what CDI names lead to."""
        by_node = {f"/dev/vfio/devices/vfio{f.cdev}": f.address for f in self.machine.functions.values()}
        by_node |= {
            f"/dev/vfio/{f.group}": f.address for f in self.machine.functions.values() if f.driver == "vfio-pci"
        }
        cdi = {}
        for name in self.node.cdi.names():
            nodes = device_nodes(parse_spec(self.node.cdi.get(name) or b"", where=name))
            cdi[name] = {device: sorted(by_node[p] for p in paths) for device, paths in nodes.items()}
        return {
            "bindings": self.bindings(),
            "modes": self.modes(),
            "cdi": cdi,
        }


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[[Machine], World]:
    """Build a node on a machine; each call has directories of its own."""
    count = 0

    def make(machine: Machine) -> World:
        nonlocal count
        count += 1
        kernel = SimKernel(machine)
        base = tmp_path / str(count)
        node = Node(host=kernel, state=CountedDir(base / "state", kernel), cdi=CountedDir(base / "cdi", kernel))
        return World(kernel, node)

    return make
