"""Runs in the guest, as root: what an operator does to software GPUs on a real kernel. Facts are JSON lines.

`python -m tests.lab.scenarios NAME`. The chips live in the test's own process outside: `chips` asks there for the true
state of every device and injects faults, through files in the shared folder.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kata_gpu.core import vfio
from kata_gpu.core.cdi import device_nodes, parse_spec
from kata_gpu.core.gpu import CcMode
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.pci import PciFunction
from kata_gpu.errors import KataGpuError
from kata_gpu.host import isolate
from kata_gpu.host.cc.admin_tools import ENTRY, AdminToolsBackend
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.real import RealHost
from kata_gpu.host.uevents import UeventListener
from kata_gpu.host.vfio_device import VfioSession
from kata_gpu.ops import setup
from kata_gpu.ops.node import Node, observe_node, read_modes
from kata_gpu.ops.observe import observe
from kata_gpu.ops.recover import recover
from kata_gpu.ops.revive import revive
from kata_gpu.ops.status import status
from tests.kata_gpu.node.direct_host import DirectHost

SHARE = Path("/lab")
STATE, CDI = Path("/run/lab/state"), Path("/run/lab/cdi")
ANSWER_S, HOLDER_S, VM_S = 30.0, 60.0, 120.0
ON, OFF, PPCIE = (NodePolicy.everything(m) for m in (CcMode.ON, CcMode.OFF, CcMode.PPCIE))


def say(step: str, **facts: Any) -> None:
    """One fact."""
    print(json.dumps({"step": step, **facts}), flush=True)


def chips(faults: dict[str, dict[str, object]] | None = None) -> dict[str, dict[str, int]]:
    """Replace the faults of the named devices; the mode that is active in each chip, and how often it was reset."""
    draft, ask, answer = SHARE / "draft", SHARE / "ask", SHARE / "answer"
    draft.write_text(json.dumps(faults or {}))
    draft.rename(ask)
    until = time.monotonic() + ANSWER_S
    while not answer.exists():
        if time.monotonic() > until:
            raise TimeoutError("the test outside does not answer")
        time.sleep(0.02)
    found: dict[str, dict[str, int]] = json.loads(answer.read_text())
    answer.unlink()
    return found


def modes() -> list[int]:
    """Active mode of each chip, in the order of the devices."""
    return [chip["active"] for chip in chips().values()]


def node_on(host: RealHost) -> Node:
    """The node as the command line would have it."""
    return Node(host=host, state=DurableDir(STATE), cdi=DurableDir(CDI), progress=lambda line: print(line, flush=True))


def bindings(node: Node) -> list[list[str | None]]:
    """Driver and override of each device."""
    observed = observe_node(node)
    return [
        [d.function.driver, observed.overrides.get(d.function.address)] for d in observed.inventory.devices
    ]  # fmt: skip


def published(node: Node) -> list[str]:
    """Devices in our CDI files whose nodes all exist."""
    found = []
    for name in node.cdi.names():
        nodes = device_nodes(parse_spec(node.cdi.get(name) or b"", where=name))
        found += [device for device, paths in nodes.items() if all(Path(p).exists() for p in paths)]
    return sorted(found)


def refused(act: Callable[[], object]) -> dict[str, object]:
    """How an operation is refused; what it says where it is not."""
    try:
        act()
    except KataGpuError as exc:
        return {"code": exc.code, "exit": int(exc.exit_code), "text": str(exc)}
    return {"code": "done"}


def _facts(node: Node) -> dict[str, Any]:
    return {"bindings": bindings(node), "modes": modes(), "cdi": published(node)}


def whole() -> None:
    """From cold to CC on, PPCIe, and back, each a second time; the status of the command line."""
    node = node_on(RealHost())
    say("cold", **_facts(node))
    acts: dict[str, Callable[[], setup.Outcome]] = {
        "on": lambda: setup.setup(node, ON),
        "ppcie": lambda: setup.setup(node, PPCIE),
        "reset": lambda: setup.reset(node),
    }
    for name, act in acts.items():
        began = time.monotonic()
        act()
        say(name, **_facts(node), again=len(act().plan.actions), seconds=round(time.monotonic() - began, 1))
        if name == "on":
            command = [
                sys.executable,
                "-m",
                "kata_gpu.cli",
                "node",
                "status",
                "--state-dir",
                str(STATE),
                "--cdi-dir",
                str(CDI),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            say("status", exit=done.returncode, text=done.stdout + done.stderr)


def lockdown() -> None:
    """Configuration writes and BAR mappings are refused by the kernel; our backend switches all the same."""
    host = RealHost()
    node = node_on(host)
    device = observe_node(node).inventory.gpus[0].function.address
    path = Path(f"/sys/bus/pci/devices/{device}")
    say(
        "locked",
        lockdown=observe_node(node).inventory.facts.lockdown,
        config=refused_by_kernel(lambda: host.write(f"{path}/config", b"\0\0", deadline_s=10)),
        bar=refused_by_kernel(lambda: _map(path / "resource0")),
    )
    setup.setup(node, ON)
    say("on", **_facts(node))


def _map(path: Path) -> None:
    with path.open("r+b") as file:
        mmap.mmap(file.fileno(), 4096).close()


def refused_by_kernel(act: Callable[[], None]) -> str:
    """Name of the error."""
    try:
        act()
    except OSError as exc:
        return type(exc).__name__
    return "done"


FAULTS: tuple[dict[str, object], ...] = ({"fsp": 0x55}, {"boot": "never"}, {"reset": "noop"})


def faults() -> None:
    """A fault of each kind at each device k of a board: all modes are back, or nothing is offered until they are."""
    node = node_on(DirectHost())
    setup.setup(node, ON)
    before = _facts(node)
    for name in chips():
        for fault in FAULTS:
            chips({name: fault})
            result = refused(lambda: setup.setup(node, PPCIE))
            during = _facts(node)
            chips({name: {}})
            with node.locked():
                recover(node)
            after = _facts(node)
            others = [m for n, m in zip(chips(), during["modes"], strict=True) if n != name]
            say("fault", device=name, fault=next(iter(fault)), result=result["code"], others=others,
                offered=during["cdi"] if during["modes"] != before["modes"] else [], restored=after == before)  # fmt: skip


@contextmanager
def holding(function: PciFunction, kind: str) -> Iterator[int]:
    """A process that holds a device in one way, until the block ends."""
    ready, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        _hold(function, kind)
        os.write(go, b"x")
        time.sleep(HOLDER_S)
        os._exit(0)
    os.close(go)
    try:
        if not os.read(ready, 1):
            raise RuntimeError(f"cannot hold the device as {kind}")
        yield pid
    finally:
        os.close(ready)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _hold(function: PciFunction, kind: str) -> None:
    host, cdev = RealHost(), f"/dev/vfio/devices/{function.vfio_cdev}"
    if kind == "cdev-open":
        host.open(cdev)
        return
    if kind == "cdev-bound":
        host.ioctl(host.open(cdev), vfio.DEVICE_BIND_IOMMUFD, vfio.bind_iommufd(host.open("/dev/iommu")))
        return
    group = host.open(f"/dev/vfio/{function.iommu_group}")
    if kind == "group-open":
        return
    container = host.open("/dev/vfio/vfio")
    host.ioctl(group, vfio.GROUP_SET_CONTAINER, vfio.descriptor(container))
    host.ioctl(container, vfio.SET_IOMMU, vfio.TYPE1V2_IOMMU)
    device = host.ioctl(group, vfio.GROUP_GET_DEVICE_FD, bytearray(str(function.address).encode() + b"\0"))
    if kind in {"device-only", "mapping-only"}:
        host.close(group)
        host.close(container)
    if kind == "mapping-only":
        region = vfio.region_info(2)  # BAR 2 is plain memory
        host.ioctl(device, vfio.DEVICE_GET_REGION_INFO, region)
        globals()["kept"] = mmap.mmap(device, 4096, offset=vfio.parse_region_info(region)[1])
        host.close(device)


KINDS = ("group-open", "group-attached", "device-only", "mapping-only", "cdev-open", "cdev-bound")


def guard() -> None:
    """Every kind of holder, and a virtual machine, is refused by name; nothing happens to the device."""
    node = node_on(DirectHost())
    setup.setup(node, ON)
    gpu = observe_node(node).inventory.gpus[0].function
    for kind in KINDS:
        with holding(gpu, kind) as pid:
            _refusals(node, gpu, kind, pid)
    with nested_vm(gpu) as pid:
        _refusals(node, gpu, "nested-vm", pid)
    setup.reset(node)
    say("free", **_facts(node))


def _refusals(node: Node, gpu: PciFunction, kind: str, pid: int) -> None:
    before, resets = _facts(node), {n: c["resets"] for n, c in chips().items()}
    acts: dict[str, Callable[[], object]] = {
        "reset": lambda: setup.reset(node),
        "mode": lambda: setup.setup(node, OFF),
        "release": lambda: setup.release(node, [gpu.address]),
    }
    for name, act in acts.items():
        result = refused(act)
        untouched = _facts(node) == before and {n: c["resets"] for n, c in chips().items()} == resets
        say("holder", kind=kind, act=name, exit=result.get("exit"), named=f"process {pid} " in str(result.get("text")),
            untouched=untouched, text=result.get("text"))  # fmt: skip


@contextmanager
def nested_vm(function: PciFunction) -> Iterator[int]:
    """QEMU with the device passed through, its kernel running."""
    arguments = json.loads((SHARE / "nested").read_text())
    command = [*arguments, "-device", "pcie-root-port,id=rp", "-device", f"vfio-pci,host={function.address},bus=rp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace") as vm:
        assert vm.stdout is not None
        seen = ""
        until = time.monotonic() + VM_S
        for line in vm.stdout:
            seen += line
            if "10de:2330" in line.lower() or "panic" in line or time.monotonic() > until:
                break
        say("nested", accelerated=os.access("/dev/kvm", os.W_OK), gpu="10de:2330" in seen.lower(), console=seen[-3000:])
        try:
            yield vm.pid
        finally:
            vm.kill()


class Killed(DirectHost):
    """Counts every change of the host, and ends the process with SIGKILL before the chosen one."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.kinds = at, list[str]()

    def count(self, kind: str) -> None:
        """One more change."""
        if len(self.kinds) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.kinds.append(kind)

    def write(self, path: str, data: bytes, *, deadline_s: float) -> None:
        self.count("sysfs")
        super().write(path, data, deadline_s=deadline_s)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self.count("register")
        return super().pwrite(fd, data, offset)

    def ioctl(self, fd: int, request: int, argument: bytearray | int) -> int:
        if request == vfio.DEVICE_RESET:
            self.count("reset")
        return super().ioctl(fd, request, argument)


class KilledDir(DurableDir):
    """Its files count as well."""

    def __init__(self, path: Path, host: Killed) -> None:
        super().__init__(path)
        self.host = host

    def put(self, name: str, data: bytes) -> None:
        self.host.count("file")
        super().put(name, data)

    def remove(self, name: str) -> None:
        self.host.count("file")
        super().remove(name)


EVERY_REGISTER = 6  # of the writes to registers, of which a switch has hundreds, one in so many


def crashes() -> None:
    """kill -9 before every change of a setup: recovery brings back what was before, or finds what is after."""
    node = node_on(DirectHost())
    before = _facts(node)
    counted = Killed(-1)
    setup.setup(_counted(node, counted), ON)
    after = _facts(node)
    setup.reset(node)
    kinds = counted.kinds
    steps = [k for k, kind in enumerate(kinds) if kind != "register" or k % EVERY_REGISTER == 0]
    say("steps", all=len(kinds), killed=len(steps), clean=_facts(node) == before)
    for k in steps:
        pid = os.fork()
        if pid == 0:
            setup.setup(_counted(node, Killed(k)), ON)
            os._exit(0)
        _, ended = os.waitpid(pid, 0)
        between = status(node).state == "between"
        with node.locked():
            recover(node)
        found = _facts(node)
        say("crash", k=k, kind=kinds[k], signal=os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else 0, between=between,
            found="before" if found == before else "after" if found == after else "mixed")  # fmt: skip
        if found != before:
            setup.reset(node)


def _counted(node: Node, host: Killed) -> Node:
    return replace(node, host=host, state=KilledDir(STATE, host), cdi=KilledDir(CDI, host), progress=lambda _: None)


def resets() -> None:
    """The kernel's own resets: one when a device is opened, one when its last file is closed."""
    node = node_on(RealHost())
    setup.setup(node, ON)
    inventory = observe_node(node).inventory
    gpu = inventory.gpus[0].function
    before = _resets()
    with VfioSession(node.host, iommufd=inventory.iommufd) as session:
        session.open([gpu])
        opened = _resets()
    say("resets", opened=opened - before, closed=_resets() - opened)
    setup.reset(node)


def _resets() -> int:
    return chips()["gpu0"]["resets"]


def uevents() -> None:
    """Removal and return of a GPU reach us over the kernel's netlink socket, and the next look finds what they say."""
    host, woken = RealHost(), threading.Event()
    listener = UeventListener(woken.set)
    listening = listener.start()
    gpu = observe(host).gpus[0].function.address
    for step, path in (("removed", f"/sys/bus/pci/devices/{gpu}/remove"), ("returned", "/sys/bus/pci/rescan")):
        woken.clear()
        host.write(path, b"1", deadline_s=ANSWER_S)
        say(
            step,
            listening=listening,
            woken=woken.wait(ANSWER_S),
            there=gpu in {d.function.address for d in observe(host).gpus},
        )
    listener.stop()


def _open(path: str) -> None:
    os.close(os.open(path, os.O_RDWR))


def revival() -> None:
    """A GPU falls off the bus while it is bound: status says so, a reset of its slot and a scan bring it back."""
    node = node_on(RealHost())
    setup.setup(node, ON)
    gpu = observe_node(node).inventory.gpus[0].function.address
    chips({"gpu0": {"dead": "until-bus-reset"}})
    say("dead", reason=status(node).reason)
    with node.locked():
        result = refused(lambda: say("revived", text=revive(node, gpu)))
    setup_again = refused(lambda: setup.setup(node, ON))
    say("after", result=result, setup=setup_again, state=status(node).state, **_facts(node))
    setup.reset(node)


class Sampler(threading.Thread):
    """Tries to take every device as a VM would, all the while NVIDIA's tool runs."""

    def __init__(self, nodes: list[str]) -> None:
        super().__init__(daemon=True)
        self.nodes, self.stopped = nodes, threading.Event()
        self.results: set[str] = set()

    def run(self) -> None:
        while not self.stopped.is_set():
            for node in self.nodes:
                self.results.add(refused_by_kernel(partial(_open, node)))
            time.sleep(0.02)


def admin_tools() -> None:
    """NVIDIA's own tool behind our adapter: the same modes as by our own backend, and no device free while it runs."""
    path, digest = json.loads((SHARE / "admin-tools").read_text())
    host = RealHost()
    ours = node_on(host)
    theirs = replace(ours, backend=AdminToolsBackend.pinned(host, Path(path), digest, lambda: observe(host).devices))
    setup.bind(ours, [d.function.address for d in observe(host).devices])
    groups = [f"/dev/vfio/{d.function.iommu_group}" for d in observe(host).devices]
    taken: set[str] = set()
    run, calls = isolate.run, list[str]()

    def watched(command: Any, **options: Any) -> Any:
        if not any(str(part).endswith(ENTRY) for part in command):
            return run(command, **options)
        calls.append(command[-1])
        sampler = Sampler(groups)
        sampler.start()
        try:
            return run(command, **options)
        finally:
            sampler.stopped.set()
            sampler.join()
            taken.update(sampler.results)

    isolate.run = watched
    for name, policy in (("on", ON), ("ppcie", PPCIE), ("off", OFF)):
        began = time.monotonic()
        result = refused(partial(setup.setup, theirs, policy))
        seen = read_modes(ours, observe_node(ours).inventory)
        say(name, result=result, modes=modes(), ours=[str(d.cc_mode) for d in seen.devices],
            seconds=round(time.monotonic() - began, 1))  # fmt: skip
    say("held", taken=sorted(taken), calls=calls)
    setup.reset(ours)


SCENARIOS = {f.__name__: f for f in (whole, lockdown, faults, guard, crashes, resets, uevents, revival, admin_tools)}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
