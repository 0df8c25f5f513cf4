"""Hardware and firmware of a simulated VM under the real `kata-gpu-guest`: PCI list, GPU driver, CPU report interface.

`python -m tests.e2e.machine HARDWARE.json ARGUMENTS...` is that command on that hardware. All that is replaced is what
only hardware can answer; everything above it, from NVML's caller to the HTTP client, is the guest's own code.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pynvml

from attestation.guest import http, main, pci, tsm
from attestation.simulate.amd import SimulatedChip, mint_report
from attestation.simulate.nvidia import ForgedEvidence, NvidiaForge
from attestation.values import Architecture
from tests.attestation.guest.test_tsm import SimulatedKernel


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the hypervisor gave the VM. `gpus` are serial numbers; `omitted` GPUs a hostile driver does not list."""

    folder: str
    host_data: str
    gpus: list[int]
    cc: bool
    omitted: int = 0
    wire: str = ""  # file for the bodies of all HTTP answers, as the guest sees them
    hold: str = ""  # pipe that the CPU report waits for

    def save(self, path: Path) -> Path:
        """For the VM's process."""
        path.write_text(json.dumps(vars(self)))
        return path


class Firmware(SimulatedKernel):
    """The kernel's report interface over a chip that was given HOST_DATA at launch."""

    def __init__(self, hardware: Hardware) -> None:
        super().__init__(Path(hardware.folder, "tsm"))
        self.root.mkdir()
        self._hardware = hardware

    def _report(self, entry: str) -> bytes:
        if self._hardware.hold:
            Path(self._hardware.hold).read_bytes()  # until the test has opened and closed it
        data, chip = (self.root / entry / "inblob").read_bytes(), SimulatedChip()
        fields = chip.fields().with_(report_data=data, host_data=bytes.fromhex(self._hardware.host_data))
        return mint_report(fields, chip.key)


class Driver:
    """The functions of libnvidia-ml that the guest calls, over forged GPUs."""

    def __init__(self, hardware: Hardware) -> None:
        self._cc, self._gpus = hardware.cc, hardware.gpus[hardware.omitted :]
        self._forge = NvidiaForge()

    def functions(self) -> dict[str, Any]:
        """By the names of the library."""
        return {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlSystemGetConfComputeSettings": self._settings,
            "nvmlDeviceGetCount": lambda: len(self._gpus),
            "nvmlDeviceGetHandleByIndex": lambda index: self._gpus[index],
            "nvmlDeviceGetUUID": lambda serial: f"GPU-simulated-{serial}",
            "nvmlDeviceGetArchitecture": lambda _serial: pynvml.NVML_DEVICE_ARCH_HOPPER,
            "nvmlDeviceGetConfComputeGpuAttestationReport": self._report,
            "nvmlDeviceGetConfComputeGpuCertificate": self._chain,
        }

    def _settings(self, reference: Any) -> int:
        settings = reference._obj
        settings.ccFeature, settings.environment = int(self._cc), 2
        return int(pynvml.NVML_SUCCESS)

    def _device(self, serial: int, nonce: bytes) -> ForgedEvidence:
        return self._forge.device(Architecture.HOPPER, serial, nonce=nonce)

    def _report(self, serial: int, nonce: bytes) -> SimpleNamespace:
        report = self._device(serial, nonce).report
        return SimpleNamespace(attestationReport=report, attestationReportSize=len(report))

    def _chain(self, serial: int) -> SimpleNamespace:
        chain = self._device(serial, bytes(32)).chain
        return SimpleNamespace(attestationCertChain=chain, attestationCertChainSize=len(chain))


def pci_list(hardware: Hardware) -> Path:
    """The kernel's list of PCI devices; a hostile guest hides what its driver does not list."""
    root = Path(hardware.folder, "pci")
    for slot, _ in enumerate(hardware.gpus[hardware.omitted :], start=1):
        function = root / f"0000:{slot:02x}:00.0"
        function.mkdir(parents=True)
        (function / "vendor").write_text("0x10de\n")
        (function / "class").write_text("0x030200\n")
    root.mkdir(exist_ok=True)
    return root


@contextmanager
def running_on(hardware: Hardware) -> Iterator[None]:
    """The guest's code finds this hardware."""
    once = http.PinnedHttp._once

    def recorded(client: http.PinnedHttp, *call: Any) -> tuple[http.Reply, float]:
        reply, wanted = once(client, *call)
        with Path(hardware.wire).open("ab") as wire:
            wire.write(reply.body + b"\n")
        return reply, wanted

    with ExitStack() as stack:
        stack.enter_context(patch.multiple(pynvml, **Driver(hardware).functions()))
        stack.enter_context(patch.object(pci, "count_devices", partial(pci.count_devices, pci_list(hardware))))
        firmware = Firmware(hardware)
        stack.enter_context(patch.object(tsm, "KernelConfigfs", lambda: firmware))
        stack.enter_context(patch.object(http.PinnedHttp, "_once", recorded))
        yield


if __name__ == "__main__":
    os.umask(0o077)
    with running_on(Hardware(**json.loads(Path(sys.argv[1]).read_text()))):
        sys.exit(main.run(sys.argv[2:]))
