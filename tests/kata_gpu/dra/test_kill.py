"""SIGKILL at every step of Prepare and Unprepare, on a real process behind real sockets (dra.md 7, behaviour 63)."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from kata_gpu.core.claim import DRIVER, ClaimRef
from kata_gpu.core.claim_cdi import file_name, parse_claim_file
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import hgx_h100
from kata_gpu.ops import setup
from tests.kata_gpu.dra import mortal
from tests.kata_gpu.dra.world import World, key

GPU, OTHER = "gpu-0000-17-00-0", "gpu-0000-3d-00-0"
ADDRESS = "0000:17:00.0"
POD = "pod"


@dataclass
class Mortal:
    """Kubelet's view of a driver that dies."""

    world: World
    site: mortal.Site
    context: Any
    count: int = 0
    deaths: int = 0
    _child: Any = None
    _count: Any = None

    def start(self, at: int = -1) -> None:
        """A new process, registered."""
        self._count, serving = self.context.Value("i", 0), self.context.Event()
        self._child = self.context.Process(target=mortal.serve, args=(self.site, at, self._count, serving), daemon=True)
        self._child.start()
        assert serving.wait(30)
        self.world.kubelet.scan()

    def call(self, method: str, ref: ClaimRef) -> bool:
        """One call of kubelet. False where the process died of it."""
        kubelet = self.world.kubelet
        try:
            getattr(kubelet, method)(POD, [key(ref)], DRIVER)
        except grpc.RpcError as exc:
            assert exc.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
            self._child.join(30)
            assert self._child.exitcode == -signal.SIGKILL
            kubelet.plugins.clear()  # its connections are gone
            self.deaths += 1
            return False
        return True

    def end(self) -> None:
        """Stop the process that is there; `count` is what it did."""
        self.count = self._count.value
        self._child.kill()
        self._child.join(30)
        self.world.kubelet.plugins.clear()

    def take_away(self) -> None:
        """The host's driver took the GPU, so that Prepare has to bind it."""
        with SimKernel(path=self.site.sim).edit() as machine:
            function = machine.functions[ADDRESS]
            function.driver, function.cdev, function.override = "nvidia", None, None

    def state(self) -> dict[str, Any]:
        """What must be equal after any death."""
        plugin = self.site.kubelet_root / "plugins" / DRIVER
        checkpoint = self.site.store().load()
        return {
            "claims": {c.ref.uid: (str(c.state), [d.cdi_id for d in c.devices]) for c in checkpoint.claims},
            "quarantine": checkpoint.quarantine,
            "cdi": {p.name: len(parse_claim_file(p.read_bytes(), uid_of(p)).devices) for p in self.site.cdi.iterdir()},
            "files": sorted(p.name for p in plugin.iterdir() if not p.is_socket()),
            "driver": SimKernel(path=self.site.sim).machine.functions[ADDRESS].driver,
            "handles": SimKernel(path=self.site.sim).machine.handles,
        }


def lasting(state: dict[str, Any]) -> dict[str, Any]:
    """Without temporary files: the next save replaces what a death left of one."""
    return state | {"files": [name for name in state["files"] if not name.startswith(".")]}


def uid_of(path: Path) -> str:
    return path.name.removeprefix("cgpu.kata-gpu.dev-claim_").removesuffix(".json")


@pytest.fixture
def dying(world: World, tmp_path: Path) -> Iterator[Mortal]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([mortal.__name__])
    site = mortal.Site(world.root, tmp_path / "cdi", tmp_path / "host.json", tmp_path / "state", world.api.url)
    SimKernel.create(hgx_h100(gpus=2, switches=0), site.sim)
    with SimKernel(path=site.sim).edit() as machine:
        machine.drivers.append("nvidia")
    setup.setup(site.node(), NodePolicy.everything(CcMode.ON))
    site.cdi.mkdir(exist_ok=True)
    made = Mortal(world, site, context)
    yield made
    made.end()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "stride", [pytest.param(5, id="dra-063-sigkill"), pytest.param(1, id="dra-063-sigkill-all", marks=pytest.mark.soak)]
)
def test_killed_before_every_change(dying: Mortal, stride: int) -> None:
    """Each death is followed by a start and kubelet's retry; then all is as if nobody had died."""
    world = dying.world
    held = world.claim(OTHER)
    dying.start()
    assert dying.call("prepare", held)
    ref = world.claim(GPU)
    dying.take_away()
    assert dying.call("prepare", ref)
    prepared = dying.state()
    assert prepared["claims"][ref.uid][0] == "prepared"
    assert dying.call("unprepare", ref)
    free = dying.state()
    assert set(free["claims"]) == set(prepared["claims"]) - {ref.uid}
    assert file_name(ref.uid) not in free["cdi"]
    dying.end()

    for method, undo, expected in (("prepare", "unprepare", prepared), ("unprepare", "prepare", free)):
        for at in itertools.count(1, stride):
            if method == "prepare":
                dying.take_away()
            dying.start(at)
            if dying.call(method, ref):
                break  # it lived through all of its changes
            dying.start()
            assert dying.call(method, ref)
            assert lasting(dying.state()) == lasting(expected), f"{method} killed before change {at}"
            assert dying.call(undo, ref)
            dying.end()
        assert dying.state() == expected  # nothing temporary stays for longer than a death
        dying.end()
        assert at > 30
    assert dying.deaths > 100 / stride
    assert os.getpid() not in {h.pid for h in dying.state()["handles"]}
    dying.start()
