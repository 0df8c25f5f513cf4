"""Scheduler and kubelet of the node: the fake ones in this process, or real ones in namespaces of their own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kata_gpu.core.claim import DRIVER, ClaimRef
from kata_gpu.core.device_classes import render_device_classes
from kata_gpu.host.kube import KubeApi
from kata_gpu.host.simkernel.kernel import SimKernel
from tests.kata_gpu.dra.fake_kubelet import FakeKubelet, KubeletError
from tests.kata_gpu.dra.fake_node import FakeNode
from tests.kata_gpu.dra.fake_store import KINDS
from tests.kata_gpu.dra.real_api import RealApi
from tests.kata_gpu.dra.real_node import RealNode
from tests.kata_gpu.dra.test_kubelet import CLASSES, TEMPLATES
from tests.kata_gpu.dra.test_kubelet import Site as RealPods
from tests.kata_gpu.dra.world import CLAIMS, HANDLER, KATA, NODE, NODES, RUNTIME_CLASSES, World, key

EVENTS = KINDS["v1", "events"]
CLASS = "confidential-gpu"


@dataclass(frozen=True)
class Pod:
    """A pod whose claim kubelet has prepared; `device` is what the scheduler allocated."""

    name: str
    device: str

    @property
    def address(self) -> str:
        """PCI address in the device's name."""
        return "{}:{}:{}.{}".format(*self.device.split("-")[1:])


class Kubelet(Protocol):
    """A scheduler and a kubelet. `folder` holds their files, `root` is kubelet's directory, `cdi` the runtime's."""

    folder: Path
    root: Path
    cdi: Path

    def look(self) -> None:
        """Kubelet looks for new plugins now, where it does not do so by itself."""

    def pod(self) -> Pod:
        """A new pod with one GPU that is free and fit; running."""

    def refusal(self, device: str) -> str:
        """What kubelet says of a pod with this very GPU, which the driver refuses at first."""

    def end(self, pod: Pod) -> None:
        """The pod ends, and its claim."""

    def close(self) -> None:
        """At the end."""


def offers(api: Any) -> dict[str, dict[str, Any]]:
    """GPUs that nodes offer, by name; slices also offer the whole board and the switches."""
    found = (d for s in api.store.list(KINDS["resource.k8s.io/v1", "resourceslices"])[0] for d in gpus_in(s))
    return {d["name"]: d for d in found}


def gpus_in(resource_slice: dict[str, Any]) -> list[dict[str, Any]]:
    """The GPUs of one slice."""
    found = resource_slice["spec"].get("devices") or []
    return [d for d in found if d["attributes"]["type"]["string"] == "gpu"]


@dataclass
class FakePods:
    """The fake kubelet; all it does goes over its unix sockets."""

    folder: Path
    api: Any
    _refs: dict[str, ClaimRef] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root, self.cdi = self.folder / "k", self.folder / "cdi"
        self.api.store.create(NODES, "", {"metadata": {"name": NODE}})
        self._kubelet = FakeKubelet(self.root)
        kube = KubeApi.connect(server=self.api.url)
        self._world = World(tmp=self.folder, api=self.api, host=FakeNode(), kube=kube, kubelet=self._kubelet)
        self._kubelet.serve_pod_resources()

    def look(self) -> None:
        self._kubelet.scan()

    def pod(self) -> Pod:
        held = {device for claim in self._kubelet.claims.values() for _, _, device, _ in claim.devices}
        return self._start(
            next(
                name
                for name, d in sorted(offers(self.api).items())
                if name not in held and d["attributes"]["ccMode"]["string"] == "on" and not d.get("taints")
            )
        )

    def refusal(self, device: str) -> str:
        try:
            self._start(device)
        except KubeletError as exc:
            return str(exc)
        raise AssertionError(f"{device} was prepared")

    def end(self, pod: Pod) -> None:
        ref = self._refs.pop(pod.name)
        self._kubelet.pods.pop(("default", pod.name), None)
        self._kubelet.unprepare(pod.name, [key(ref)], DRIVER)
        self._world.forget(ref)

    def close(self) -> None:
        self._kubelet.stop()

    def _start(self, device: str) -> Pod:
        ref = self._world.claim(device)
        pod = Pod(f"pod-{self._world.count}-0", device)
        self._refs[pod.name] = ref
        try:
            self._kubelet.prepare(pod.name, [key(ref)], DRIVER)
        except KubeletError:
            self.end(pod)
            raise
        self._kubelet.pods["default", pod.name] = {"main": [ref.uid]}
        return pod


class RealKubelet:
    """A real kubelet, scheduler, controller manager and containerd (tests/kata_gpu/dra/real_node.py)."""

    def __init__(self, api: RealApi, assets: Path, sim: Path) -> None:
        self.api = api
        self._node = RealNode(assets, api)
        self.folder, self.root, self.cdi = self._node.dir, self._node.root, self._node.cdi
        self._pods = RealPods(self._node, SimKernel(path=sim))
        self._count = 0
        for body in render_device_classes(extended_resource=True):
            api.store.create(CLASSES, "", body)
        api.store.create(RUNTIME_CLASSES, "", {"metadata": {"name": KATA}, "handler": HANDLER})
        self._node.start()
        self._node.start_kubelet()

    def look(self) -> None:
        """It looks by itself."""

    def pod(self) -> Pod:
        name = self._create({"deviceClassName": CLASS})
        self._pods.running(name)
        self._pods.ask_bridge(name)  # kubelet tells of a pod a moment after it runs
        return Pod(name, self._allocated(name))

    def refusal(self, device: str) -> str:
        address = Pod("", device).address
        chosen = f'device.attributes["resource.kubernetes.io"].pciBusID == "{address}"'
        name = self._create({"deviceClassName": CLASS, "selectors": [{"cel": {"expression": chosen}}]})
        said: list[str] = []

        def told() -> bool:
            events = self.api.store.list(EVENTS, "default", f"involvedObject.name={name}")[0]
            said.extend(e["message"] for e in events if e["reason"] == "FailedPrepareDynamicResources")
            return bool(said)

        self._node.wait(told, f"kubelet's event about {name}")
        self.end(Pod(name, device))
        return said[0]

    def end(self, pod: Pod) -> None:
        self._pods.delete(pod.name)
        self._node.wait(lambda: not self._claims(pod.name), f"the claim of {pod.name} ends")

    def close(self) -> None:
        self._node.stop()

    def _create(self, request: dict[str, Any]) -> str:
        self._count += 1
        name = f"pod-{self._count}"
        spec = {"devices": {"requests": [{"name": "gpu", "exactly": request}]}}
        self.api.store.create(TEMPLATES, "default", {"metadata": {"name": name}, "spec": {"spec": spec}})
        self._pods.pod(name, resourceClaims=[{"name": "gpu", "resourceClaimTemplateName": name}])
        return name

    def _allocated(self, name: str) -> str:
        (claim,) = self._claims(name)
        (result,) = claim["status"]["allocation"]["devices"]["results"]
        return str(result["device"])

    def _claims(self, pod: str) -> list[dict[str, Any]]:
        found = self.api.store.list(CLAIMS, "default")[0]
        return [c for c in found if any(o["name"] == pod for o in c["metadata"].get("ownerReferences", []))]
