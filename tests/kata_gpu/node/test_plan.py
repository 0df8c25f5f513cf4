"""Planning: pure, complete, refusing what cannot work before anything is touched; and the policy that it reads."""

import time
from dataclasses import replace

import pytest

from kata_gpu.core import yaml12
from kata_gpu.core.actions import Bind, Binding, Publish, Switch, parse_action, to_json
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.labels import render_labels
from kata_gpu.core.node_policy import Backend, BindScope, Drain, NodePolicy, Rule, parse_policy
from kata_gpu.core.pci import PciAddress
from kata_gpu.core.plan import Observed, plan_bind, plan_mode, plan_release, plan_setup
from kata_gpu.errors import KataGpuError, Malformed, Misconfigured, RebootNeeded
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.machine import Function, Machine
from kata_gpu.host.simkernel.presets import bare, hgx_b200, hgx_h100, mixed
from kata_gpu.ops.observe import observe
from tests.kata_gpu.node.conftest import ON, PPCIE

POLICY = """
apiVersion: config.kata-gpu.dev/v1alpha1
kind: NodePolicy
bind: gpus
backend: vfio
drain: evict
devices:
  - {select: "0000:17:00.0", mode: devtools}
  - {select: "10de:2236", mode: off}
  - {select: all, mode: on}
"""


def _observed(machine: Machine) -> Observed:
    return Observed(inventory=observe(SimKernel(machine)))


def _policy(text: str) -> NodePolicy:
    return parse_policy(yaml12.load(text, where="p"), where="p")


def test_policy_is_read_exactly() -> None:
    """`off` and `on` are modes and an address is text: the YAML 1.1 traps."""
    assert _policy(POLICY) == NodePolicy(
        rules=(
            Rule(select=PciAddress.parse("0000:17:00.0"), mode=CcMode.DEVTOOLS),
            Rule(select=(0x10DE, 0x2236), mode=CcMode.OFF),
            Rule(select=None, mode=CcMode.ON),
        ),
        bind=BindScope.GPUS,
        backend=Backend.VFIO,
        drain=Drain.EVICT,
    )


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("v1alpha1", "v2", "apiVersion"),
        ("NodePolicy", "Policy", "kind"),
        ("bind: gpus", "bind: everything", "bind"),
        ("backend: vfio", "backend: magic", "backend"),
        ("drain: evict", "drain: force", "drain"),
        ("mode: devtools", "mode: true", "devices[0].mode"),
        ('"0000:17:00.0"', '"17:00.0"', "devices[0].select"),
        ('"10de:2236"', '"10de:xyz"', "devices[1].select"),
        ("kind: NodePolicy", "kind: NodePolicy\nextra: 1", "extra"),
        ("{select: all, mode: on}", "on", "devices[2]"),
    ],
)
def test_policy_errors_name_the_field(old: str, new: str, field: str) -> None:
    with pytest.raises(Malformed) as error:
        _policy(POLICY.replace(old, new))
    assert field in error.value.where


def test_order_of_a_cold_plan() -> None:
    """Bind everything, switch as one set, publish."""
    plan = plan_setup(_observed(hgx_h100()), ON)
    assert [type(a).__name__ for a in plan.actions] == ["Bind"] * 12 + ["Switch", "Publish", "Publish"]
    switch = plan.actions[12]
    assert isinstance(switch, Switch)
    assert [c.after for c in switch.changes] == [CcMode.OFF] * 4 + [CcMode.ON] * 8
    assert len(plan.touched) == 12


def test_companions_are_bound_first() -> None:
    plan = plan_bind(_observed(mixed()), [PciAddress.parse("0000:3d:00.0")])
    binds = [a for a in plan.actions if isinstance(a, Bind)]
    assert [str(b.address) for b in binds] == ["0000:3d:00.1", "0000:3d:00.0"]
    assert binds[0].before == Binding(driver="snd_hda_intel")


def test_release_withdraws_first() -> None:
    inventory = observe(SimKernel(mixed()))
    gpu = inventory.gpus[0]
    bound = replace(gpu, function=replace(gpu.function, driver="vfio-pci", vfio_cdev="vfio0"))
    observed = Observed(
        inventory=replace(inventory, devices=(bound, *inventory.devices[1:])),
        overrides={gpu.function.address: "vfio-pci"},
        cdi={"cgpu.kata-gpu.dev-gpu.json": '{"devices": [{"name": "gpu-0000-17-00-0"}]}'},
    )
    plan = plan_release(observed, [gpu.function.address])
    assert [type(a) for a in plan.actions] == [Publish, Bind]
    assert isinstance(plan.actions[0], Publish)
    assert plan.actions[0].devices == ()


def _with_companion(class_code: int, driver: str) -> Machine:
    machine = mixed()
    machine.functions["0000:3d:00.1"].class_code = class_code
    machine.functions["0000:3d:00.1"].driver = driver
    return machine


def _without_group() -> Machine:
    machine = hgx_h100(gpus=1, switches=0)
    machine.functions["0000:17:00.0"].group = None
    return machine


NO_A10 = NodePolicy(rules=(Rule(select=(0x10DE, 0x2236), mode=CcMode.ON),))


@pytest.mark.parametrize(
    ("machine", "policy", "code"),
    [
        pytest.param(bare, ON, "no-devices", id="no-devices"),
        pytest.param(hgx_b200, PPCIE, "mode-not-supported", id="ppcie-on-blackwell"),
        pytest.param(mixed, PPCIE, "ppcie-no-switches", id="ppcie-without-switches"),
        pytest.param(hgx_h100, replace(PPCIE, bind=BindScope.GPUS), "ppcie-partial", id="ppcie-without-its-switches"),
        pytest.param(mixed, NO_A10, "mode-not-supported", id="cc-on-ampere-by-name"),
        pytest.param(hgx_h100, NO_A10, "nothing-selected", id="nothing-selected"),
        pytest.param(lambda: _with_companion(0x010802, "nvme"), ON, "essential-companion", id="shares-group-with-nvme"),
        pytest.param(lambda: _with_companion(0x020000, "mlx5_core"), ON, "essential-companion", id="shares-with-nic"),
        pytest.param(_without_group, ON, "no-iommu", id="no-iommu"),
    ],
)
def test_refused_before_anything_is_touched(machine: object, policy: NodePolicy, code: str) -> None:
    assert callable(machine)
    with pytest.raises(Misconfigured) as error:
        plan_setup(_observed(machine()), policy)
    assert error.value.code == code


def test_wedged_device_needs_a_reboot() -> None:
    observed = replace(_observed(mixed()), wedged={PciAddress.parse("0000:17:00.0"): "held by process 1"})
    with pytest.raises(RebootNeeded, match="held by process 1"):
        plan_setup(observed, ON)


def test_mode_of_an_unbound_device_is_refused() -> None:
    with pytest.raises(Misconfigured) as error:
        plan_mode(_observed(mixed()), [PciAddress.parse("0000:17:00.0")], CcMode.ON)
    assert error.value.hint == "kata-gpu bind 0000:17:00.0"


def test_actions_survive_the_journal() -> None:
    for machine, policy in ((hgx_h100(), PPCIE), (mixed(), ON)):
        for action in plan_setup(_observed(machine), policy).actions:
            assert parse_action(to_json(action), where="j") == action
    found = Switch(changes=(), found=())
    assert parse_action(to_json(found), where="j") == found


@pytest.mark.parametrize("data", [None, {}, {"do": "eat"}, {"do": "bind"}, {"do": "switch", "changes": 1}, [], "x"])
def test_damaged_actions_are_malformed(data: object) -> None:
    with pytest.raises(KataGpuError):
        parse_action(data, where="j")


def test_planning_sixteen_devices_is_fast() -> None:
    """Under 20 ms, measured as the best of some runs."""
    inventory = observe(SimKernel(hgx_h100()))
    extra = tuple(
        replace(d, function=replace(d.function, address=replace(d.function.address, domain=1)))
        for d in inventory.devices[:4]
    )
    observed = Observed(inventory=replace(inventory, devices=(*inventory.devices, *extra)))
    best = 1.0
    for _ in range(5):
        start = time.perf_counter()
        plan_setup(observed, ON)
        best = min(best, time.perf_counter() - start)
    assert len(observed.inventory.devices) == 16
    assert best < 0.020


def _labelled(modes: list[CcMode | None], *, bound: bool = True) -> dict[str, str]:
    inventory = observe(SimKernel(hgx_h100(gpus=len(modes), switches=0)))
    driver = "vfio-pci" if bound else None
    devices = tuple(
        replace(d, function=replace(d.function, driver=driver), cc_mode=m)
        for d, m in zip(inventory.devices, modes, strict=True)
    )
    return render_labels(replace(inventory, devices=devices))


@pytest.mark.parametrize(
    ("modes", "state", "ready"),
    [
        ([CcMode.ON, CcMode.ON], "on", "true"),
        ([CcMode.PPCIE, CcMode.PPCIE], "ppcie", "true"),
        ([CcMode.OFF], "off", "false"),
        ([CcMode.DEVTOOLS], "devtools", ""),
        ([CcMode.ON, CcMode.OFF], "mixed", ""),
        ([CcMode.ON, None], "failed", ""),
    ],
)
def test_labels(modes: list[CcMode | None], state: str, ready: str) -> None:
    labels = _labelled(modes)
    assert (labels["nvidia.com/cc.mode.state"], labels["nvidia.com/cc.ready.state"]) == (state, ready)
    ours = {k: v for k, v in labels.items() if k.startswith("kata-gpu.dev/")}
    assert ours == ({} if state in {"mixed", "failed"} else {"kata-gpu.dev/cc-mode": state, "kata-gpu.dev/tee": "snp"})


def test_labels_fail_closed() -> None:
    """A GPU that is not bound is not ready, whatever its mode."""
    assert _labelled([CcMode.ON], bound=False)["nvidia.com/cc.ready.state"] == ""
    assert render_labels(Inventory(devices=(), iommufd=True, boot_id="x")) == {}


def test_other_vendors_are_left_alone() -> None:
    machine = mixed()
    machine.functions["0000:01:00.0"] = Function(
        address="0000:01:00.0", vendor=0x1002, device=0x744C, class_code=0x030000, parent="pci0000:00", group=50
    )
    assert len(observe(SimKernel(machine)).devices) == 2
