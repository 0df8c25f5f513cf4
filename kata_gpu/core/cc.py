"""CC mode as registers and FSP messages: what to read, what to write, in which order. Pure; backends do the access.

Register offsets are BAR0 offsets. Source: NVIDIA's published gpu-admin-tools (facts), per register family of
`data/devices.toml`. `off` also clears PPCIe, so that one call always reaches a single well-defined mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from kata_gpu.core.gpu import CcMode
from kata_gpu.errors import Malformed, Unavailable

BOOT_COMPLETE = 0xFF
BOOT_0 = 0x0
DEAD = 0xFFFFFFFF  # what a device in D3, behind a firewall or off the bus answers


class Knob(IntEnum):
    """Persistent FSP settings. The ALLOW_INB ones are 0 where the platform owner forbids in-band changes."""

    FEATURE_2 = 2
    FEATURE_4 = 4
    CCD_ALLOW_INB = 5
    CCD = 6
    CCM_ALLOW_INB = 7
    CCM = 8
    DECOUPLER_ALLOW_INB = 9
    DECOUPLER = 10
    FEATURE_34 = 34
    PPCIE_ALLOW_INB = 44
    PPCIE = 45


class Mailbox(StrEnum):
    """How messages reach the FSP."""

    EMEM = "emem"
    MNOC = "mnoc"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterMap:
    """Where one register family keeps its CC state."""

    status: int
    boot: int
    boot_timeout_s: float
    mailbox: Mailbox
    firewalled: bool = False  # boot may be polled only after the BAR firewall opens (DVSEC 10de:0, +8, bit 20)


MAPS = {
    "hopper": RegisterMap(status=0x1182CC, boot=0x200BC, boot_timeout_s=5, mailbox=Mailbox.EMEM),
    "blackwell": RegisterMap(status=0x590, boot=0x200BC, boot_timeout_s=10, mailbox=Mailbox.MNOC, firewalled=True),
    "blackwell-rtx": RegisterMap(status=0x590, boot=0xAD00BC, boot_timeout_s=10, mailbox=Mailbox.MNOC, firewalled=True),
    "ls10": RegisterMap(status=0x28C50, boot=0x660BC, boot_timeout_s=5, mailbox=Mailbox.EMEM),
}


def decode_mode(registers: str, status: int) -> CcMode | None:
    """Mode from the status register; None is the invalid state that an interrupted switch leaves behind."""
    if registers == "ls10":
        return CcMode.PPCIE if status & 1 else CcMode.OFF
    if registers == "hopper" and status & 0x20:
        return CcMode.PPCIE
    return {0: CcMode.OFF, 1: CcMode.ON, 3: CcMode.DEVTOOLS}.get(status & 3)


def knob_writes(registers: str, mode: CcMode) -> tuple[tuple[Knob, int], ...]:
    """Knob values for a mode, in the crash-safe order: enabling writes CCM before CCD, disabling CCD before CCM.

    An interruption between any two writes leaves a combination that setting any mode again repairs.
    """
    if registers == "ls10":
        return ((Knob.PPCIE, int(mode is CcMode.PPCIE)),)
    hopper = registers == "hopper"
    ccm, ccd = int(mode in {CcMode.ON, CcMode.DEVTOOLS}), int(mode is CcMode.DEVTOOLS)
    clear = ((Knob.FEATURE_2, 0), (Knob.FEATURE_4, 0), (Knob.FEATURE_34, 0)) if mode is not CcMode.OFF else ()
    decoupler = ((Knob.DECOUPLER, 2 if mode in {CcMode.ON, CcMode.PPCIE} else 0),) if hopper else ()
    exclusive = ((Knob.PPCIE, 0),) if hopper and mode is not CcMode.PPCIE else ()
    cc = ((Knob.CCM, 1), (Knob.CCD, ccd)) if ccm else ((Knob.CCD, 0), (Knob.CCM, 0))
    last = ((Knob.PPCIE, 1),) if mode is CcMode.PPCIE else ()
    return (*clear, *exclusive, *decoupler, *cc, *last)


def inband_permissions(registers: str, mode: CcMode) -> tuple[Knob, ...]:
    """ALLOW_INB knobs that must not be 0 for the change to be ours to make."""
    if registers == "ls10":
        return (Knob.PPCIE_ALLOW_INB,)
    cc = (Knob.CCM_ALLOW_INB, Knob.CCD_ALLOW_INB)
    if registers != "hopper":
        return cc
    return (*cc, Knob.DECOUPLER_ALLOW_INB, *((Knob.PPCIE_ALLOW_INB,) if mode is CcMode.PPCIE else ()))


# MCTP and NVDM framing of one PRC message: start and end of message; vendor defined PCI, vendor 10de, NVDM type.
MCTP_SINGLE = 1 << 31 | 1 << 30
_NVDM = 0x7E | 0x10DE << 8
_PRC = 0x13
_RESPONSE = 0x15
_KNOB_READ, _KNOB_WRITE, _PERSISTENT = 0xC, 0xD, 2 << 8
INVALID_KNOB = 0x1E3


def render_knob_read(knob: Knob) -> tuple[int, ...]:
    """Words of a request for one knob's value."""
    return (MCTP_SINGLE, _NVDM | _PRC << 24, _KNOB_READ | _PERSISTENT | knob << 16)


def render_knob_write(knob: Knob, value: int) -> tuple[int, ...]:
    """Words of a request that sets one knob."""
    return (MCTP_SINGLE, _NVDM | _PRC << 24, _KNOB_WRITE | _PERSISTENT | knob << 16, value)


def parse_response(words: Sequence[int], *, where: str) -> tuple[int, ...]:
    """Payload of the FSP's answer.

    Raises Malformed for a wrong frame, Unavailable with code `fsp-invalid-knob` or `fsp-refused` for its status.
    """
    if len(words) < 5 or words[1] & 0xFFFFFF != _NVDM or words[1] >> 24 != _RESPONSE or words[3] != _PRC:
        raise Malformed("fsp-frame", "unexpected answer from the FSP", where=where, got=[hex(w) for w in words[:8]])
    if words[4] == INVALID_KNOB:
        raise Unavailable(
            "fsp-invalid-knob",
            "the device firmware does not know this setting",
            where=where,
            hint="update the GPU firmware (VBIOS)",
        )
    if words[4]:
        raise Unavailable("fsp-refused", "the FSP refused the message", where=where, got=hex(words[4]))
    return tuple(words[5:])
