"""The launch inputs of a running sandbox, read from QEMU's own command line (NUL-separated, as in /proc/PID/cmdline).

Kata composes the kernel command line from its defaults, the configuration and the agent; what QEMU got is the truth.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from kata_gpu.errors import Malformed

MAX_CMDLINE_BYTES = 1 << 18  # the kernel's own limit for one argument is 128 KiB
_SMP = re.compile(r"(?:cpus=)?([0-9]+)(?:,|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What QEMU was told to boot."""

    firmware: str
    kernel: str
    initrd: str  # empty where there is none
    cmdline: str
    vcpus: int


def parse_qemu_cmdline(raw: bytes, *, where: str) -> Launch:
    """Raises Malformed where an argument that decides the measurement is missing."""
    if len(raw) > MAX_CMDLINE_BYTES:
        raise Malformed(
            "qemu-cmdline-size", "command line is too long", where=where, expected=f"{MAX_CMDLINE_BYTES} bytes"
        )
    arguments = raw.decode("utf-8", "surrogateescape").rstrip("\0").split("\0")
    values = dict(pairwise(arguments))
    missing = [name for name in ("-bios", "-kernel", "-append", "-smp") if name not in values]
    if missing:
        raise Malformed("qemu-cmdline", "not the command line of a direct boot", where=where, expected="-bios -kernel "
                        "-append -smp", got=f"without {' '.join(missing)}")  # fmt: skip
    smp = _SMP.match(values["-smp"])
    if smp is None:
        raise Malformed("qemu-smp", "cannot read -smp", where=where, got=values["-smp"][:80])
    return Launch(
        firmware=values["-bios"],
        kernel=values["-kernel"],
        initrd=values.get("-initrd", ""),
        cmdline=values["-append"],
        vcpus=int(smp.group(1)),
    )
