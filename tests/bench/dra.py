"""NodePrepareResources over gRPC on the simulated host, and the memory of the agent as a process.

The whole path is measured: socket, lock, claim from a real HTTP server, checks, register reads of the simulated chips,
two checkpoints and one CDI file with fsync. Time inside the simulated host is measured and taken out.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import psutil
import structlog

from kata_gpu.core.claim import DRIVER
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.dra._pb import dra_v1_pb2, dra_v1_pb2_grpc
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.kube import KubeApi
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import hgx_h100
from kata_gpu.ops import setup
from kata_gpu.ops.node import Node
from kata_gpu.ops.node_devices import HostDevices
from tests.bench.figure import Figure
from tests.kata_gpu.dra.fake_api import FakeApi
from tests.kata_gpu.dra.fake_kubelet import FakeKubelet
from tests.kata_gpu.dra.fake_node import FakeNode
from tests.kata_gpu.dra.world import NODE, NODES, World, key

ROUNDS, WARM_UP = 200, 10
LIMIT_1_MS, LIMIT_8_MS, LIMIT_RSS_MIB = 25.0, 60.0, 90.0
START_S, POLL_S, STARTS = 30.0, 0.02, 3


@contextmanager
def world() -> Iterator[World]:
    """API server, kubelet and node around the driver."""
    api, root, tmp = FakeApi(), Path(tempfile.mkdtemp(prefix="k")), Path(tempfile.mkdtemp())
    api.store.create(NODES, "", {"metadata": {"name": NODE}})
    kubelet = FakeKubelet(root)
    made = World(tmp=tmp, api=api, host=FakeNode(), kube=KubeApi.connect(server=api.url), kubelet=kubelet)
    try:
        yield made
    finally:
        made.stop_all()
        kubelet.stop()
        api.stop()
        shutil.rmtree(root)
        shutil.rmtree(tmp)


class Hardware:
    """The simulated host, with the time that is spent in it: on a real node that is the kernel's and the device's."""

    def __init__(self, kernel: SimKernel) -> None:
        self.kernel = kernel
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.kernel, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            before = time.perf_counter()
            try:
                return real(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - before

        return timed


def prepare_ms(gpus: int) -> tuple[float, float, float]:
    """p50 and p99 of one NodePrepareResources call for a claim of `gpus` without the host's time, and p50 with it."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with world() as w:
        hardware = Hardware(SimKernel(hgx_h100()))
        node = Node(host=hardware, state=DurableDir(w.tmp / "s"), cdi=DurableDir(w.tmp / "c"))
        setup.setup(node, NodePolicy.everything(CcMode.ON))
        devices = HostDevices(node)
        names = [d.name for d in devices.observe().gpus[:gpus]]
        w.serve(preparer=w.preparer(devices=devices))
        w.kubelet.scan()
        taken, whole = [], []
        with grpc.insecure_channel(f"unix:{w.kubelet.plugins[DRIVER][0].endpoint}") as channel:  # kubelet keeps one
            stub = dra_v1_pb2_grpc.DRAPluginStub(channel)
            for _ in range(WARM_UP + ROUNDS):
                ref = w.claim(*names)
                claim = dra_v1_pb2.Claim(namespace=ref.namespace, name=ref.name, uid=ref.uid)
                hardware.seconds, before = 0.0, time.perf_counter()
                answer = stub.NodePrepareResources(dra_v1_pb2.NodePrepareResourcesRequest(claims=[claim]))
                whole.append((time.perf_counter() - before) * 1000)
                taken.append(whole[-1] - hardware.seconds * 1000)
                if len(answer.claims[ref.uid].devices) != gpus:
                    raise RuntimeError(answer.claims[ref.uid].error)
                stub.NodeUnprepareResources(dra_v1_pb2.NodeUnprepareResourcesRequest(claims=[claim]))
                w.forget(ref)
    taken, whole = sorted(taken[WARM_UP:]), sorted(whole[WARM_UP:])
    return taken[len(taken) // 2], taken[int(len(taken) * 0.99)], whole[len(whole) // 2]


@contextmanager
def agent(w: World) -> Iterator[tuple[int, int, float]]:
    """`kata-gpu agent run` on an HGX board, ready: its process, its port, and the seconds that it took to get there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    sim, policy = w.tmp / "host.json", w.tmp / "policy.yaml"
    if not sim.exists():
        SimKernel.create(hgx_h100(), sim)
    policy.write_text(
        "apiVersion: config.kata-gpu.dev/v1alpha1\nkind: NodePolicy\ndevices:\n  - select: all\n    mode: on\n"
    )
    command = [
        sys.executable, "-c", "from kata_gpu.cli.main import main; main()", "agent", "run", "--node-name", NODE,
        "--server", w.api.url, "--kubelet-root", str(w.root), "--cdi-dir", str(w.tmp / "cdi"),
        "--policy", str(policy), "--sim", str(sim), "--listen", f"127.0.0.1:{port}",
    ]  # fmt: skip
    began = time.monotonic()
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        while not _ready(w, port):
            if time.monotonic() > began + START_S:
                raise TimeoutError("the agent did not become ready")
            time.sleep(POLL_S)
        yield child.pid, port, time.monotonic() - began
    finally:
        os.kill(child.pid, signal.SIGTERM)
        child.wait(30)


def agent_start_s() -> tuple[float, float]:
    """Start to ready: on a cold host, where all devices are bound and switched first, and on one that is as wanted."""
    with world() as w:
        with agent(w) as (_, _, cold):
            pass
        settled = []
        for _ in range(STARTS):
            with agent(w) as (_, _, seconds):
                settled.append(seconds)
        return cold, min(settled)


def agent_rss_mib() -> float:
    """Resident memory of `kata-gpu agent run` after registration, publishing, one claim and a scrape."""
    with world() as w, agent(w) as (pid, port, _):
        ref = key(w.claim("gpu-0000-17-00-0"))
        w.kubelet.prepare("pod", [ref], DRIVER)
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read()
        return float(psutil.Process(pid).memory_info().rss) / 2**20


def _ready(w: World, port: int) -> bool:
    w.kubelet.scan()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def figures() -> list[Figure]:
    """What `make bench` prints for this suite."""
    out = []
    for gpus, limit in ((1, LIMIT_1_MS), (8, LIMIT_8_MS)):
        p50, p99, whole = prepare_ms(gpus)
        name = f"NodePrepareResources, {gpus} GPU{'s' if gpus > 1 else ''}"
        out += [
            Figure(suite="dra", name=f"{name}, p50", value=p50, unit="ms", caches="none"),
            Figure(suite="dra", name=f"{name}, p99", value=p99, unit="ms", caches="none", at_most=limit),
            Figure(suite="dra", name=f"{name}, p50 with simulated host", value=whole, unit="ms", caches="none"),
        ]
    rss = agent_rss_mib()
    return [*out, Figure(suite="dra", name="agent RSS", value=rss, unit="MiB", caches="none", at_most=LIMIT_RSS_MIB)]
