"""The agent as a process on a simulated host: what it does by itself, and in the modes without our DRA driver."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kata_gpu.core.beside_nvidia import COMPANION
from kata_gpu.core.claim import DRIVER
from kata_gpu.host.simkernel import events
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import hgx_h100
from kata_gpu.host.simkernel.state_file import run_directory
from kata_gpu.host.uevents import concerns_us
from kata_gpu.ops.agent import PERIOD
from kata_gpu.ops.report import CONDITION
from tests.kata_gpu.dra.test_agent import POD, get, wait
from tests.kata_gpu.dra.test_beside_nvidia import nvidia_slice, nvidia_socket
from tests.kata_gpu.dra.world import NODE, NODES, PODS, SLICES, World, numbered

ON = "apiVersion: config.kata-gpu.dev/v1alpha1\nkind: NodePolicy\ndevices:\n  - select: all\n    mode: on\n"
PROMPT_S = PERIOD.total_seconds() / 2  # what comes sooner than this was not waited for


@dataclass
class Child:
    """`kata-gpu agent run` with `--mode`, on two H100."""

    world: World
    tmp: Path
    sim: SimKernel
    policy: Path
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    more: list[str] = field(default_factory=list)

    def start(self, mode: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [
            sys.executable, "-c", "from kata_gpu.cli.main import main; main()", "agent", "run", "--node-name", NODE,
            "--server", self.world.api.url, "--kubelet-root", str(self.world.root), "--cdi-dir", str(self.tmp / "cdi"),
            "--policy", str(self.policy), "--sim", str(self.sim.path), "--listen", f"127.0.0.1:{self.port}",
            "--mode", mode,
        ]  # fmt: skip
        with (self.tmp / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        wait(lambda: get(self.port, "/healthz")[0] == 200, timeout_s=30)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until it holds, with an event now and then, so that no pass has to wait for its period."""
        path, known = self.sim.path, events.shape(self.sim.machine)
        assert path is not None

        def nudged() -> bool:
            events.tell(run_directory(path), {}, known)
            time.sleep(0.2)
            return condition()

        wait(nudged, timeout_s=30)

    def why(self) -> dict[str, str]:
        """What keeps it from being ready."""
        body = get(self.port, "/readyz")[1]
        return dict(json.loads(body)["why"]) if body else {"process": "no answer"}

    def ready(self) -> bool:
        """Once kubelet has looked."""
        self.world.kubelet.scan()
        return not self.why()

    def metrics(self) -> dict[str, float]:
        lines = get(self.port, "/metrics")[1].decode().splitlines()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}

    def pool(self, driver: str = DRIVER) -> list[str]:
        found = self.world.api.store.list(SLICES, fields=f"spec.driver={driver}")[0]
        return sorted(d["name"] for s in found for d in s["spec"].get("devices") or [])

    def node(self) -> dict[str, Any]:
        return self.world.api.store.get(NODES, "", NODE)

    def condition(self) -> tuple[str, str]:
        rows = self.node().get("status", {}).get("conditions") or []
        return next(((c["status"], c["reason"]) for c in rows if c["type"] == CONDITION), ("", ""))


@pytest.fixture
def child(world: World, tmp_path: Path) -> Iterator[Child]:
    """Not started; ends by SIGTERM, well."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(ON)
    sim = SimKernel.create(hgx_h100(gpus=2, switches=0), tmp_path / "host.json")
    world.kubelet.serve_pod_resources()
    made = Child(world, tmp_path, sim, policy)
    yield made
    if made.process is not None:
        made.process.send_signal(signal.SIGTERM)
        assert made.process.wait(30) == 0, (tmp_path / "log").read_text()


@pytest.mark.timeout(90)
@numbered("dra-079-uevents")
def test_a_hot_plug_is_published_before_the_next_periodic_look(child: Child, case: None) -> None:
    child.start("standalone")
    wait(child.ready, timeout_s=30)
    both = child.pool()
    assert len(both) == 2
    patience = 2 * PERIOD.total_seconds()  # the first may meet any moment; each later one begins just after a pass
    for _ in range(2):
        with child.sim.edit() as machine:
            machine.unplugged["0000:17:00.0"] = machine.functions.pop("0000:17:00.0")
        wait(lambda: child.pool() == both[1:], timeout_s=patience)
        patience = PROMPT_S
        with child.sim.edit() as machine:
            machine.functions["0000:17:00.0"] = machine.unplugged.pop("0000:17:00.0")
        wait(lambda: child.pool() == both, timeout_s=patience)


def test_events_of_a_simulated_host_look_like_the_kernels(tmp_path: Path) -> None:
    kernel = SimKernel.create(hgx_h100(gpus=1, switches=0), tmp_path / "host.json")
    with kernel.uevents() as heard, kernel.uevents() as other:
        with SimKernel(path=kernel.path).edit() as machine:
            del machine.functions["0000:17:00.0"]
        for listener in (heard, other):
            message = listener.recv(8192)
            assert message.startswith(b"remove@/devices/pci0000:16/")
            assert b"PCI_SLOT_NAME=0000:17:00.0" in message
            assert concerns_us(message)
        heard.setblocking(False)
        with kernel.edit() as machine:
            machine.now += 1
        with pytest.raises(BlockingIOError):
            heard.recv(8192)
    with kernel.edit() as machine:
        machine.functions.clear()
    assert list((tmp_path / "host.json.d" / events.FOLDER).iterdir()) == []  # who does not listen is forgotten


@pytest.mark.timeout(90)
def test_device_plugin_mode_switches_modes_around_the_pods_that_kubelet_names(child: Child) -> None:
    child.policy.write_text(ON.replace("mode: on", "mode: off"))
    child.start("device-plugin")
    kubelet = child.world.kubelet
    child.wait(lambda: not child.why())
    assert kubelet.device_plugins[0][0] == "cgpu.kata-gpu.dev/gpu"
    labels = child.node()["metadata"]["labels"]
    assert labels["kata-gpu.dev/cc-mode"] == "off"
    assert child.metrics()['kata_gpu_devices{state="ready"}'] == 2
    assert child.condition() == ("True", "Ready")

    child.world.api.store.create(PODS, "default", {"metadata": {"name": "p"}, "spec": POD})
    kubelet.extra_devices["default", "p"] = {"c": [("cgpu.kata-gpu.dev/gpu", ["gpu-0000-17-00-0"])]}
    kubelet.pods["default", "p"] = {"c": []}
    child.policy.write_text(ON)
    child.wait(lambda: child.condition()[1] == "ModeWaiting")
    assert child.node()["spec"]["unschedulable"]
    assert child.metrics()['kata_gpu_devices{state="mode-transition"}'] == 2
    kubelet.pods.clear()
    kubelet.extra_devices.clear()
    child.wait(lambda: child.condition() == ("True", "Ready"))
    assert child.node()["metadata"]["labels"]["kata-gpu.dev/cc-mode"] == "on"
    assert not child.node()["spec"].get("unschedulable")
    (file,) = (child.tmp / "cdi").iterdir()
    assert "gpu-0000-17-00-0" in file.read_text()
    file.unlink()
    child.wait(file.exists)  # what Allocate names can be resolved
    assert child.pool() == []  # DRA offers nothing here


@pytest.mark.timeout(90)
@numbered("dra-097-metrics")
def test_beside_nvidia_there_are_probes_and_metrics(child: Child, case: None) -> None:
    theirs = nvidia_socket(child.world.root)
    nvidia_slice(child.world, [0, 1])
    child.start("auto")
    child.wait(child.ready)
    child.wait(lambda: child.metrics()["kata_gpu_registered"] == 1)
    assert child.pool() == []
    assert COMPANION in child.world.kubelet.plugins
    theirs.unlink()
    child.wait(lambda: "pass" in child.why())
    assert child.metrics()['kata_gpu_step_failing{step="pass"}'] == 1
