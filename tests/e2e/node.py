"""The untrusted side: API server, kubelet, agent and bridge around one simulated HGX host, and a runtime like Kata's."""

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import grpc

from kata_gpu.core.claim import DRIVER, ClaimRef
from kata_gpu.core.podresources import parse_cdi_name
from kata_gpu.host.kube import KubeApi
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.machine import Function
from kata_gpu.host.simkernel.presets import GPU_BUSES
from kata_gpu.ops.publish import SLICES as SLICES_PATH
from kata_gpu.ops.report import CONDITION
from tests.demo import free_port
from tests.e2e.program import Console, Program
from tests.kata_gpu.dra.fake_kubelet import FakeKubelet, KubeletError
from tests.kata_gpu.dra.fake_node import FakeNode
from tests.kata_gpu.dra.test_agent import get
from tests.kata_gpu.dra.test_bridge import ask, kata_names
from tests.kata_gpu.dra.world import NODE, NODES, SLICES, World, key

POLICY = "apiVersion: config.kata-gpu.dev/v1alpha1\nkind: NodePolicy\ndevices:\n  - select: all\n    mode: on\n"
CC_BITS = 0x3  # of the mode register: 0 off, 1 on, 3 devtools
CC_KNOB = 8


@dataclass(frozen=True)
class Pod:
    """A pod whose claim kubelet has prepared."""

    name: str
    ref: ClaimRef
    device: str  # what the scheduler allocated

    @property
    def address(self) -> str:
        """PCI address in the device's name."""
        return "{}:{}:{}.{}".format(*self.device.split("-")[1:])


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


def gpus_in(resource_slice: dict[str, Any]) -> list[dict[str, Any]]:
    """The GPUs of one slice; it also offers the whole board and the switches."""
    found = resource_slice["spec"].get("devices", [])
    return [d for d in found if d["attributes"]["type"]["string"] == "gpu"]


@dataclass
class Node:
    """`start` starts it. `rack` says which GPU sits in which slot: the truth that only hardware knows."""

    console: Console
    api: Any
    world: World = field(init=False)

    def __post_init__(self) -> None:
        self.work = self.console.log.parent
        self.sim = self.work / "host.sim"
        self.console("kata-gpu", "sim", "create", "--preset", "hgx-h100", self.sim)
        (self.work / "policy.yaml").write_text(POLICY)
        self.rack = {f"0000:{bus:02x}:00.0": serial for serial, bus in enumerate(GPU_BUSES)}
        self.root = self.work / "k"
        kube = KubeApi.connect(server=self.api.url)
        self.world = World(tmp=self.work, api=self.api, host=FakeNode(), kube=kube, kubelet=FakeKubelet(self.root))
        self.kubelet.serve_pod_resources()
        self.socket = self.work / "b.sock"
        self.port = free_port()
        self.bridge = Program(
            ["kata-gpu", "bridge", "run", "--socket", str(self.socket), "--kubelet-root", str(self.root)],
            self.work / "bridge.log",
        )
        self.agent = Program(
            ["kata-gpu", "agent", "run", "--node-name", NODE, "--server", self.api.url, "--kubelet-root", str(self.root),
             "--cdi-dir", str(self.work / "cdi"), "--policy", str(self.work / "policy.yaml"), "--sim", str(self.sim),
             "--bridge", str(self.socket), "--listen", f"127.0.0.1:{self.port}"],
            self.work / "agent.log",
        )  # fmt: skip

    def start(self) -> None:
        """Bridge, then agent: returns when every GPU is in mode `on` and offered."""
        self.start_bridge()
        self.agent.start(self.ready)

    @property
    def kubelet(self) -> FakeKubelet:
        """In this process; all it does goes over its unix sockets."""
        return self.world.kubelet

    @property
    def kernel(self) -> SimKernel:
        """The host as it is now."""
        return SimKernel(path=self.sim)

    def start_bridge(self) -> None:
        """Returns when it answers."""
        self.bridge.start(self.bridge_answers)

    def bridge_answers(self) -> bool:
        """Whether the runtime could ask."""
        try:
            ask(self.socket, "nobody")
        except grpc.RpcError as exc:
            return bool(exc.code() is grpc.StatusCode.NOT_FOUND)  # kubelet's word, passed on
        return True

    def ready(self) -> bool:
        """Whether the agent says that everything is in order; kubelet looks for new plugins meanwhile."""
        self.kubelet.scan()
        return get(self.port, "/readyz")[0] == 200

    # What the API server knows.

    def devices(self) -> dict[str, dict[str, Any]]:
        """GPUs that the node offers, by name."""
        slices = self.api.store.list(SLICES, fields=f"spec.nodeName={NODE}")[0]
        return {d["name"]: d for s in slices for d in gpus_in(s)}

    def taints(self) -> dict[str, str]:
        """GPU -> why it must not be allocated."""
        return {name: taint["value"] for name, d in self.devices().items() for taint in d.get("taints", [])}

    def version(self) -> str:
        """Of the ResourceSlices now."""
        return str(self.api.store.list(SLICES)[1])

    def taints_since(self, version: str, device: str) -> list[str]:
        """What every slice that was written since then said of a GPU; empty text for fit."""
        events = self.world.kube.watch(SLICES_PATH, resource_version=version, timeout_s=1)
        rows = [d for e in events if e["type"] == "MODIFIED" for d in gpus_in(e["object"]) if d["name"] == device]
        return [d["taints"][0]["value"] if d.get("taints") else "" for d in rows]

    def condition(self) -> tuple[str, str]:
        """Status and reason of the node's condition."""
        status = self.api.store.get(NODES, "", NODE).get("status", {})
        return next((c["status"], c["reason"]) for c in status["conditions"] if c["type"] == CONDITION)

    # Scheduler, kubelet and runtime.

    def pod(self) -> Pod:
        """The scheduler allocates the first GPU that is free and fit, kubelet prepares its claim."""
        held = {device for claim in self.kubelet.claims.values() for _, _, device, _ in claim.devices}
        name = next(
            name for name, d in sorted(self.devices().items())
            if name not in held and d["attributes"]["ccMode"]["string"] == "on" and not d.get("taints")
        )  # fmt: skip
        return self.pod_on(name)

    def pod_on(self, device: str) -> Pod:
        """With this very GPU. KubeletError, and no pod, where the driver refuses."""
        ref = self.world.claim(device)
        pod = f"pod-{self.world.count}-0"
        try:
            self.kubelet.prepare(pod, [key(ref)], DRIVER)
        except KubeletError:
            self.kubelet.unprepare(pod, [key(ref)], DRIVER)
            self.world.forget(ref)
            raise
        self.kubelet.pods["default", pod] = {"main": [ref.uid]}
        return Pod(pod, ref, device)

    def end(self, pod: Pod) -> None:
        """Kubelet takes the pod down."""
        self.kubelet.unprepare(pod.name, [key(pod.ref)], DRIVER)
        del self.kubelet.pods["default", pod.name]
        self.world.forget(pod.ref)

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
        specs = [json.loads(path.read_text()) for path in (self.work / "cdi").glob("*.json")]
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
        self.kubelet.stop()
