"""A simulated VM: the real `kata-gpu-guest` over our driver library, a simulated kernel and forged vendors.

`python -m tests.e2e.machine FOLDER ARGUMENTS...` is the VM's process; `Hardware` is what its hypervisor gave it.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from attestation.guest.http import PinnedHttp, Reply
from attestation.guest.machine import Machine
from attestation.guest.main import run
from attestation.simulate.nvidia import NvidiaForge
from attestation.values import Architecture
from tests.attestation.guest.drivers import NONCE
from tests.attestation.guest.kernel import SimulatedKernel, make_pci
from tests.attestation.guest.vm import forge

HARDWARE = "hardware.json"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """CPU field for init-data, and GPUs by serial number; the last `hidden` ones are not shown by a hostile guest."""

    folder: Path
    host_data: str
    serials: tuple[int, ...]
    cc: bool
    hidden: int = 0
    wire: Path  # gets the bodies of all HTTP answers, as the guest sees them
    hold: Path | None = None  # pipe that the CPU's report waits for

    @contextmanager
    def powered(self, libraries: Path) -> Iterator[dict[str, str]]:
        """Environment of the VM's process, while its GPUs answer."""
        shown = self.serials[: len(self.serials) - self.hidden]
        make_pci(self.folder / "pci", gpus=len(shown))
        (self.folder / "tsm").mkdir()
        kernel = {"host_data": self.host_data, "wire": str(self.wire), "hold": str(self.hold or "")}
        (self.folder / HARDWARE).write_text(json.dumps(kernel))
        for index, serial in enumerate(shown):
            chain = NvidiaForge().device(Architecture.HOPPER, serial, nonce=NONCE).chain
            (self.folder / f"gpu{index}.chain").write_bytes(chain)
        with forge(serials=shown) as signs:
            yield {
                "LD_LIBRARY_PATH": str(libraries),
                "FAKE_FORGE": str(signs),
                "FAKE_NVML_DIR": str(self.folder),
                "FAKE_NVML_GPUS": str(len(shown)),
                "FAKE_NVML_CC": str(int(self.cc)),
            }


@dataclass
class Kernel(SimulatedKernel):
    """Can be told to wait with its report."""

    hold: str = ""

    def _report(self, entry: str) -> bytes:
        if self.hold:
            Path(self.hold).read_bytes()  # until the test has opened and closed the other end
        return super()._report(entry)


@contextmanager
def recorded(wire: Path) -> Iterator[None]:
    """Keep what the broker answers, as the guest gets it out of TLS."""
    once = PinnedHttp._once

    def keep(client: PinnedHttp, *call: Any) -> tuple[Reply, float]:
        reply, wanted = once(client, *call)
        with wire.open("ab") as file:
            file.write(reply.body + b"\n")
        return reply, wanted

    with patch.object(PinnedHttp, "_once", keep):
        yield


def main() -> int:
    """The process itself."""
    os.umask(0o077)
    folder = Path(sys.argv[1])
    given = json.loads((folder / HARDWARE).read_text())
    kernel = Kernel(folder / "tsm", init_data=bytes.fromhex(given["host_data"]), hold=given["hold"])
    with recorded(Path(given["wire"])):
        return run(sys.argv[2:], machine=Machine(pci=folder / "pci", configfs=kernel, ccel=folder / "CCEL"))


if __name__ == "__main__":
    sys.exit(main())
