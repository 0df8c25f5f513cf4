"""The plugin as a process that kills itself with SIGKILL before the n-th system call which changes a file or the host.

Started by a fork server that has the imports done, so that a test can die hundreds of times.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from kata_gpu.core.claim import DRIVER
from kata_gpu.dra.health import Health
from kata_gpu.dra.server import PluginPaths, PluginServer
from kata_gpu.dra.service import DraService
from kata_gpu.host.claim_cdi_dir import ClaimCdiDir
from kata_gpu.host.claim_file import ClaimFileStore
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.kube import KubeApi
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.node import Node as HostNode
from kata_gpu.ops.node_devices import HostDevices
from kata_gpu.ops.prepare import ClaimPreparer, Node
from kata_gpu.ops.recover import recover as recover_node
from kata_gpu.ops.recover_claims import recover
from tests.kata_gpu.dra.fake_node import NOW
from tests.kata_gpu.dra.world import NODE, Calls

CHANGING = ("open", "write", "fsync", "rename", "link", "unlink")


@dataclass(frozen=True, slots=True)
class Site:
    """Where everything of the node is; the same for every process of it."""

    kubelet_root: Path
    cdi: Path
    sim: Path
    state: Path
    api: str

    def node(self) -> HostNode:
        """The simulated host."""
        return HostNode(host=SimKernel(path=self.sim), state=DurableDir(self.state), cdi=DurableDir(self.state / "cdi"))

    def store(self) -> ClaimFileStore:
        """The checkpoint."""
        return ClaimFileStore(self.kubelet_root / "plugins" / DRIVER)

    def start(self, calls: Calls) -> PluginServer:
        """What the agent does at its start: recover the node, recover the claims, serve."""
        node = self.node()
        with node.locked():
            recover_node(node)
        identity = Node(driver=DRIVER, pool=NODE, boot_id=SimKernel(path=self.sim).machine.boot_id)
        kube, devices, cdi = KubeApi.connect(server=self.api), HostDevices(node), ClaimCdiDir(self.cdi)
        recover(
            identity, store=self.store(), kube=kube, devices=devices, cdi=cdi, listed=frozenset, now=NOW,
            deadline=Deadline.after(40),
        )  # fmt: skip
        preparer = ClaimPreparer(identity, store=self.store(), kube=kube, devices=devices, cdi=cdi, now=lambda: NOW)
        paths = PluginPaths(kubelet_root=self.kubelet_root, driver=DRIVER)
        server = PluginServer(paths, DraService(preparer, calls), Health(NODE, lambda: NOW))
        server.start()
        return server


def serve(site: Site, at: int, count: Any, serving: Event) -> None:
    """Start, and die before the `at`-th change since then. `count` is how many there were."""
    site.start(Calls())

    def mortal(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if real is not os_open or args[1] & (os.O_CREAT | os.O_TRUNC):
                count.value += 1
                if count.value == at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return call

    os_open = os.open
    for name in CHANGING:
        setattr(os, name, mortal(getattr(os, name)))
    serving.set()
    signal.pause()
