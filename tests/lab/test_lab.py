"""Software GPUs on real kernels in QEMU: what protects a running VM, proved where a mistake would really hurt one.

`make lab`. Our own kernel has IOMMUFD and the lockdown LSM and is built once (minutes); where it, or a QEMU with
vfio-user, cannot be had, one line says so.
"""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata_gpu.host.cc.admin_tools import read_tool, tool_digest
from kata_gpu.host.softgpu.server import SoftGpuServer
from tests.kata_gpu.node.conformance import ROWS
from tests.lab import debian
from tests.lab.conformance import run_rows
from tests.lab.debian import Unavailable
from tests.lab.machine import PYTHON, Kernel, boot, gpu_devices, iommufd_kernel, stock_kernel, stock_qemu

pytestmark = [pytest.mark.lab, pytest.mark.timeout(4500)]  # the first run builds a kernel
RUN_S = 900.0
TOOL = "KATA_GPU_ADMIN_TOOLS"
ON, HOPPER_PPCIE, SWITCH_PPCIE, CC_OFF = 1, 0x20, 1, 0
BOARD = {"gpu0": "h100", "gpu1": "h100", "switch0": "nvswitch"}
HGX = {f"gpu{i}": "h100" for i in range(8)} | {f"switch{i}": "nvswitch" for i in range(4)}
VFIO = ["vfio-pci", "vfio-pci"]
COLD = [None, None]


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    try:
        return iommufd_kernel()
    except Unavailable as exc:
        pytest.skip(f"lab: left out, {exc}")


@pytest.fixture(scope="session")
def qemu() -> list[str]:
    try:
        return debian.qemu_with_vfio_user()
    except Unavailable as exc:
        pytest.skip(f"lab: left out, {exc}")


class Chips:
    """Answers the guest: the true state of the software devices, and faults for them."""

    def __init__(self, server: SoftGpuServer, share: Path) -> None:
        self._server, self._share = server, share
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        ask, draft = self._share / "ask", self._share / "answer-draft"
        while not self._stop.wait(0.02):
            if not ask.exists():
                continue
            for name, faults in json.loads(ask.read_text()).items():
                self._server.devices[name].chip.faults = dict(faults)
            ask.unlink()
            state = {n: {"active": d.chip.active, "resets": d.resets} for n, d in self._server.devices.items()}
            draft.write_text(json.dumps(state))
            draft.rename(self._share / "answer")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()


Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(kernel: Kernel, qemu: list[str], tmp_path: Path) -> Run:
    """Run a scenario of `scenarios.py` on a machine with these devices; its facts."""
    share, sockets = tmp_path / "share", tmp_path / "sockets"
    share.mkdir()
    sockets.mkdir()

    def scenario(
        name: str, devices: dict[str, str], *, append: str = "", memory_mib: int = 2048
    ) -> list[dict[str, Any]]:
        server = SoftGpuServer(sockets, devices)
        chips = Chips(server, share)
        inner = [*stock_qemu(), "-accel", "kvm", "-accel", "tcg", "-machine", "q35", "-m", "192", "-nodefaults",
                 "-nographic", "-serial", "stdio", "-nic", "none", "-no-reboot", "-kernel", str(kernel.image),
                 "-append", "console=ttyS0"]  # fmt: skip
        (share / "nested").write_text(json.dumps(inner))
        try:
            outcome = boot(
                [PYTHON, "-B", "-m", "tests.lab.scenarios", name], kernel=kernel, qemu=qemu, share=share, append=append,
                devices=gpu_devices(sockets, devices), memory_mib=memory_mib, timeout_s=RUN_S,
            )  # fmt: skip
        finally:
            chips.close()
            server.close()
        assert outcome.status == 0, outcome.output[-6000:]
        return outcome.rows()

    return scenario


@pytest.mark.parametrize("profile", ["debian-6.12", "lab-6.12"])
def test_conformance(profile: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every row on a newer stock kernel, and on ours with IOMMUFD. `make lab-short` has 6.1."""
    try:
        machine = request.getfixturevalue("kernel") if profile == "lab-6.12" else stock_kernel(profile)
        found = run_rows(machine, stock_qemu(), tmp_path)
    except Unavailable as exc:
        pytest.skip(f"lab: left out, {exc}")
    assert found == {row.id: row.expected for row in ROWS if profile in row.kernels}


@pytest.mark.parametrize(
    "board", [pytest.param(BOARD, id="2-gpus-1-switch"), pytest.param(HGX, id="8-gpus-4-switches")]
)
def test_cold_to_on_to_ppcie_and_back(run: Run, board: dict[str, str]) -> None:
    facts = {row["step"]: row for row in run("whole", board)}
    gpus = sum(model == "h100" for model in board.values())
    switches = len(board) - gpus
    assert facts["cold"]["bindings"] == [COLD] * len(board)
    assert facts["on"]["bindings"] == [VFIO] * len(board)
    assert facts["on"]["modes"] == [ON] * gpus + [CC_OFF] * switches
    assert len(facts["on"]["cdi"]) == len(board)
    assert facts["status"]["exit"] == 0, facts["status"]["text"]
    assert facts["ppcie"]["modes"] == [HOPPER_PPCIE] * gpus + [SWITCH_PPCIE] * switches
    assert len(facts["ppcie"]["cdi"]) == len(board)
    assert facts["reset"]["bindings"] == [COLD] * len(board)
    assert facts["reset"]["modes"] == [CC_OFF] * len(board)
    assert facts["reset"]["cdi"] == []
    assert [facts[step]["again"] for step in ("on", "ppcie", "reset")] == [0, 0, 0]


def test_lockdown_boot(run: Run) -> None:
    facts = {row["step"]: row for row in run("lockdown", BOARD, append="lockdown=integrity")}
    assert facts["locked"]["lockdown"] == "integrity"
    assert (facts["locked"]["config"], facts["locked"]["bar"]) == ("PermissionError", "PermissionError")
    assert facts["on"]["modes"] == [ON, ON, CC_OFF]
    assert len(facts["on"]["cdi"]) == 3


def test_the_kernel_resets_at_open_and_close(run: Run) -> None:
    """Why whoever may open a device may reset it, and why the guard is asked before."""
    (row,) = (row for row in run("resets", {"gpu0": "h100"}) if row["step"] == "resets")
    assert row["opened"] >= 1, row
    assert row["closed"] >= 1, row


def test_removal_and_return_are_heard(run: Run) -> None:
    facts = {row["step"]: row for row in run("uevents", {"gpu0": "h100"})}
    assert facts["removed"] == {"step": "removed", "listening": True, "woken": True, "there": False}
    assert facts["returned"] == {"step": "returned", "listening": True, "woken": True, "there": True}


def test_a_gpu_that_fell_off_the_bus_comes_back(run: Run) -> None:
    facts = {row["step"]: row for row in run("revival", {"gpu0": "h100", "gpu1": "h100"})}
    assert "does not answer" in facts["dead"]["reason"], facts["dead"]
    assert facts["revived"]["text"].endswith("answers again after a reset of its bus"), facts
    assert facts["after"]["state"] == "settled", facts["after"]
    assert facts["after"]["modes"] == [ON, ON]
    assert len(facts["after"]["cdi"]) == 2


@pytest.fixture(scope="session")
def gpu_admin_tools() -> tuple[str, str]:
    """Path and digest of NVIDIA's tool, which is neither vendored nor downloaded."""
    path = os.environ.get(TOOL)
    if path is None:
        pytest.skip(f"lab: left out, {TOOL} names no copy of NVIDIA's gpu-admin-tools")
    return path, tool_digest(read_tool(Path(path)))


def test_gpu_admin_tools_agrees_and_is_alone(run: Run, tmp_path: Path, gpu_admin_tools: tuple[str, str]) -> None:
    """NVIDIA's tool through our adapter, and our own backend reads what it set. Nobody gets a device meanwhile."""
    (tmp_path / "share" / "admin-tools").write_text(json.dumps(gpu_admin_tools))
    facts = {row["step"]: row for row in run("admin_tools", BOARD)}
    assert facts["on"]["modes"] == [ON, ON, CC_OFF], facts["on"]
    assert facts["on"]["ours"] == ["on", "on", "off"]
    assert facts["ppcie"]["modes"] == [HOPPER_PPCIE, HOPPER_PPCIE, SWITCH_PPCIE], facts["ppcie"]
    assert facts["ppcie"]["ours"] == ["ppcie"] * 3
    assert facts["off"]["modes"] == [CC_OFF] * 3, facts["off"]
    assert facts["held"]["taken"] == ["OSError"], facts["held"]
    assert {"--set-cc-mode=on", "--set-ppcie-mode=on"} <= set(facts["held"]["calls"])


def test_a_fault_at_any_device_leaves_none_mixed(run: Run) -> None:
    rows = [row for row in run("faults", BOARD) if row["step"] == "fault"]
    assert len(rows) == 3 * len(BOARD)
    for row in rows:
        assert row["result"] in {"rolled-back", "undo-failed"}, row
        assert row["others"] == ([ON, CC_OFF] if row["device"] != "switch0" else [ON, ON]), row
        assert row["offered"] == [], row
        assert row["restored"], row


def test_every_holder_is_refused_and_untouched(run: Run) -> None:
    """Processes in each way that the kernel knows, and a virtual machine with the GPU passed through."""
    rows = run("guard", BOARD)
    holders = [row for row in rows if row["step"] == "holder"]
    assert len(holders) == 3 * 7
    for row in holders:
        assert (row["exit"], row["named"], row["untouched"]) == (3, True, True), row
    nested = next(row for row in rows if row["step"] == "nested")
    assert nested["gpu"], nested["console"]
    free = next(row for row in rows if row["step"] == "free")
    assert free["bindings"] == [COLD] * len(BOARD)


def test_kill_before_every_change(run: Run) -> None:
    rows = run("crashes", {"gpu0": "h100", "switch0": "nvswitch"})
    steps = next(row for row in rows if row["step"] == "steps")
    crashes = [row for row in rows if row["step"] == "crash"]
    assert steps["clean"]
    assert len(crashes) == steps["killed"] >= 30
    assert {row["signal"] for row in crashes} == {9}
    assert {row["kind"] for row in crashes} == {"sysfs", "file", "register", "reset"}
    assert [row for row in crashes if row["found"] == "mixed"] == []
    assert "before" in {row["found"] for row in crashes if row["between"]}
