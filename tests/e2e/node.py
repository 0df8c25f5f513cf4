"""The untrusted side: API server, kubelet, agent and bridge around one simulated HGX host, and a runtime like Kata's."""

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kata_gpu.core.podresources import parse_cdi_name
from kata_gpu.dra.kubelet import answers
from kata_gpu.host.kube import KubeApi
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.machine import Function
from kata_gpu.host.simkernel.presets import GPU_BUSES
from kata_gpu.ops.publish import SLICES as SLICES_PATH
from kata_gpu.ops.report import CONDITION
from tests.demo import free_port
from tests.e2e.kubelets import Kubelet, Pod, gpus_in, offers
from tests.e2e.program import Console, Program
from tests.kata_gpu.dra.test_agent import get
from tests.kata_gpu.dra.test_bridge import ask, kata_names
from tests.kata_gpu.dra.world import NODE, NODES, SLICES

POLICY = "apiVersion: config.kata-gpu.dev/v1alpha1\nkind: NodePolicy\ndevices:\n  - select: all\n    mode: on\n"
CC_BITS = 0x3  # of the mode register: 0 off, 1 on, 3 devtools
CC_KNOB = 8


@dataclass(frozen=True)
class Launch:
    """What the runtime hands to the VM: GPUs by their serial numbers, and init-data with its measurement."""

    addresses: tuple[str, ...]
    serials: tuple[int, ...]
    cc: bool
    init_data: bytes

    @property
    def host_data(self) -> str:
        """The digest that the firmware puts into every report."""
        return hashlib.sha256(self.init_data).hexdigest()


@dataclass
class Node:
    """`start` starts it. `rack` says which GPU sits in which slot: the truth that only hardware knows."""

    console: Console
    api: Any
    sim: Path
    kubelet: Kubelet

    def __post_init__(self) -> None:
        self.work = self.console.log.parent
        (self.work / "policy.yaml").write_text(POLICY)
        self.rack = {f"0000:{bus:02x}:00.0": serial for serial, bus in enumerate(GPU_BUSES)}
        self.socket = self.kubelet.folder / "b.sock"
        self.port = free_port()
        root = ("--kubelet-root", str(self.kubelet.root))
        self.bridge = Program(
            ["kata-gpu", "bridge", "run", "--socket", str(self.socket), *root], self.work / "bridge.log"
        )
        self.agent = Program(
            ["kata-gpu", "agent", "run", "--node-name", NODE, "--server", self.api.url, *root,
             "--cdi-dir", str(self.kubelet.cdi), "--policy", str(self.work / "policy.yaml"), "--sim", str(self.sim),
             "--bridge", str(self.socket), "--listen", f"127.0.0.1:{self.port}"],
            self.work / "agent.log",
        )  # fmt: skip

    def start(self) -> None:
        """Bridge, then agent: returns when every GPU is in mode `on` and offered."""
        self.start_bridge()
        self.agent.start(self.ready)

    @property
    def kernel(self) -> SimKernel:
        """The host as it is now."""
        return SimKernel(path=self.sim)

    def start_bridge(self) -> None:
        """Returns when it accepts calls."""
        self.bridge.start(lambda: answers(self.socket))

    def ready(self) -> bool:
        """Whether the agent says that everything is in order; kubelet looks for new plugins meanwhile."""
        self.kubelet.look()
        return get(self.port, "/readyz")[0] == 200

    # What the API server knows.

    def taints(self) -> dict[str, str]:
        """GPU -> why it must not be allocated."""
        return {name: taint["value"] for name, d in offers(self.api).items() for taint in d.get("taints", [])}

    def version(self) -> str:
        """Of the ResourceSlices now."""
        return str(self.api.store.list(SLICES)[1])

    def taints_since(self, version: str, device: str) -> list[str]:
        """What every slice that was written since then said of a GPU; empty text for fit."""
        events = KubeApi.connect(server=self.api.url).watch(SLICES_PATH, resource_version=version, timeout_s=1)
        rows = [d for e in events if e["type"] == "MODIFIED" for d in gpus_in(e["object"]) if d["name"] == device]
        return [d["taints"][0]["value"] if d.get("taints") else "" for d in rows]

    def condition(self) -> tuple[str, str]:
        """Status and reason of the node's condition."""
        status = self.api.store.get(NODES, "", NODE).get("status", {})
        return next((c["status"], c["reason"]) for c in status["conditions"] if c["type"] == CONDITION)

    # The runtime.

    def launch(self, pod: Pod, annotation: str) -> Launch:
        """As Kata does before it starts a VM: devices from the PodResources socket, init-data from the annotation."""
        names = kata_names(ask(self.socket, pod.name))
        nodes = [node for name in names for node in self._cdi_nodes(name)]
        functions = [self._function(node) for node in nodes]
        modes = {(f.chip.active & CC_BITS) if f.chip else 0 for f in functions}
        return Launch(
            addresses=tuple(f.address for f in functions),
            serials=tuple(self.rack[f.address] for f in functions),
            cc=modes == {1},
            init_data=gzip.decompress(base64.b64decode(annotation)),
        )

    def _cdi_nodes(self, name: str) -> list[str]:
        kind, device = parse_cdi_name(name)
        specs = [json.loads(path.read_text()) for path in self.kubelet.cdi.glob("*.json")]
        (found,) = (d for spec in specs if spec["kind"] == kind for d in spec["devices"] if d["name"] == device)
        return [node["path"] for node in found["containerEdits"]["deviceNodes"]]

    def _function(self, node: str) -> Function:
        number = int(node.removeprefix("/dev/vfio/devices/vfio"))
        (found,) = (f for f in self.kernel.machine.functions.values() if f.cdev == number)
        return found

    def hold(self, pid: int, launch: Launch) -> None:
        """The VM's process has the devices open."""
        for address in launch.addresses:
            self.kernel.hold(pid, "cdev", address, cmdline=["/opt/kata/bin/qemu-system-x86_64"], bound=True)

    def drop(self, pid: int) -> None:
        """The VM's process has ended."""
        self.kernel.drop(pid)

    # What a hostile host does.

    def swap(self, address: str, serial: int) -> int:
        """Another GPU of the same model in that slot; the serial number of the old one."""
        old, self.rack[address] = self.rack[address], serial
        return old

    def set_cc(self, address: str, *, on: bool) -> None:
        """Setting and register changed by another tool, with the reset that it takes."""
        with self.kernel.edit() as machine:
            chip = machine.functions[address].chip
            assert chip is not None
            chip.knobs[CC_KNOB] = int(on)
            chip.reset(machine.now)

    def close(self) -> None:
        """At the end."""
        self.agent.kill()
        self.bridge.kill()
