"""The software GPU over a real socket: what QEMU asks, what our own CC driver does with it, and what hostile bytes do."""

import errno
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.core.gpu import CcMode
from kata_gpu.errors import Unavailable
from kata_gpu.host.cc.registers import Registers
from kata_gpu.host.softgpu.device import MODELS, SoftDevice
from kata_gpu.host.softgpu.server import SoftGpuServer
from kata_gpu.host.softgpu.session import MAX_MESSAGE, Command


class Client:
    """A vfio-user client."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self.fds: list[int] = []

    def call(self, command: int, body: bytes = b"", flags: int = 0) -> tuple[int, bytes]:
        """Error number and answer."""
        self.socket.sendall(struct.pack("<HHIII", 7, command, 16 + len(body), flags, 0) + body)
        header = self._exactly(16)
        number, answered, size, kind, error = struct.unpack("<HHIII", header)
        assert (number, answered, kind & 1) == (7, command, 1)
        assert bool(kind & 0x20) is bool(error)
        return error, self._exactly(size - 16)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk, fds, _, _ = socket.recv_fds(self.socket, size - len(data), 4)
            self.fds += fds
            assert chunk
            data += chunk
        return data

    def read(self, region: int, offset: int, count: int) -> bytes:
        error, answer = self.call(Command.REGION_READ, struct.pack("<QII", offset, region, count))
        assert error == 0
        return answer[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        assert self.call(Command.REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data)[0] == 0


class OverSocket:
    """`VfioDevice` over the protocol, for our own CC driver."""

    name = "soft"

    def __init__(self, client: Client) -> None:
        self.client = client

    def read32(self, offset: int) -> int:
        return int.from_bytes(self.client.read(0, offset, 4), "little")

    def write32(self, offset: int, value: int) -> None:
        self.client.write(0, offset, value.to_bytes(4, "little"))

    def config32(self, offset: int) -> int:
        return int.from_bytes(self.client.read(7, offset, 4), "little")

    def reset(self) -> None:
        assert self.client.call(Command.DEVICE_RESET)[0] == 0


class Clock:
    """Time that passes only when somebody waits."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SoftGpuServer]:
    """One device of every model."""
    server = SoftGpuServer(tmp_path, {"gpu0": "h100", "gpu1": "b200", "sw0": "nvswitch"})
    yield server
    server.close()


@pytest.fixture
def client(server: SoftGpuServer, tmp_path: Path) -> Iterator[Client]:
    """A client of the H100."""
    assert server.devices
    client = Client(tmp_path / "gpu0.sock")
    yield client
    client.socket.close()
    for fd in client.fds:
        socket.close(fd)


def test_what_qemu_asks(client: Client) -> None:
    error, answer = client.call(Command.VERSION, struct.pack("<HH", 0, 1) + b'{"capabilities":{}}\0')
    assert error == 0
    assert answer[:4] == struct.pack("<HH", 0, 1)
    assert json.loads(answer[4:-1])["capabilities"]["max_data_xfer_size"] == 1 << 20
    assert client.call(Command.DEVICE_INFO, bytes(16)) == (0, struct.pack("<IIII", 16, 3, 9, 5))
    info = struct.pack("<IIIIQQ", 32, 0, 2, 0, 0, 0)
    assert struct.unpack("<IIIIQQ", client.call(Command.REGION_INFO, info)[1]) == (32, 7, 2, 0, 64 << 20, 0)
    assert len(client.fds) == 1
    info = struct.pack("<IIIIQQ", 32, 0, 9, 0, 0, 0)
    assert client.call(Command.REGION_INFO, info)[0] == errno.EINVAL
    assert client.read(7, 0, 4) == struct.pack("<HH", 0x10DE, 0x2330)
    assert client.read(0, 0, 4) == struct.pack("<I", 0x180000A1)


def test_bars_are_sized_as_pci_does(client: Client) -> None:
    client.write(7, 0x10, b"\xff" * 4)
    assert struct.unpack("<I", client.read(7, 0x10, 4))[0] == (~((16 << 20) - 1) & 0xFFFFFFFF) | 0xC


def test_function_level_reset_through_config(server: SoftGpuServer, client: Client) -> None:
    client.write(7, 4, b"\x06\x00")
    before = server.devices["gpu0"].resets
    client.write(7, 0x78 + 8, struct.pack("<H", 1 << 15))
    assert server.devices["gpu0"].resets == before + 1
    assert client.read(7, 4, 2) == b"\x00\x00"


@pytest.mark.parametrize(
    ("name", "family", "modes"),
    [
        ("gpu0", "hopper", [CcMode.ON, CcMode.PPCIE, CcMode.DEVTOOLS, CcMode.OFF]),
        ("gpu1", "blackwell", [CcMode.ON, CcMode.DEVTOOLS, CcMode.OFF]),
        ("sw0", "ls10", [CcMode.PPCIE, CcMode.OFF]),
    ],
)
def test_our_driver_switches_it(
    server: SoftGpuServer, tmp_path: Path, name: str, family: str, modes: list[CcMode]
) -> None:
    """The driver that switches real devices, over the wire; a mode is active only after the reset."""
    client = Client(tmp_path / f"{name}.sock")
    registers = Registers(OverSocket(client), family, Clock())  # type: ignore[arg-type]
    active = registers.query()
    for mode in modes:
        registers.require_permitted(mode)
        assert registers.stage(mode)
        assert registers.query() is active
        registers.reset()
        assert registers.query() is mode
        assert not registers.stage(mode)
        active = mode
    client.socket.close()
    assert server.devices[name].resets == len(modes)


def test_posted_and_multiple_writes(server: SoftGpuServer, client: Client) -> None:
    body = struct.pack("<Q", 2)
    for offset, value in ((0x8F2AC0, 0x55), (0x8F2AC8, 0x66)):
        body += struct.pack("<QII8s", offset, 0, 4, struct.pack("<I", value))
    assert client.call(Command.REGION_WRITE_MULTI, body)[0] == 0
    assert client.read(0, 0x8F2AC8, 4) == struct.pack("<I", 0x66)
    posted = struct.pack("<QII", 0x8F2AC0, 0, 4) + struct.pack("<I", 0x77)
    client.socket.sendall(struct.pack("<HHIII", 1, Command.REGION_WRITE, 16 + len(posted), 0x10, 0) + posted)
    assert client.read(0, 0x8F2AC0, 4) == struct.pack("<I", 0x77)
    assert server.devices["gpu0"].chip.family == "hopper"


@pytest.mark.parametrize(
    ("command", "body", "error"),
    [
        (Command.REGION_READ, struct.pack("<QII", 4096, 7, 1), errno.EINVAL),
        (Command.REGION_READ, struct.pack("<QII", 2**64 - 4, 0, 8), errno.EINVAL),
        (Command.REGION_READ, struct.pack("<QII", 0, 0, 2 << 20), errno.EINVAL),
        (Command.REGION_READ, b"short", errno.EINVAL),
        (Command.REGION_WRITE, struct.pack("<QII", 0, 0, 8) + b"1234", errno.EINVAL),
        (Command.REGION_WRITE_MULTI, struct.pack("<Q", 1 << 60), errno.EINVAL),
        (Command.REGION_INFO, b"", errno.EINVAL),
        (99, b"", errno.ENOTSUP),
    ],
)
def test_bad_requests_are_answered_and_forgotten(client: Client, command: int, body: bytes, error: int) -> None:
    assert client.call(command, body)[0] == error
    assert client.read(7, 0, 2) == b"\xde\x10"


@pytest.mark.parametrize("size", [0, 15, MAX_MESSAGE + 1, 0xFFFFFFFF])
def test_broken_framing_ends_the_session_only(client: Client, tmp_path: Path, size: int) -> None:
    client.socket.sendall(struct.pack("<HHIII", 1, 1, size, 0, 0))
    assert client.socket.recv(1) == b""
    again = Client(tmp_path / "gpu0.sock")
    assert again.read(7, 0, 2) == b"\xde\x10"
    again.socket.close()


def test_dead_device_answers_all_ones(server: SoftGpuServer, client: Client) -> None:
    server.devices["gpu0"].chip.faults["dead"] = True
    assert client.read(7, 0, 4) == b"\xff" * 4
    registers = Registers(OverSocket(client), "hopper", Clock())  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="does not answer"):
        registers.query()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MODELS)), st.lists(st.tuples(st.integers(0, 0x9FFFFF), st.binary(max_size=12)), max_size=30)
)
def test_no_register_write_breaks_a_device(model: str, writes: list[tuple[int, bytes]]) -> None:
    """Any sequence of register writes leaves a device that still answers."""
    device = SoftDevice(MODELS[model], serial=1, clock=lambda: 0.0)
    mailbox = (0x8F2AC0, 0x8F2AD0, 0x8F2AD4, 0x8F2C10, 0x8F2C14, 0x8F1F84, 0x8F1F88)
    for index, (offset, data) in enumerate(writes):
        at = mailbox[offset % len(mailbox)] if index % 2 else offset & ~3
        device.write(0, at, data)
        device.read(0, at, 4)
    device.reset()
    assert device.read(0, 0, 4) != b"\0" * 4
    device.close()
