"""The adapters against the real thing in miniature: files, children that hang, trees that try to escape."""

import errno
import os
import queue
import socket
import time
from pathlib import Path
from typing import cast

import pytest

from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import Malformed, TimedOut, Unavailable
from kata_gpu.host import isolate
from kata_gpu.host.durable import DurableDir
from kata_gpu.host.real import RealHost
from kata_gpu.host.simkernel.kernel import SimKernel
from kata_gpu.host.simkernel.presets import PRESETS, hgx_h100
from kata_gpu.host.simkernel.render import render
from kata_gpu.host.uevents import UeventListener
from kata_gpu.host.variants import best_driver
from kata_gpu.host.vfio_device import VfioSession
from kata_gpu.ops.observe import observe, parse_bars
from kata_gpu.ports import FileKind


def test_isolated_read_and_write(tmp_path: Path) -> None:
    path = tmp_path / "attribute"
    path.write_bytes(b"(null)\n")
    assert isolate.read(str(path), max_bytes=100, deadline_s=10) == b"(null)\n"
    isolate.write(str(path), b"vfio-pci", deadline_s=10)
    assert path.read_bytes().startswith(b"vfio-pci")


@pytest.mark.parametrize(("name", "number"), [("absent", errno.ENOENT), ("", errno.EISDIR)])
def test_isolated_errors_keep_their_errno(tmp_path: Path, name: str, number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as error:
        isolate.write(str(tmp_path / name), b"x", deadline_s=10)
    assert error.value.errno == number


def test_a_child_that_hangs_is_abandoned(tmp_path: Path) -> None:
    """Opening a pipe that nobody reads blocks for ever; the deadline passes and we go on."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(TimedOut) as error:
        isolate.write(str(pipe), b"1", deadline_s=0.3)
    assert error.value.exit_code == 6
    assert str(pipe) in str(error.value)
    for _ in range(200):
        if isolate.abandoned() == 0:
            break
        isolate.run(["sleep", "0.01"], deadline_s=5, where="wait")
    assert isolate.abandoned() == 0


def test_programs_that_cannot_start() -> None:
    with pytest.raises(Unavailable):
        isolate.run(["/nonexistent/program"], deadline_s=1, where="x")


def test_open_and_close_reset() -> None:
    """The kernel resets a function when its device file is opened, and again when the last one is closed."""
    kernel = SimKernel(hgx_h100(gpus=1, switches=0))
    gpu = kernel.machine.functions["0000:17:00.0"]
    gpu.override = "vfio-pci"
    kernel.write("/sys/bus/pci/drivers/vfio-pci/bind", gpu.address.encode(), deadline_s=1)
    assert gpu.chip is not None
    with VfioSession(kernel, iommufd=True) as session:
        session.open([f for d in observe(kernel).devices for f in d.unit])
        assert gpu.chip.resets == 1
    assert gpu.chip.resets == 2


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_rendered_tree_equals_the_simulated_host(tmp_path: Path, preset: str) -> None:
    kernel = SimKernel(PRESETS[preset]())
    render(kernel.machine, tmp_path)
    assert observe(RealHost(tmp_path)) == observe(kernel)


def test_rendered_tree_shows_device_nodes(tmp_path: Path) -> None:
    """Nodes cannot be made without root, so they are in a list; a directory of the tree shows them all the same."""
    kernel = SimKernel(hgx_h100(gpus=2, switches=0))
    for address in ("0000:17:00.0", "0000:3d:00.0"):
        kernel.machine.functions[address].override = "vfio-pci"
        kernel.write("/sys/bus/pci/drivers/vfio-pci/bind", address.encode(), deadline_s=1)
    render(kernel.machine, tmp_path)
    tree = RealHost(tmp_path)
    for path in ("/dev/vfio", "/dev/vfio/devices"):
        assert tree.listdir(path) == kernel.listdir(path)
    with pytest.raises(FileNotFoundError):
        tree.listdir("/dev/nosuch")


def test_a_bundle_cannot_point_outside(tmp_path: Path) -> None:
    """Links are resolved inside the tree, absolute ones and dots too; loops end."""
    (tmp_path / "outside").write_text("secret")
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "a").symlink_to("../../outside")
    (root / "etc" / "b").symlink_to(str(tmp_path / "outside"))
    (root / "etc" / "loop").symlink_to("loop")
    host = RealHost(root)
    for name in ("a", "b", "loop", "../../outside"):
        with pytest.raises(OSError, match=r"No such file|symbolic links"):
            host.read(f"/etc/{name}")
        assert host.kind(f"/etc/{name}") is None


def test_a_tree_is_read_only(tmp_path: Path) -> None:
    """Write semantics are never emulated on a plain directory."""
    render(hgx_h100(gpus=1, switches=0), tmp_path)
    host = RealHost(tmp_path)
    path = "/sys/bus/pci/drivers_probe"
    for act in (
        lambda: host.write(path, b"x", deadline_s=1),
        lambda: host.open(path),
        lambda: host.modprobe("x", deadline_s=1),
    ):
        with pytest.raises(OSError, match="Read-only"):
            act()
    assert host.kind("/dev/kvm") is FileKind.CHAR_DEVICE
    assert host.kind("/sys") is FileKind.DIRECTORY


def test_special_files_in_a_tree_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        RealHost(tmp_path).read("/pipe")


def test_no_pci_bus(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        observe(RealHost(tmp_path))


@pytest.mark.parametrize(
    "text", ["", "17:00.0", "0000:17:00.8", "0000:17:20.0", "0000:1g:00.0", "0000:17:00.0\n", "x" * 99]
)
def test_bad_addresses(text: str) -> None:
    with pytest.raises(Malformed):
        PciAddress.parse(text)


def test_addresses_round_trip_and_sort() -> None:
    texts = ["0000:05:00.0", "0000:17:00.0", "0000:17:00.1", "0001:00:00.0", "10000:00:00.0"]
    assert [str(a) for a in sorted(PciAddress.parse(t) for t in reversed(texts))] == texts
    assert PciAddress.parse(texts[1]).label == "0000-17-00-0"


def test_bars() -> None:
    lines = "0x0000202000000000 0x0000202000ffffff 0x000000000014220c\n" + "0x0 0x0 0x0\n" * 5
    assert parse_bars(lines) == (16 << 20, 0, 0, 0, 0, 0)
    assert parse_bars("what\n0x0 0xffff 0x1\n") == (0, 0)


def test_variant_driver_wins_by_longest_match() -> None:
    aliases = (
        "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n"
        "alias vfio_pci:v000010DEd00002342sv*sd*bc*sc*i* nvgrace_gpu_vfio_pci\n"
        "alias pci:v000010DEd*sv*sd*bc*sc*i* nvidia\nalias vfio_pci:broken\n"
    )
    grace = "pci:v000010DEd00002342sv000010DEsd000016EBbc03sc02i00"
    assert best_driver(aliases, grace) == "nvgrace-gpu-vfio-pci"
    assert best_driver(aliases, grace.replace("2342", "2330")) == "vfio-pci"


def test_durable_directory(tmp_path: Path) -> None:
    directory = DurableDir(tmp_path / "new")
    assert directory.names() == []
    assert directory.get("a") is None
    directory.put("a", b"1")
    directory.put("a", b"2")
    assert (directory.names(), directory.get("a")) == (["a"], b"2")
    directory.remove("a")
    directory.remove("a")
    assert list((tmp_path / "new").iterdir()) == []


def test_full_disk_is_unavailable_and_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unavailable):
        DurableDir(tmp_path / "file" / "sub").put("a", b"1")
    directory = DurableDir(tmp_path)
    directory.put("a", b"1" * 10)
    with pytest.raises(Unavailable):
        directory.get("a", max_bytes=5)


def test_state_file_is_shared_between_processes(tmp_path: Path) -> None:
    """Two kernels on one file see each other's changes; files of a dead process are closed."""
    one = SimKernel.create(hgx_h100(gpus=1, switches=0), tmp_path / "sim")
    two = SimKernel(path=tmp_path / "sim")
    one.modprobe("nouveau", deadline_s=1)
    assert two.kind("/sys/bus/pci/drivers/nouveau") is FileKind.DIRECTORY
    two.write("/sys/bus/pci/devices/0000:17:00.0/driver_override", b"vfio-pci", deadline_s=1)
    assert one.read("/sys/bus/pci/devices/0000:17:00.0/driver_override") == b"vfio-pci\n"
    two.write("/sys/bus/pci/drivers/vfio-pci/bind", b"0000:17:00.0", deadline_s=1)
    ghost = SimKernel(path=tmp_path / "sim", pid=2**22 + 1)
    ghost.open("/dev/vfio/1")
    fresh = SimKernel(path=tmp_path / "sim")
    assert fresh.machine.handles == []


def _runs(pid: int) -> bool:
    """Whether a process lives; one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_deadline_ends_the_whole_session(tmp_path: Path) -> None:
    """A program's own children go with it, whether they keep its output open or the program itself does not end."""
    pid = tmp_path / "pid"
    with pytest.raises(TimedOut):
        isolate.run(["sh", "-c", f"sleep 60 & echo $! > {pid}; exit 0"], deadline_s=1.0, where="leaves a child")
    until = time.monotonic() + 5
    while _runs(int(pid.read_text())) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _runs(int(pid.read_text()))
    assert isolate.abandoned() == 0


def test_output_is_bounded_while_it_is_read() -> None:
    """A program that says too much costs no memory and still ends."""
    code, output, error = isolate.run(
        ["sh", "-c", "head -c 5000000 /dev/zero; echo bad >&2; exit 3"], deadline_s=30, where="loud"
    )
    assert (code, len(output), error) == (3, 1 << 20, b"bad\n")


def test_standard_input_arrives() -> None:
    assert isolate.run(["cat"], stdin=b"x" * 200_000, deadline_s=10, where="cat") == (0, b"x" * 200_000, b"")


class Burst:
    """A socket whose buffer overflows first, as the kernel's does when a board of GPUs appears at once."""

    def __init__(self, inner: socket.socket) -> None:
        self.inner, self.overflows = inner, 1

    def recv(self, size: int) -> bytes:
        if self.overflows:
            self.overflows -= 1
            raise OSError(errno.ENOBUFS, "no buffer space")
        return self.inner.recv(size)

    def close(self) -> None:
        self.inner.close()


def test_the_listener_survives_a_burst() -> None:
    """Lost messages are a reason to look, not to go deaf."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    woken: queue.Queue[None] = queue.Queue()
    listener = UeventListener(lambda: woken.put(None), connect=lambda: cast("socket.socket", Burst(ours)))
    assert listener.start()
    woken.get(timeout=5)
    kernel.send(b"add@/devices/x\0ACTION=add\0SUBSYSTEM=usb\0")
    kernel.send(b"add@/devices/pci0000:16/0000:17:00.0\0ACTION=add\0SUBSYSTEM=pci\0")
    woken.get(timeout=5)
    kernel.close()
    assert woken.empty()


def test_without_the_right_to_listen() -> None:
    def refuse() -> socket.socket:
        raise PermissionError(errno.EPERM, "not permitted")

    assert not UeventListener(lambda: None, connect=refuse).start()
