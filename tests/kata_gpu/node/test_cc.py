"""CC mode: registers and messages, the backends, exclusiveness, and agreement between them."""

import hashlib
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_gpu.core import cc
from kata_gpu.core.cc import Knob
from kata_gpu.core.gpu import CcMode, model_of
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import InUse, LockedOutOfBand, Malformed, Misconfigured, RolledBack, Unavailable
from kata_gpu.host.cc.admin_tools import ENTRY, AdminToolsBackend, read_tool, tool_digest
from kata_gpu.host.cc.registers import VfioBackend
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.machine import Machine
from kata_gpu.host.simkernel.presets import hgx_b200, hgx_h100
from kata_gpu.host.vfio_device import VfioSession
from kata_gpu.ops import setup
from kata_gpu.ops.node import Node, observe_node, read_modes
from kata_gpu.ops.observe import observe
from tests.kata_gpu.node.conftest import OFF, ON, PPCIE, World

Make = Callable[[Machine], World]
GPU = "0000:17:00.0"


@pytest.mark.parametrize(
    ("family", "status", "mode"),
    [
        ("hopper", 0, CcMode.OFF),
        ("hopper", 1, CcMode.ON),
        ("hopper", 3, CcMode.DEVTOOLS),
        ("hopper", 2, None),
        ("hopper", 0x20, CcMode.PPCIE),
        ("blackwell", 1, CcMode.ON),
        ("blackwell", 5, CcMode.ON),
        ("blackwell-rtx", 0, CcMode.OFF),
        ("ls10", 0, CcMode.OFF),
        ("ls10", 1, CcMode.PPCIE),
    ],
)
def test_status_register(family: str, status: int, mode: CcMode | None) -> None:
    assert cc.decode_mode(family, status) is mode


@pytest.mark.parametrize("family", ["hopper", "blackwell"])
@pytest.mark.parametrize("old", [CcMode.OFF, CcMode.ON, CcMode.DEVTOOLS])
@pytest.mark.parametrize("new", [CcMode.OFF, CcMode.ON, CcMode.DEVTOOLS])
def test_no_prefix_of_the_writes_is_debug_without_cc(family: str, old: CcMode, new: CcMode) -> None:
    """Interrupted after any write, the debug setting is never alone: the state that only another switch cures."""
    knobs = dict(cc.knob_writes(family, old))
    for knob, value in cc.knob_writes(family, new):
        knobs[knob] = value
        assert not (knobs.get(Knob.CCD) and not knobs.get(Knob.CCM))


def test_cc_and_ppcie_exclude_each_other() -> None:
    for mode in CcMode:
        values = dict(cc.knob_writes("hopper", mode))
        assert (values[Knob.CCM], values[Knob.PPCIE]).count(1) == int(mode is not CcMode.OFF)


def test_messages_are_byte_exact() -> None:
    assert cc.render_knob_read(Knob.CCM) == (0xC0000000, 0x1310DE7E, 0x0008020C)
    assert cc.render_knob_write(Knob.PPCIE, 1) == (0xC0000000, 0x1310DE7E, 0x002D020D, 1)
    assert cc.parse_response([0xC0000000, 0x1510DE7E, 0, 0x13, 0, 7], where="x") == (7,)


@pytest.mark.parametrize(
    "words",
    [[], [0] * 5, [0xC0000000, 0x1310DE7E, 0, 0x13, 0], [0xC0000000, 0x1510DE7E, 0, 0x14, 0], [1, 0x1510DE7E, 0, 0x13]],
)
def test_wrong_answers_are_malformed(words: list[int]) -> None:
    with pytest.raises(Malformed):
        cc.parse_response(words, where="x")


@pytest.mark.parametrize(("status", "code"), [(0x1E3, "fsp-invalid-knob"), (0x10, "fsp-refused")])
def test_refusals_have_codes(status: int, code: str) -> None:
    with pytest.raises(Unavailable) as error:
        cc.parse_response([0xC0000000, 0x1510DE7E, 0, 0x13, status], where="x")
    assert error.value.code == code


@pytest.mark.parametrize(
    ("device", "architecture", "modes", "firmware_owned"),
    [
        (0x2330, "hopper", 4, False),
        (0x22F0, "hopper", 4, False),
        (0x2901, "blackwell", 3, False),
        (0x2BB5, "blackwell", 3, False),
        (0x22A3, "ls10", 2, False),
        (0x2342, "hopper", 4, True),
        (0x2236, "ampere", 0, False),
        (0x1234, None, 0, False),
    ],
)
def test_device_table(device: int, architecture: str | None, modes: int, firmware_owned: bool) -> None:
    model = model_of(device)
    assert (model.family.architecture if model.family else None) == architecture
    assert len(model.family.modes if model.family else ()) == modes
    assert model.firmware_owned is firmware_owned


def test_every_transition(make_world: Make) -> None:
    """off, on, devtools, ppcie in every order, on both kernel APIs."""
    order = [
        "off",
        "on",
        "devtools",
        "off",
        "devtools",
        "on",
        "ppcie",
        "on",
        "off",
        "ppcie",
        "devtools",
        "ppcie",
        "off",
    ]
    for profile in ("ubuntu-6.17", "debian-6.12"):
        world = make_world(hgx_h100(profile, gpus=2, switches=1))
        for mode in order:
            setup.setup(world.node, NodePolicy.everything(CcMode(mode)))
            expected = {"off": 0, "on": 1, "devtools": 3, "ppcie": 0x20}[mode]
            assert world.modes() == {"0000:05:00.0": int(mode == "ppcie"), GPU: expected, "0000:3d:00.0": expected}


def test_works_under_lockdown(make_world: Make) -> None:
    machine = hgx_h100(gpus=1, switches=0)
    machine.lockdown = "integrity"
    world = make_world(machine)
    setup.setup(world.node, ON)
    assert world.modes() == {GPU: 1}
    with pytest.raises(OSError, match="EPERM"):
        world.kernel.write(f"/sys/bus/pci/devices/{GPU}/config", b"\0", deadline_s=1)


def test_session_keeps_vms_out(make_world: Make) -> None:
    """While we work on a device, nobody else can open its group or bind its cdev."""
    world = make_world(hgx_h100(gpus=1, switches=0))
    setup.setup(world.node, ON)
    inventory = observe(world.kernel)
    backend = VfioBackend(world.kernel, iommufd=True)
    with backend.session(inventory.gpus), pytest.raises(OSError, match="EBUSY"):
        SimKernel(world.machine, pid=1).open(f"/dev/vfio/{inventory.gpus[0].function.iommu_group}")
    with backend.session(inventory.gpus), pytest.raises(InUse), backend.session(inventory.gpus):
        raise AssertionError("a second session")


def test_boot_delay_is_waited_for(make_world: Make) -> None:
    world = make_world(hgx_h100(gpus=1, switches=0))
    chip = world.machine.functions[GPU].chip
    assert chip is not None
    chip.faults["boot_delay"] = 3.0
    setup.setup(world.node, ON)
    assert world.machine.now >= 3.0
    chip.faults["boot_delay"] = 60.0
    with pytest.raises(RolledBack, match="waited for the end of its boot"):
        setup.setup(world.node, OFF)


def test_dead_device_is_named(make_world: Make) -> None:
    world = make_world(hgx_h100(gpus=2, switches=0))
    setup.setup(world.node, ON)
    chip = world.machine.functions[GPU].chip
    assert chip is not None
    chip.faults["dead"] = True
    inventory = read_modes(world.node, observe_node(world.node).inventory)
    assert "does not answer" in inventory.gpus[0].problem
    assert inventory.gpus[1].cc_mode is CcMode.ON


def test_old_firmware_without_ppcie(make_world: Make) -> None:
    """A knob that old firmware does not know is skipped where there is nothing to clear, an error where it is needed."""
    world = make_world(hgx_h100(gpus=1, switches=1))
    chip = world.machine.functions[GPU].chip
    assert chip is not None
    chip.faults["unknown_knobs"] = [44, 45]
    setup.setup(world.node, ON)
    with pytest.raises(RolledBack, match="firmware does not know"):
        setup.setup(world.node, PPCIE)
    assert world.modes()[GPU] == 1


def test_blackwell_reads_behind_its_firewall(make_world: Make) -> None:
    world = make_world(hgx_b200())
    setup.setup(world.node, ON)
    assert {d.cc_mode for d in observe_node(world.node).inventory.devices} == {CcMode.ON}


# The external tool: a stand-in that speaks its command line, in a process of its own on the same simulated host.

STAND_IN = """
import sys
from pathlib import Path
from kata_gpu.host.simkernel.kernel import SimKernel

kernel = SimKernel(path=Path({state!r}))
address, option = sys.argv[sys.argv.index("--devices") + 1], sys.argv[-1]
with open({log!r}, "a") as log:
    for function in kernel.machine.functions.values():
        if function.driver == "vfio-pci":
            try:
                kernel.open(f"/dev/vfio/{{function.group}}")
                print(function.address, "NOT HELD", file=log)
            except OSError as exc:
                print(function.address, exc.strerror, file=log)
name, _, value = option.partition("=")
with kernel.edit() as machine:
    chip = machine.functions[address].chip
    if name == "--set-cc-mode":
        chip.knobs.update({{8: int(value != "off"), 6: int(value == "devtools"), 45: 0}})
    elif name == "--set-ppcie-mode":
        chip.knobs.update({{45: int(value == "on")}} | ({{8: 0, 6: 0}} if value == "on" else {{}}))
mode = {{0: "off", 1: "on", 3: "devtools"}}.get(chip.active & 3, "invalid-devtools-only-fix-by-setting-cc-mode")
if name == "--query-cc-mode":
    print(f"2026-11-21,00:00:00.000 INFO     GPU {{address}} H100 0x2330 BAR0 0x0 CC mode is {{mode}}", file=sys.stderr)
if name in ("--query-cc-settings", "--query-ppcie-settings"):
    allowed = int(not chip.faults.get("locked"))
    print(f"INFO     GPU {{address}} H100 settings:\\nINFO       enable = 0\\nINFO       enable-allow-inband-control = {{allowed}}")
if name == "--query-ppcie-mode":
    on = chip.active & 1 if chip.family == "ls10" else chip.active & 0x20
    print(f"INFO {{address}} PPCIe mode is {{'on' if on else 'off'}}", file=sys.stderr)
"""


def _tool_node(tmp_path: Path) -> tuple[Node, SimKernel, Path]:
    path = tmp_path / "host.sim"
    kernel = SimKernel.create(hgx_h100(gpus=1, switches=1), path)
    log = tmp_path / "log"
    tool = tmp_path / "tool" / ENTRY
    tool.parent.mkdir()
    tool.write_text(STAND_IN.format(state=str(path), log=str(log)))
    digest = hashlib.sha256(tool.read_bytes()).hexdigest()
    backend = AdminToolsBackend.pinned(kernel, tool, digest, lambda: observe(kernel).devices)
    state, cdi = DurableDir(tmp_path / "state"), DurableDir(tmp_path / "cdi")
    return Node(host=kernel, state=state, cdi=cdi, backend=backend), kernel, log


def test_admin_tools_run_under_our_hold(tmp_path: Path) -> None:
    """Both backends end in the same state; while the tool runs, every device it touches is held by us."""
    node, kernel, log = _tool_node(tmp_path)
    setup.setup(node, PPCIE)
    assert {f.address: f.chip.active for f in kernel.machine.functions.values() if f.chip} == {
        "0000:05:00.0": 1,
        GPU: 0x20,
    }
    lines = set(log.read_text().splitlines())
    assert lines == {"0000:05:00.0 EBUSY", f"{GPU} EBUSY"}
    inventory = observe_node(node).inventory
    with VfioBackend(kernel, iommufd=True).session(inventory.devices) as session:
        assert {session.query(d.function.address) for d in inventory.devices} == {CcMode.PPCIE}


def test_without_our_hold_the_proof_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above sees the difference: where nothing is held, the tool runs beside devices that anybody can take."""
    monkeypatch.setattr(VfioSession, "hold", lambda *_: None)
    node, _, log = _tool_node(tmp_path)
    setup.setup(node, ON)
    assert f"{GPU} NOT HELD" in log.read_text().splitlines()


def test_admin_tools_refuse_while_anything_is_held(tmp_path: Path) -> None:
    """The tool touches every device, so a VM on any of them is a reason to refuse."""
    node, kernel, log = _tool_node(tmp_path)
    setup.setup(node, OFF)
    log.unlink()
    switch = kernel.machine.functions["0000:05:00.0"]
    kernel.hold(4242, "group", str(switch.group), cmdline=["qemu"], bound=True)
    with pytest.raises(InUse):
        setup.set_mode(node, [PciAddress.parse(GPU)], CcMode.ON)
    assert not log.exists()


@pytest.mark.parametrize(("address", "policy"), [(GPU, ON), ("0000:05:00.0", PPCIE)], ids=["gpu-cc", "switch-ppcie"])
def test_admin_tools_report_an_out_of_band_lock(tmp_path: Path, address: str, policy: NodePolicy) -> None:
    """Exit 7 and not a loop: the tool is asked for the permission before it is told to write."""
    node, kernel, _ = _tool_node(tmp_path)
    with kernel.edit() as machine:
        chip = machine.functions[address].chip
        assert chip is not None
        chip.faults["locked"] = True
    with pytest.raises(LockedOutOfBand) as error:
        setup.setup(node, policy)
    assert error.value.exit_code == 7
    assert error.value.where.startswith(address)
    assert {f.chip.active for f in kernel.machine.functions.values() if f.chip} == {0}
    assert all(f.driver is None for f in kernel.machine.functions.values() if f.chip)


def test_admin_tools_must_be_what_was_pinned(tmp_path: Path) -> None:
    kernel = SimKernel(hgx_h100(gpus=1, switches=0))
    tool = tmp_path / ENTRY
    tool.write_text("raise SystemExit(1)")
    for path, digest in ((tool, "0" * 64), (tool, None), (None, "0" * 64), (tool, "xyz")):
        with pytest.raises(Misconfigured):
            AdminToolsBackend.pinned(kernel, path, digest, list)
    with pytest.raises(Misconfigured, match="not gpu-admin-tools"):
        read_tool(_empty(tmp_path))


def _empty(tmp_path: Path) -> Path:
    directory = tmp_path / "empty"
    directory.mkdir()
    return directory


def test_digest_of_a_tree_equals_sha256sum(tmp_path: Path) -> None:
    """The digest of a directory is that of `sha256sum` over its sorted files."""
    (tmp_path / "gpu").mkdir()
    for name in (ENTRY, "gpu/a.py", "gpu/Z.py"):
        (tmp_path / name).write_text(name)
    command = "find . -name '*.py' -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    shell = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, check=True, text=True)
    assert tool_digest(read_tool(tmp_path)) == shell.stdout.split()[0]


@pytest.mark.parametrize(
    "script",
    ["raise RuntimeError('FspRpcError')", "print('nothing to say')", "print('GPU 0000:17:00.0 CC mode is maybe')"],
    ids=["traceback", "silence", "nonsense"],
)
def test_admin_tools_failures_are_errors(tmp_path: Path, make_world: Make, script: str) -> None:
    world = make_world(hgx_h100(gpus=1, switches=0))
    setup.setup(world.node, ON)
    tool = tmp_path / ENTRY
    tool.write_text(script)
    digest = hashlib.sha256(tool.read_bytes()).hexdigest()
    backend = AdminToolsBackend.pinned(world.kernel, tool, digest, lambda: observe(world.kernel).devices)
    device = observe(world.kernel).gpus[0]
    with backend.session([device]) as session, pytest.raises(Unavailable):
        session.query(device.function.address)
