"""The claim path over the simulated kernel: real verbs of the node under Prepare and Unprepare."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from kata_gpu.core.checkpoint import Checkpoint
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.claim_cdi import file_name, parse_claim_file
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import InUse, KataGpuError, Misconfigured, RolledBack
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import hgx_h100
from kata_gpu.ops import setup
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.modes import MODE_CHANGE
from kata_gpu.ops.node import Node
from kata_gpu.ops.node_devices import HostDevices
from kata_gpu.ops.prepare import ClaimPreparer
from kata_gpu.ops.prepare import Node as Identity
from kata_gpu.ops.reconcile_claims import ClaimReconciler
from kata_gpu.ops.unread import read_unread
from tests.kata_gpu.dra.fake_node import NOW
from tests.kata_gpu.dra.world import NODE, World, numbered


@dataclass
class Sim:
    """One simulated HGX host with two GPUs behind the claim path."""

    world: World
    kernel: SimKernel
    node: Node

    @property
    def devices(self) -> HostDevices:
        """The adapter under test."""
        return HostDevices(self.node)

    @property
    def gpus(self) -> list[str]:
        """Addresses of the GPUs."""
        return [str(d.function.address) for d in self.devices.observe().gpus]

    def name(self, index: int) -> str:
        """DRA name of a GPU."""
        return self.devices.observe().gpus[index].name

    def preparer(self) -> ClaimPreparer:
        """The use case."""
        identity = Identity(driver=DRIVER, pool=NODE, boot_id=self.kernel.machine.boot_id)
        return ClaimPreparer(
            identity, store=self.world.store, kube=self.world.kube, devices=self.devices, cdi=self.world.cdi,
            now=lambda: NOW,
        )  # fmt: skip


@pytest.fixture
def sim(world: World, tmp_path: Path) -> Sim:
    kernel = SimKernel(hgx_h100(gpus=2, switches=0))
    node = Node(host=kernel, state=DurableDir(tmp_path / "state"), cdi=DurableDir(tmp_path / "static-cdi"))
    setup.setup(node, NodePolicy.everything(CcMode.ON))
    return Sim(world, kernel, node)


def later() -> Deadline:
    return Deadline.after(40)


@numbered("dra-014-simulated-host")
def test_prepare_and_unprepare(sim: Sim, case: None) -> None:
    ref = sim.world.claim(sim.name(0))
    preparer = sim.preparer()
    (held,) = preparer.prepare(ref, later())
    content = parse_claim_file(sim.world.cdi.read(file_name(ref.uid)) or b"", ref.uid)
    cdev = sim.devices.observe().gpus[0].function.vfio_cdev
    assert content.devices == {held.device: (f"/dev/vfio/devices/{cdev}",)}
    preparer.unprepare(ref.uid, later())
    assert sim.world.files() == []
    assert sim.world.store.load().quarantine == ()
    assert sim.devices.observe().gpus[0].function.driver == "vfio-pci"


@numbered("dra-029-simulated-host")
def test_the_mode_is_read_from_the_register_at_prepare(sim: Sim, case: None, tmp_path: Path) -> None:
    ref = sim.world.claim(sim.name(0))
    stranger = Node(host=sim.kernel, state=DurableDir(tmp_path / "other"), cdi=DurableDir(tmp_path / "other-cdi"))
    setup.set_mode(stranger, [PciAddress.parse(sim.gpus[0])], CcMode.OFF)
    assert sim.devices.observe().gpus[0].cc_mode is CcMode.ON  # what our journal remembers
    with pytest.raises(Misconfigured, match="mode"):
        sim.preparer().prepare(ref, later())
    assert sim.world.store.load().claims == ()


@pytest.mark.parametrize(
    "by", [pytest.param("prepare", id="dra-039-unread-mode"), pytest.param("agent", id="dra-039-unread-mode-agent")]
)
def test_a_mode_that_nobody_has_read_since_the_bind_is_read(sim: Sim, by: str) -> None:
    """What a process leaves that dies between binding and reading."""
    ref = sim.world.claim(sim.name(0))
    sim.node.journal.set_modes(sim.kernel.machine.boot_id, {})
    assert sim.devices.observe().gpus[0].cc_mode is None
    if by == "prepare":
        assert sim.preparer().prepare(ref, later())
    else:
        ClaimReconciler(sim.world.store, sim.world.kube, sim.preparer(), sim.devices, frozenset).read_modes()
    assert sim.devices.observe().gpus[0].cc_mode is CcMode.ON


def test_a_mode_is_not_read_while_it_may_be_changing(sim: Sim) -> None:
    sim.node.journal.set_modes(sim.kernel.machine.boot_id, {})
    checkpoint = Checkpoint().with_quarantine(sim.gpus[0], MODE_CHANGE, NOW)
    sim.kernel.hold(4242, "cdev", sim.gpus[1], cmdline=["/usr/bin/qemu-system-x86_64"], bound=True)
    read = read_unread(sim.devices, sim.devices.observe(), checkpoint)
    assert [d.cc_mode for d in read.gpus] == [None, None]


@numbered("dra-032-simulated-host")
def test_a_gpu_that_the_host_driver_took_is_bound_again(sim: Sim, case: None) -> None:
    ref = sim.world.claim(sim.name(0))
    address = sim.gpus[0]
    with sim.kernel.edit() as machine:
        machine.drivers.append("nvidia")
        function = machine.functions[address]
        function.driver, function.cdev, function.override = "nvidia", None, None
    preparer = sim.preparer()
    (held,) = preparer.prepare(ref, later())
    assert held.addresses == (address,)
    assert sim.devices.observe().gpus[0].function.driver == "vfio-pci"


@numbered("dra-034-simulated-host")
def test_a_refused_bind_is_rolled_back(sim: Sim, case: None) -> None:
    ref = sim.world.claim(sim.name(0))
    with sim.kernel.edit() as machine:
        function = machine.functions[sim.gpus[0]]
        function.driver, function.cdev, function.override = None, None, None
        function.faults["probe"] = "EINVAL"
    with pytest.raises(KataGpuError) as caught:
        sim.preparer().prepare(ref, later())
    assert isinstance(caught.value, RolledBack)
    function = sim.kernel.machine.functions[sim.gpus[0]]
    assert (function.driver, function.override) == (None, None)
    assert sim.world.store.load().claims == ()


@numbered("dra-049-simulated-host")
def test_a_vm_that_holds_the_node_is_named(sim: Sim, case: None) -> None:
    ref = sim.world.claim(sim.name(0))
    preparer = sim.preparer()
    preparer.prepare(ref, later())
    sim.kernel.hold(4242, "cdev", sim.gpus[0], cmdline=["/usr/bin/qemu-system-x86_64"], bound=True)
    with pytest.raises(InUse) as caught:
        preparer.unprepare(ref.uid, later())
    assert "4242" in caught.value.got
    assert sim.world.files() == [file_name(ref.uid)]
    sim.kernel.drop(4242)
    preparer.unprepare(ref.uid, later())
    assert sim.world.files() == []


@numbered("dra-053-simulated-host")
def test_a_dead_device_after_reset_is_quarantined(sim: Sim, case: None) -> None:
    ref = sim.world.claim(sim.name(0))
    preparer = sim.preparer()
    preparer.prepare(ref, later())
    with sim.kernel.edit() as machine:
        machine.functions[sim.gpus[0]].resets = []
        machine.functions[sim.gpus[0]].offered_resets = []
    preparer.unprepare(ref.uid, later())
    assert [q.address for q in sim.world.store.load().quarantine] == [sim.gpus[0]]
    assert sim.world.store.load().claims == ()
