"""The commands as people run them: on a simulated host in a file, with exit codes and output that a person can read."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kata_gpu.cli.main import cli, run
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.machine import Process

GPU = "0000:17:00.0"


@pytest.fixture
def sim(tmp_path: Path) -> Path:
    """A simulated HGX H100 in a file."""
    path = tmp_path / "host.sim"
    assert run(cli, ["sim", "create", "--preset", "hgx-h100", str(path)]) == 0
    return path


@pytest.fixture
def kg(sim: Path, capsys: pytest.CaptureFixture[str]) -> "Runner":
    """Run a command on it."""
    capsys.readouterr()
    return Runner(sim, capsys)


class Runner:
    """Exit code, stdout and stderr of a command with `--sim`."""

    def __init__(self, sim: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.sim = sim
        self._capsys = capsys

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        code = run(cli, [*argv, "--sim", str(self.sim)])
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err


def test_the_main_path(kg: Runner) -> None:
    """List, plan, set up, second run plans nothing, status, verify, CDI, reset."""
    code, out, _ = kg("gpus")
    assert code == 0
    assert out.count("H100 SXM") == 8
    assert "8 GPUs, 4 NVSwitches; kernel 6.17.0-5-generic, TEE snp, iommufd cdevs" in out
    code, out, _ = kg("node", "setup", "--cc-mode", "on", "--dry-run")
    assert code == 0
    assert "plan (setup), nothing changed:" in out
    assert SimKernel(path=kg.sim).machine.writes == 0
    assert kg("node", "plan", "--cc-mode", "on")[0] == 1
    code, out, err = kg("node", "setup", "--cc-mode", "on")
    assert code == 0
    assert f"CC mode  {GPU}  off -> on" in out
    assert f"verified {GPU}  on" in err
    assert kg("node", "setup", "--cc-mode", "on")[:2] == (0, "nothing to do: the node is as the policy wants it\n")
    assert kg("node", "plan", "--cc-mode", "on")[0] == 0
    code, out, _ = kg("node", "status")
    assert code == 0
    assert out.startswith("settled: 12 of 12 devices bound; last setup applied\n")
    assert "label nvidia.com/cc.ready.state=true" in out
    code, out, _ = kg("cc", "verify", "on")
    assert (code, out.splitlines()[-1]) == (0, "8 of 8 devices are in mode on")
    assert kg("cc", "verify", "off", GPU)[0] == 1
    assert kg("cdi", "check")[:2] == (0, "all CDI files are valid and current\n")
    assert kg("node", "reset")[0] == 0
    code, out, _ = kg("node", "status")
    assert (code, out.split(":")[0]) == (1, "unconfigured")


def test_json_for_machines(kg: Runner) -> None:
    kg("node", "setup", "--cc-mode", "on")
    devices = json.loads(kg("gpus", "--output", "json")[1])["devices"]
    gpu = next(d for d in devices if d["address"] == GPU)
    assert gpu["name"] == "gpu-0000-17-00-0"
    assert (gpu["ccMode"], gpu["driver"], gpu["bound"]) == ("on", "vfio-pci", True)
    status = json.loads(kg("node", "status", "--output", "json")[1])
    assert status["state"] == "settled"
    assert status["labels"]["nvidia.com/cc.mode.state"] == "on"
    assert json.loads(kg("node", "setup", "--cc-mode", "on", "--output", "json")[1])["actions"] == []
    assert len(json.loads(kg("vfio", "status", "--output", "json")[1])) == 12


def test_in_use_is_exit_3(kg: Runner) -> None:
    kg("node", "setup", "--cc-mode", "on")
    assert run(cli, ["sim", "hold", str(kg.sim), GPU]) == 0
    code, _, err = kg("node", "setup", "--cc-mode", "off")
    assert code == 3
    assert "error[in-use]" in err
    assert "fix: stop that pod or VM first" in err
    assert "by /dev/vfio/" in kg("vfio", "status")[1]
    run(cli, ["sim", "hold", str(kg.sim), GPU, "--release"])
    assert kg("node", "setup", "--cc-mode", "off")[0] == 0


def _edit(sim: Path, **faults: object) -> None:
    with SimKernel(path=sim).edit() as machine:
        chip = machine.functions[GPU].chip
        assert chip is not None
        chip.faults.update(faults)


def test_rolled_back_is_exit_5(kg: Runner) -> None:
    with SimKernel(path=kg.sim).edit() as machine:
        machine.functions[GPU].faults["probe"] = "EINVAL"
    code, _, err = kg("node", "setup", "--cc-mode", "on")
    assert code == 5
    assert "undone because" in err
    assert not any(f.driver == "vfio-pci" for f in SimKernel(path=kg.sim).machine.functions.values())


def test_timeout_is_exit_6_and_then_reboot_is_exit_4(kg: Runner) -> None:
    with SimKernel(path=kg.sim).edit() as machine:
        machine.functions[GPU].driver = "snd_hda_intel"
        machine.functions[GPU].faults["unbind"] = "hang"
    assert kg("bind", GPU)[0] == 6
    code, out, _ = kg("vfio", "status")
    assert code == 1
    assert "wedged: " in out
    assert kg("node", "status")[1].startswith("between: bind of process")
    with SimKernel(path=kg.sim).edit() as machine:
        machine.profile = "ubuntu-6.17"
    (kg.sim.parent / "host.sim.d" / "state" / "journal.json").unlink()
    code, _, err = kg("bind", GPU)
    assert code == 4
    assert "reboot the node" in err


def test_locked_out_of_band_is_exit_7(kg: Runner) -> None:
    _edit(kg.sim, locked=True)
    code, _, err = kg("node", "setup", "--cc-mode", "on")
    assert code == 7
    assert "BMC" in err


def test_no_such_host_and_a_device_not_on_vfio(kg: Runner, tmp_path: Path) -> None:
    assert run(cli, ["gpus", "--sim", str(tmp_path / "absent.sim")]) == 2  # no such file is bad input
    with SimKernel(path=kg.sim).edit() as machine:
        machine.interrupt_remapping = False
    code, _, err = kg("cc", "query")
    assert (code, "not on VFIO" in kg("cc", "query")[1]) == (1, True), err


def test_managed_by_another_is_exit_3(kg: Runner) -> None:
    with SimKernel(path=kg.sim).edit() as machine:
        machine.processes[7] = Process(pid=7, comm="x", cmdline=["vfio-manage", "bind"])
    code, _, err = kg("node", "setup", "--cc-mode", "on")
    assert code == 3
    assert "NVIDIA vfio-manager manages the devices of this node" in err
    assert "vfioManager.enabled=false" in err


@pytest.mark.parametrize(
    "argv",
    [
        ["node", "setup"],
        ["node", "setup", "--cc-mode", "maybe"],
        ["bind", "17:00.0"],
        ["bind", "0000:ff:00.0"],
        ["cc", "set", "on", GPU],
        ["node", "setup", "--cc-mode", "on", "--admin-tools", "/bin/true"],
        ["node", "setup", "--cc-mode", "on", "--force"],
    ],
    ids=["no-policy", "no-such-mode", "short-address", "no-such-device", "not-bound", "unpinned-tool", "no-force"],
)
def test_usage_is_exit_2(kg: Runner, argv: list[str]) -> None:
    code, _, err = kg(*argv)
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": "other"}', b"\xff" * 100])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    assert run(cli, ["gpus", "--sim", str(path)]) == 2
    assert run(cli, ["sim", "create", "--preset", "mixed", str(path)]) == 2
    assert run(cli, ["sim", "create", "--preset", "mixed", "--replace", str(path)]) == 2
    assert path.read_bytes() == content


def test_policy_file(kg: Runner, tmp_path: Path) -> None:
    policy = tmp_path / "node-policy.yaml"
    policy.write_text(
        "apiVersion: config.kata-gpu.dev/v1alpha1\nkind: NodePolicy\nbind: gpus\n"
        f'devices:\n  - {{select: "{GPU}", mode: devtools}}\n  - {{select: all, mode: on}}\n'
    )
    code, out, _ = kg("node", "setup", "--policy", str(policy))
    assert code == 0
    assert "note: devtools is for debugging" in out
    status = json.loads(kg("node", "status", "--output", "json")[1])
    assert [d["ccMode"] for d in status["devices"] if d["kind"] == "gpu"] == ["devtools"] + ["on"] * 7
    assert not any(d["bound"] for d in status["devices"] if d["kind"] == "nvswitch")


def test_policy_and_command_line_must_agree_on_the_backend(kg: Runner, tmp_path: Path) -> None:
    policy = tmp_path / "node-policy.yaml"
    policy.write_text(
        "apiVersion: config.kata-gpu.dev/v1alpha1\nkind: NodePolicy\nbackend: gpu-admin-tools\n"
        "devices:\n  - {select: all, mode: on}\n"
    )
    code, _, err = kg("node", "setup", "--policy", str(policy))
    assert code == 2
    assert "--admin-tools with its digest" in err


def test_faults_of_a_simulated_device(kg: Runner) -> None:
    """From fault to diagnosis to fix, as an operator meets it."""
    kg("node", "setup", "--cc-mode", "on")

    def fault(*names: str) -> None:
        assert run(cli, ["sim", "fault", str(kg.sim), GPU, *names]) == 0

    fault("off-the-bus")
    code, _, err = kg("cc", "set", "off", GPU)
    assert (code, "does not answer" in err, f"kata-gpu recover {GPU}" in err) == (5, True, True)
    code, out, _ = kg("node", "status")
    assert (code, out.splitlines()[0].startswith(f"degraded: {GPU}: the device does not answer; `kata-gpu rec")) == (
        1,
        True,
    )
    assert kg("recover", GPU)[1].endswith("answers again after a reset of its bus\n")
    assert kg("node", "setup", "--cc-mode", "on")[0] == 0
    fault("locked")
    assert kg("cc", "set", "off", GPU)[0] == 7
    fault("dead", "boot-never")
    assert kg("recover", GPU)[0] == 6
    fault()
    assert kg("node", "setup", "--cc-mode", "off")[0] == 0
    assert run(cli, ["sim", "fault", str(kg.sim), "0000:ff:00.0", "dead"]) == 2


def test_bind_and_release(kg: Runner) -> None:
    assert kg("bind", GPU)[0] == 0
    assert kg("bind", GPU)[1] == "nothing to do: it is so already\n"
    assert kg("cc", "set", "on", GPU)[0] == 0
    assert kg("cc", "query", GPU)[0] == 0
    assert kg("gc")[1] == "nothing to collect\n"
    assert kg("recover")[1] == "nothing to recover\n"
    assert kg("release", GPU)[0] == 0
    assert SimKernel(path=kg.sim).machine.functions[GPU].driver is None


def test_rendered_tree_shows_the_same(kg: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kg("node", "setup", "--cc-mode", "on")
    assert run(cli, ["sim", "render", str(kg.sim), str(tmp_path / "tree")]) == 0
    capsys.readouterr()
    assert run(cli, ["gpus", "--host-root", str(tmp_path / "tree"), "--output", "json"]) == 0
    static = json.loads(capsys.readouterr().out)
    live = json.loads(kg("gpus", "--output", "json")[1])
    for device in (*static["devices"], *live["devices"]):
        device.pop("ccMode")
    assert static == live
    run(cli, ["doctor", "--host-root", str(tmp_path / "tree"), "--output", "json"])
    static = json.loads(capsys.readouterr().out)
    assert static["findings"] == json.loads(kg("doctor", "--output", "json")[1])["findings"]
    assert {f["status"] for f in static["findings"] if f["id"] == "DRV-06"} == {"ok"}  # our own overrides are not stale


@pytest.mark.parametrize("k", [0, 5, 20, 33])
def test_sigkill_of_the_real_process(sim: Path, k: int) -> None:
    """A process killed by the kernel at the k-th write, then recovered by another one."""
    with SimKernel(path=sim).edit() as machine:
        machine.crash_after = k
    argv = [sys.executable, "-m", "kata_gpu.cli", "node", "setup", "--cc-mode", "on", "--sim", str(sim)]
    died = subprocess.run(argv, capture_output=True, check=False, cwd=Path(__file__).parents[3])
    assert died.returncode == -signal.SIGKILL
    with SimKernel(path=sim).edit() as machine:
        machine.crash_after = None
        assert not [h for h in machine.handles if h.pid != os.getpid()]
    assert run(cli, ["recover", "--sim", str(sim)]) == 0
    machine = SimKernel(path=sim).machine
    assert not any(f.driver == "vfio-pci" for f in machine.functions.values())
    assert {f.chip.active for f in machine.functions.values() if f.chip} == {0}
    assert run(cli, ["node", "setup", "--cc-mode", "on", "--sim", str(sim)]) == 0


def test_every_command_has_help_with_an_example() -> None:
    """Help texts exist, and show how it is used."""
    import click

    from kata_gpu.cli.main import COMMANDS

    context = click.Context(cli)
    ours = {"bind", "release", "recover", "gc", "vfio", "node", "cc", "cdi", "sim", "gpus"}
    for name in ours & COMMANDS.keys():
        command = cli.get_command(context, name)
        assert command is not None
        children = command.commands.values() if isinstance(command, click.Group) else [command]
        for child in children:
            assert child.help
            assert "Example:" in child.help, (name, child.name)
