"""One node with everything around it: API server, kubelet, GPUs, and the driver as the shell wires it."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kata_gpu.core.beside_nvidia import COMPANION
from kata_gpu.core.checkpoint import HeldDevice
from kata_gpu.core.claim import CONFIG_API_VERSION, CONFIG_KIND, DRIVER, ClaimRef
from kata_gpu.dra.health import Health
from kata_gpu.dra.other_modes import CompanionClaims
from kata_gpu.dra.server import PluginPaths, PluginServer
from kata_gpu.dra.service import DraService
from kata_gpu.host.claim_cdi_dir import ClaimCdiDir
from kata_gpu.host.claim_file import ClaimFileStore
from kata_gpu.host.kube import KubeApi
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.prepare import ClaimPreparer, Node
from kata_gpu.ops.recover_claims import Recovered, recover
from tests.kata_gpu.dra.fake_api import FakeApi
from tests.kata_gpu.dra.fake_kubelet import ClaimKey, FakeKubelet
from tests.kata_gpu.dra.fake_node import GPU_BUSES, NOW, FakeNode
from tests.kata_gpu.dra.fake_store import KINDS, ApiError

NODE = "node-a"
REQUEST: dict[str, Any] = {"name": "gpu", "exactly": {"deviceClassName": "confidential-gpu"}}
CLAIMS = KINDS["resource.k8s.io/v1", "resourceclaims"]
SLICES = KINDS["resource.k8s.io/v1", "resourceslices"]
NODES = KINDS["v1", "nodes"]
PODS = KINDS["v1", "pods"]
RUNTIME_CLASSES = KINDS["node.k8s.io/v1", "runtimeclasses"]
KATA, HANDLER = "kata-nvidia-gpu-snp", "kata-qemu-nvidia-gpu-snp"


@dataclass
class Calls:
    """`Observer` that remembers."""

    seen: list[tuple[str, str]] = field(default_factory=list)

    def claim_call(self, call: str, code: str, seconds: float) -> None:
        """Remember."""
        self.seen.append((call, code))


@dataclass
class World:
    """A node; `preparer()` is a fresh process over the same disk."""

    tmp: Path
    api: FakeApi
    host: FakeNode
    kube: KubeApi
    kubelet: FakeKubelet
    calls: Calls = field(default_factory=Calls)
    changes: list[str] = field(default_factory=list)
    servers: list[PluginServer] = field(default_factory=list)
    count: int = 0

    @property
    def root(self) -> Path:
        """Kubelet's root directory."""
        return self.kubelet.root

    @property
    def node(self) -> Node:
        """Identity of this boot."""
        return Node(driver=DRIVER, pool=NODE, boot_id=self.host.boot_id)

    @property
    def store(self) -> ClaimFileStore:
        """The checkpoint."""
        return ClaimFileStore(self.root / "plugins" / DRIVER)

    @property
    def cdi(self) -> ClaimCdiDir:
        """The CDI directory."""
        return ClaimCdiDir(self.tmp / "cdi")

    def files(self) -> list[str]:
        """Everything in the CDI directory."""
        return sorted(p.name for p in (self.tmp / "cdi").glob("*")) + sorted(
            p.name for p in (self.tmp / "cdi").glob(".*")
        )

    def preparer(self, **ports: Any) -> ClaimPreparer:
        """The use case, with some ports replaced."""
        world: dict[str, Any] = {"store": self.store, "kube": self.kube, "devices": self.host, "cdi": self.cdi}
        return ClaimPreparer(
            self.node, now=lambda: NOW, on_change=lambda: self.changes.append("change"), **(world | ports)
        )

    def claim(
        self,
        *devices: str,
        name: str = "",
        mode: str | None = "on",
        configs: list[dict[str, Any]] | None = None,
        pods: int = 1,
        runtime: str | None = KATA,
        others: Sequence[dict[str, Any]] = (),
        **result: Any,
    ) -> ClaimRef:
        """An allocated claim in the API, and its pods of RuntimeClass `runtime`. `others` are results of other drivers."""
        self.count += 1
        name = name or f"claim-{self.count}"
        request, _, choice = str(result.get("request", "gpu")).partition("/")
        first = {"name": request, "firstAvailable": [REQUEST["exactly"] | {"name": choice}]} if choice else REQUEST
        requests = [first] + [REQUEST | {"name": o["request"]} for o in others]
        body = {"metadata": {"name": name}, "spec": {"devices": {"requests": requests}}}
        made = self.api.store.create(CLAIMS, "default", body)
        if configs is None:
            configs = [config("FromClass", requireMode=mode)] if mode else []
        made["status"] = {
            "allocation": {
                "devices": {
                    "results": [*others]
                    + [{"request": "gpu", "driver": DRIVER, "pool": NODE, "device": d} | result for d in devices],
                    "config": configs,
                }
            },
            "reservedFor": [self.consumer(f"pod-{self.count}-{i}", runtime) for i in range(pods)],
        }
        self.api.store.replace(CLAIMS, "default", name, made, status=True)
        return ClaimRef(namespace="default", name=name, uid=made["metadata"]["uid"])

    def consumer(self, name: str, runtime: str | None) -> dict[str, str]:
        """A pod in the API, as a claim is reserved for it. Its RuntimeClass is made where it is not there yet."""
        spec: dict[str, Any] = {"containers": [{"name": "c", "image": "registry.invalid/c:1"}]}
        if runtime is not None:
            spec["runtimeClassName"] = runtime
            with suppress(ApiError):
                self.api.store.create(RUNTIME_CLASSES, "", {"metadata": {"name": runtime}, "handler": HANDLER})
        made = self.api.store.create(PODS, "default", {"metadata": {"name": name}, "spec": spec})
        return {"resource": "pods", "name": name, "uid": made["metadata"]["uid"]}

    def forget(self, ref: ClaimRef) -> None:
        """Delete the claim from the API."""
        self.api.store.delete(CLAIMS, ref.namespace, ref.name)

    def prepare(self, ref: ClaimRef, **ports: Any) -> tuple[HeldDevice, ...]:
        """Prepare by a fresh process."""
        return self.preparer(**ports).prepare(ref, Deadline.after(40))

    def unprepare(self, ref: ClaimRef, **ports: Any) -> None:
        """Unprepare by a fresh process."""
        self.preparer(**ports).unprepare(ref.uid, Deadline.after(40))

    def recover(
        self, *, listed: Callable[[], frozenset[str]] = frozenset, store: ClaimFileStore | None = None
    ) -> Recovered:
        """Start-up, or by a process that goes on with its `store`."""
        return recover(
            self.node,
            store=store or self.store,
            kube=self.kube,
            devices=self.host,
            cdi=self.cdi,
            listed=listed,
            now=NOW,
            deadline=Deadline.after(40),
        )

    def serve(self, *, instance: str = "", preparer: Any = None) -> PluginServer:
        """The plugin, started."""
        paths = PluginPaths(kubelet_root=self.root, driver=DRIVER, instance=instance)
        service = DraService(preparer or self.preparer(), self.calls)
        server = PluginServer(paths, service, Health(NODE, lambda: NOW, refresh_s=0.05))
        server.start()
        self.servers.append(server)
        return server

    def companion(self) -> PluginServer:
        """The companion driver's plugin, not started."""
        paths = PluginPaths(kubelet_root=self.root, driver=COMPANION)
        server = PluginServer(
            paths, DraService(CompanionClaims(self.kube, NODE), self.calls), Health(NODE, lambda: NOW)
        )
        self.servers.append(server)
        return server

    def stop_all(self) -> None:
        """Stop every plugin."""
        while self.servers:
            self.servers.pop().stop()


def key(ref: ClaimRef) -> ClaimKey:
    """The claim as kubelet sends it."""
    return ClaimKey(ref.namespace, ref.name, ref.uid)


def config(source: str, *, driver: str = DRIVER, requests: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """One opaque configuration of an allocation."""
    parameters = {"apiVersion": CONFIG_API_VERSION, "kind": CONFIG_KIND} | {
        k: v for k, v in fields.items() if v is not None
    }
    return {
        "source": source,
        "requests": requests or [],
        "opaque": {"driver": driver, "parameters": parameters},
    }


def numbered(case: str) -> pytest.MarkDecorator:
    """Mark a plain test function with the number of its behaviour; the function takes `case`."""
    return pytest.mark.parametrize("case", [pytest.param(None, id=case)])


def gpu(index: int) -> str:
    """DRA name of the index-th GPU of the node."""
    return f"gpu-0000-{GPU_BUSES[index]:02x}-00-0"


def address(index: int) -> str:
    """PCI address of the index-th GPU of the node."""
    return f"0000:{GPU_BUSES[index]:02x}:00.0"
