"""The PCI side of a software device: configuration space with write masks, BARs, function-level reset."""

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass

from kata_gpu.host.simkernel.chip import Chip

CONFIG_REGION = 7
REGIONS, IRQS = 9, 5  # VFIO_PCI_NUM_REGIONS, VFIO_PCI_NUM_IRQS
CONFIG_BYTES = 4096
MIB = 1 << 20
_PM, _MSI, _EXPRESS = 0x60, 0x68, 0x78
_DEVICE_CONTROL = _EXPRESS + 8
_FLR = 1 << 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a device looks like on the bus. BAR sizes are small: nothing uses them but the size itself."""

    family: str
    device: int
    subsystem: int
    class_code: int
    bars: tuple[tuple[int, int], ...]


MODELS = {
    "h100": Model(
        family="hopper",
        device=0x2330,
        subsystem=0x16C1,
        class_code=0x030200,
        bars=((0, 16 * MIB), (2, 64 * MIB), (4, 32 * MIB)),
    ),
    "b200": Model(
        family="blackwell",
        device=0x2901,
        subsystem=0x1999,
        class_code=0x030200,
        bars=((0, 64 * MIB), (2, 64 * MIB), (4, 32 * MIB)),
    ),
    "nvswitch": Model(family="ls10", device=0x22A3, subsystem=0x1796, class_code=0x068000, bars=((0, 32 * MIB),)),
}


class SoftDevice:
    """One device. `clock` gives seconds; BAR 0 is registers, the others are plain memory that QEMU maps."""

    def __init__(self, model: Model, *, serial: int, clock: Callable[[], float]) -> None:
        """Powered on, booted at once unless its chip is told otherwise."""
        self.chip = Chip(family=model.family)
        self.bars = dict(model.bars)
        self.memory = {index: _memory(size) for index, size in model.bars if index}
        self.resets = 0
        self._clock = clock
        self._config = _config_space(model, serial)
        self._mask = _write_mask(model)

    def close(self) -> None:
        """Give the memory back."""
        for fd in self.memory.values():
            os.close(fd)
        self.memory = {}

    def region_size(self, region: int) -> int:
        """Bytes of a region; 0 for one that is not there."""
        return CONFIG_BYTES if region == CONFIG_REGION else self.bars.get(region, 0)

    def read(self, region: int, offset: int, count: int) -> bytes:
        """Bytes of a region; all ones from a dead device. The caller has checked the bounds."""
        if self.chip.faults.get("dead"):
            return b"\xff" * count
        if region == CONFIG_REGION:
            return bytes(self._config[offset : offset + count])
        if region in self.memory:
            return os.pread(self.memory[region], count, offset)
        first = offset & ~3
        words = range(first, offset + count, 4)
        raw = b"".join(self.chip.read(at, self._clock()).to_bytes(4, "little") for at in words)
        return raw[offset - first : offset - first + count]

    def write(self, region: int, offset: int, data: bytes) -> None:
        """Write to a region. Registers take whole aligned words, as the hardware does."""
        if self.chip.faults.get("dead"):
            return
        if region == CONFIG_REGION:
            self._write_config(offset, data)
        elif region in self.memory:
            os.pwrite(self.memory[region], data, offset)
        else:
            for at in range(0, len(data) - len(data) % 4, 4):
                self.chip.write(offset + at, int.from_bytes(data[at : at + 4], "little"))

    def reset(self) -> None:
        """Function-level or bus reset: bus address and decoding are lost, staged settings become active."""
        self.resets += 1
        if self.chip.faults.get("dead") == "until-bus-reset":  # a function-level one never gets here: writes are lost
            del self.chip.faults["dead"]
        struct.pack_into("<H", self._config, 4, 0)
        struct.pack_into("<H", self._config, _PM + 4, 0x0008)
        self.chip.reset(self._clock())

    def _write_config(self, offset: int, data: bytes) -> None:
        for at, value in enumerate(data, offset):
            mask = self._mask[at]
            self._config[at] = self._config[at] & ~mask & 0xFF | value & mask
        high = _DEVICE_CONTROL + 1
        if offset <= high < offset + len(data) and data[high - offset] & _FLR >> 8:
            self.reset()


def _memory(size: int) -> int:
    fd = os.memfd_create("bar")
    os.ftruncate(fd, size)
    return fd


def _config_space(model: Model, serial: int) -> bytearray:
    """Header; PM, MSI and PCIe capabilities; serial number and NVIDIA's DVSEC with its firewall open."""
    space = bytearray(CONFIG_BYTES)
    struct.pack_into("<HHHH", space, 0, 0x10DE, model.device, 0, 0x0010)
    struct.pack_into("<I", space, 8, model.class_code << 8 | 0xA1)
    struct.pack_into("<HH", space, 0x2C, 0x10DE, model.subsystem)
    for index, _ in model.bars:
        struct.pack_into("<I", space, 0x10 + 4 * index, 0xC)  # 64-bit, prefetchable
    space[0x34] = _PM
    struct.pack_into("<BBHH", space, _PM, 0x01, _MSI, 0x0003, 0x0008)
    struct.pack_into("<BBH", space, _MSI, 0x05, _EXPRESS, 0x0080)
    link = 0x5 | 16 << 4  # 32 GT/s, x16
    struct.pack_into("<BBHIHHIHH", space, _EXPRESS, 0x10, 0, 2, 1 << 28 | 0x8001, 0, 0, link, 0, link)
    struct.pack_into("<I", space, _EXPRESS + 0x24, 0x1F)
    struct.pack_into("<IQ", space, 0x100, 0x0003 | 1 << 16 | 0x128 << 20, serial)
    struct.pack_into("<III", space, 0x128, 0x0023 | 1 << 16, 0x10DE | 0x18 << 20, 0)
    return space


def _write_mask(model: Model) -> bytes:
    mask = bytearray(CONFIG_BYTES)
    writable = {
        4: b"\xff\x05",  # command
        0x0C: b"\xff",  # cache line size
        0x3C: b"\xff",  # interrupt line
        _PM + 4: b"\x03\x00",  # power state
        _MSI + 2: b"\x71\x00",
        _MSI + 4: b"\xfc" + b"\xff" * 7,
        _MSI + 12: b"\xff\xff",
        _DEVICE_CONTROL: b"\xff\x7f",
        _EXPRESS + 0x10: b"\xff\x00",  # link control
        _EXPRESS + 0x28: b"\xff\xff",  # device control 2
    }
    for offset, bits in writable.items():
        mask[offset : offset + len(bits)] = bits
    for index, size in model.bars:
        struct.pack_into("<Q", mask, 0x10 + 4 * index, ~(size - 1) & 0xFFFFFFFFFFFFFFFF)
    return bytes(mask)
