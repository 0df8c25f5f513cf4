"""CC mode through registers of an exclusively held device: our own backend, over the VFIO user API.

Works under kernel lockdown, where every other way to BAR0 is closed, and keeps VMs out while it works.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from kata_gpu.core import cc
from kata_gpu.core.cc import Knob, Mailbox, RegisterMap
from kata_gpu.core.gpu import CcMode, GpuDevice, model_of
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import LockedOutOfBand, TimedOut, Unavailable
from kata_gpu.host.vfio_device import VfioDevice, VfioSession, device_dead
from kata_gpu.ports import Host

POLL_S = 0.01
_MAILBOX_S = 5.0
_MAX_WORDS = 256  # a channel's buffer is 1 KiB

# FSP over EMEM, channel 2: a buffer behind an auto-incrementing port, and two queues of head and tail.
_CHANNEL = 2
_BUFFER = _CHANNEL * 1024
_PORT = 0x8F2AC0 + 8 * _CHANNEL
_PORT_WRITE, _PORT_READ = 1 << 24, 1 << 25
_QUEUE_HEAD, _QUEUE_TAIL = 0x8F2C00 + 8 * _CHANNEL, 0x8F2C04 + 8 * _CHANNEL
_MSGQ_HEAD, _MSGQ_TAIL = 0x8F2C80 + 8 * _CHANNEL, 0x8F2C84 + 8 * _CHANNEL

# FSP over MNOC, port 0: mailboxes with a size word and a data port.
_MNOC_SEND_INFO, _MNOC_SEND_DATA = 0x8F1F04, 0x8F1F08
_MNOC_RECEIVE_INFO, _MNOC_RECEIVE_DATA = 0x8F1F84, 0x8F1F88
_MNOC_READY, _MNOC_ERROR, _MNOC_CREDIT, _MNOC_TRIGGER = 1 << 24, 1 << 25, 1 << 26, 1 << 20
_MNOC_SIZE = 0xFFFFF
_MNOC_BURST = 16  # words per credit

_DVSEC_CAPABILITY, _FIREWALL = 0x23, 1 << 20
_MAX_CAPABILITIES = 64


class _Clock(Protocol):
    def monotonic(self) -> float: ...
    def sleep(self, seconds: float) -> None: ...


class Registers:
    """CC mode of one open device."""

    def __init__(self, device: VfioDevice, family: str, clock: _Clock) -> None:
        """`family` is a key of `cc.MAPS`."""
        self._device = device
        self._family = family
        self._map: RegisterMap = cc.MAPS[family]
        self._clock = clock

    def wait_for_boot(self) -> None:
        """Until firmware reports that it has started: on Blackwell only once its BAR firewall is open.

        A device that is still behind it answers all ones like a dead one, so only the deadline tells them apart. VFIO
        hides the capability that holds the firewall bit on some kernels; polling the boot register then waits for both.
        """
        timeout = self._map.boot_timeout_s
        try:
            if self._map.firewalled and (dvsec := self._dvsec()):
                self._poll(lambda: not self._device.config32(dvsec + 8) & _FIREWALL, timeout, "its BAR firewall")
            self._poll(lambda: self._device.read32(self._map.boot) == cc.BOOT_COMPLETE, timeout, "the end of its boot")
        except TimedOut as exc:
            if self._device.read32(cc.BOOT_0) == cc.DEAD:
                raise device_dead(self._device.name) from exc
            raise

    def query(self) -> CcMode | None:
        """Active mode."""
        self.wait_for_boot()
        return cc.decode_mode(self._family, self._device.read32(self._map.status))

    def require_permitted(self, mode: CcMode) -> None:
        """Raises LockedOutOfBand where the platform owner keeps a needed setting to itself."""
        for knob in cc.inband_permissions(self._family, mode):
            if self._read(knob) == 0:
                raise LockedOutOfBand(
                    "mode-locked-out-of-band",
                    "the platform owner locked the CC mode of this device",
                    where=self._device.name,
                    expected=f"{knob.name} = 1",
                    got=0,
                    hint="change the mode through the BMC (Redfish); repeating this command cannot help",
                )

    def stage(self, mode: CcMode) -> bool:
        """Write the settings that differ, in the order of `cc.knob_writes`. Returns whether any did."""
        changed = False
        for knob, value in cc.knob_writes(self._family, mode):
            if knob is Knob.PPCIE and value == 0 and not self._knows(knob):
                continue  # firmware older than PPCIe has nothing to clear
            if self._read(knob) != value:
                self._call(cc.render_knob_write(knob, value))
                changed = True
        return changed

    def reset(self) -> None:
        """Reset; staged settings become active."""
        self._device.reset()

    def _knows(self, knob: Knob) -> bool:
        try:
            self._read(knob)
        except Unavailable as exc:
            if exc.code == "fsp-invalid-knob":
                return False
            raise
        return True

    def _read(self, knob: Knob) -> int:
        payload = self._call(cc.render_knob_read(knob))
        if len(payload) != 1:
            raise Unavailable("fsp-answer", "the FSP answered with another size", where=self._device.name, expected=1)
        return payload[0] & 0xFFFF  # the upper half is not initialised

    def _call(self, words: Sequence[int]) -> tuple[int, ...]:
        answer = self._call_emem(words) if self._map.mailbox is Mailbox.EMEM else self._call_mnoc(words)
        return cc.parse_response(answer, where=self._device.name)

    def _call_emem(self, words: Sequence[int]) -> list[int]:
        read, write = self._device.read32, self._device.write32
        self._poll(lambda: read(_QUEUE_HEAD) == read(_QUEUE_TAIL), _MAILBOX_S, "a free FSP queue")
        write(_PORT, _BUFFER | _PORT_WRITE)
        for word in words:
            write(_PORT + 4, word)
        write(_QUEUE_TAIL, _BUFFER + 4 * (len(words) - 1))
        write(_QUEUE_HEAD, _BUFFER)  # writing the head rings the bell
        self._poll(lambda: read(_MSGQ_HEAD) != read(_MSGQ_TAIL), _MAILBOX_S, "an answer of its FSP")
        head, tail = read(_MSGQ_HEAD), read(_MSGQ_TAIL)
        count = (tail - head) // 4 + 1
        if not 0 < count <= _MAX_WORDS:
            raise Unavailable("fsp-answer", "the FSP's answer has no sane size", where=self._device.name, got=count)
        write(_PORT, head | _PORT_READ)
        answer = [read(_PORT + 4) for _ in range(count)]
        write(_MSGQ_TAIL, head)
        return answer

    def _call_mnoc(self, words: Sequence[int]) -> list[int]:
        read, write = self._device.read32, self._device.write32
        self._poll(lambda: bool(read(_MNOC_RECEIVE_INFO) & _MNOC_READY), _MAILBOX_S, "a free FSP mailbox")
        write(_MNOC_RECEIVE_INFO, 4 * len(words) | _MNOC_TRIGGER)
        for index, word in enumerate(words):
            if index % _MNOC_BURST == 0:
                self._poll(lambda: bool(read(_MNOC_RECEIVE_INFO) & _MNOC_CREDIT), _MAILBOX_S, "a mailbox credit")
            write(_MNOC_RECEIVE_DATA, word)
        if read(_MNOC_RECEIVE_INFO) & _MNOC_ERROR:
            raise Unavailable("fsp-mailbox", "the FSP mailbox reports an error", where=self._device.name)
        self._poll(lambda: bool(read(_MNOC_SEND_INFO) & _MNOC_READY), _MAILBOX_S, "an answer of its FSP")
        count = (read(_MNOC_SEND_INFO) & _MNOC_SIZE) // 4
        if not 0 < count <= _MAX_WORDS:
            raise Unavailable("fsp-answer", "the FSP's answer has no sane size", where=self._device.name, got=count)
        return [read(_MNOC_SEND_DATA) for _ in range(count)]

    def _dvsec(self) -> int:
        """Offset of NVIDIA's designated vendor-specific capability with id 0; 0 where there is none."""
        at = 0x100
        for _ in range(_MAX_CAPABILITIES):
            header = self._device.config32(at)
            if header & 0xFFFF == _DVSEC_CAPABILITY and self._device.config32(at + 4) & 0xFFFF == 0x10DE:
                return at if self._device.config32(at + 8) & 0xFFFF == 0 else 0
            at = header >> 20
            if at < 0x100:
                return 0
        return 0

    def _poll(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = self._clock.monotonic() + timeout_s
        while not ready():
            if self._clock.monotonic() >= deadline:
                raise TimedOut(
                    "device-timeout",
                    f"waited for {what}",
                    where=self._device.name,
                    got=f"nothing in {timeout_s:g} s",
                    hint="power-cycle the node; where it stays so, the device's firmware needs its vendor",
                )
            self._clock.sleep(POLL_S)


class _RegisterSession:
    """`CcSession` over open devices."""

    def __init__(self, devices: dict[PciAddress, Registers]) -> None:
        self._devices = devices

    def query(self, address: PciAddress) -> CcMode | None:
        return self._devices[address].query()

    def require_permitted(self, address: PciAddress, mode: CcMode) -> None:
        self._devices[address].require_permitted(mode)

    def stage(self, address: PciAddress, mode: CcMode) -> bool:
        return self._devices[address].stage(mode)

    def activate(self, address: PciAddress) -> None:
        self._devices[address].reset()

    def wait(self, address: PciAddress) -> None:
        self._devices[address].wait_for_boot()


class VfioBackend:
    """`CcBackend` over VFIO. Devices must be bound."""

    name = "vfio"

    def __init__(self, host: Host, *, iommufd: bool) -> None:
        """`iommufd`: use cdevs rather than groups."""
        self._host = host
        self._iommufd = iommufd

    def unsupported(self, device: GpuDevice) -> str:
        """Only a bound device of a known register family can be reached."""
        family = model_of(device.function.device).family
        if family is None or family.registers not in cc.MAPS:
            return "no CC registers are known for this device"
        return "" if device.bound else "the device, or a function of its group, is not on VFIO"

    @contextmanager
    def session(self, devices: Sequence[GpuDevice]) -> Iterator[_RegisterSession]:
        """Take all devices for the length of the block. Raises Unavailable."""
        with VfioSession(self._host, iommufd=self._iommufd) as session:
            session.open(d.function for d in devices)
            opened = {}
            for device in devices:
                family = model_of(device.function.device).family
                if reason := self.unsupported(device):
                    raise Unavailable("backend-unsupported", reason, where=str(device.function))
                assert family is not None
                opened[device.function.address] = Registers(
                    session.devices[device.function], family.registers, self._host
                )
            yield _RegisterSession(opened)
