"""A real `kata-gpu-guest` process in a simulated VM: our fake driver libraries, a simulated kernel, forged vendors.

`python -m tests.attestation.guest.vm FOLDER COMMAND...` is that process; `SimulatedGuest` makes the folder and runs it.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from attestation.formats.initdata import parse_init_data
from attestation.guest.machine import Machine
from attestation.guest.main import run
from attestation.simulate.nvidia import NvidiaForge
from attestation.values import Architecture, GpuMode
from tests.attestation.guest.drivers import NONCE
from tests.attestation.guest.kernel import HOST_DATA_BYTES, MRCONFIGID_BYTES, SimulatedKernel, make_pci

_REQUEST_BYTES = 34  # device, index, nonce (fake_forge.h)
_INIT_DATA_BYTES = {"sev_guest": HOST_DATA_BYTES, "tdx_guest": MRCONFIGID_BYTES}


@dataclass(frozen=True, kw_only=True)
class SimulatedGuest:
    """One VM. Broken devices and wrong counts are settings of the fake drivers."""

    folder: Path
    libraries: Path
    provider: str = "sev_guest"
    gpus: int = 1
    switches: int = 0
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def init_data(self) -> Path:
        """Its init-data document."""
        return self.folder / "initdata.toml"

    def launch(self, broker: str, *, expected: int | None = None, profile: str | None = None) -> str:
        """What the host does: init-data, its digest into the CPU's field, devices on the bus. Returns the digest."""
        own = [] if expected is None else [f"expected_devices = {expected}"]
        own += [] if profile is None else [f'binding_profile = "{profile}"']
        text = (
            'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n'
            f"\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"{broker}\"\n'''\n"
            f"\"kata-gpu.toml\" = '''\n{chr(10).join(own)}\n'''\n"
        )
        self.init_data.write_text(text)
        document = parse_init_data(text)
        make_pci(self.folder / "pci", gpus=self.gpus, switches=self.switches)
        (self.folder / "tsm").mkdir()
        kernel = {
            "provider": self.provider,
            "init_data": document.field_value(_INIT_DATA_BYTES[self.provider]).hex(),
        }
        (self.folder / "kernel.json").write_text(json.dumps(kernel))
        forge = NvidiaForge()
        for arch, name, count in (
            (Architecture.HOPPER, "gpu", self.gpus),
            (Architecture.LS10, "switch", self.switches),
        ):
            for index in range(count):
                (self.folder / f"{name}{index}.chain").write_bytes(forge.device(arch, index, nonce=NONCE).chain)
        return str(document.digest)

    def command(self, *arguments: object) -> list[str]:
        """The command line of the process."""
        return [sys.executable, "-m", __name__, str(self.folder), *map(str, arguments)]

    def environment(self, forge: Path) -> dict[str, str]:
        """Where it finds its drivers."""
        own = {
            "LD_LIBRARY_PATH": self.libraries,
            "FAKE_FORGE": forge,
            "FAKE_NVML_DIR": self.folder,
            "FAKE_NVML_GPUS": self.gpus,
            "FAKE_NSCQ_DIR": self.folder,
            "FAKE_NSCQ_SWITCHES": self.switches,
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        return os.environ | {name: str(value) for name, value in {**own, **self.settings}.items()}

    def run(self, *arguments: object) -> "subprocess.CompletedProcess[bytes]":
        """Run one command to its end, with a forge behind the drivers."""
        with forge(GpuMode.PPCIE if self.switches else GpuMode.ON) as socket_path:
            return subprocess.run(
                self.command(*arguments), env=self.environment(socket_path), capture_output=True, check=False
            )


@contextmanager
def forge(mode: GpuMode = GpuMode.ON, serials: Sequence[int] = range(256)) -> Iterator[Path]:
    """Signs reports over whatever nonce a fake driver hands in. The path is short: it is a socket's.

    `serials` says which device is at which index.
    """
    vendor = NvidiaForge()
    with TemporaryDirectory(prefix="forge-") as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder, "s")
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    request = connection.recv(_REQUEST_BYTES, socket.MSG_WAITALL)
                    if len(request) == _REQUEST_BYTES:
                        arch = Architecture.LS10 if request[:1] == b"s" else Architecture.HOPPER
                        of_device = mode if arch is Architecture.HOPPER else GpuMode.ON
                        report = vendor.device(arch, serials[request[1]], nonce=request[2:], mode=of_device).report
                        connection.sendall(len(report).to_bytes(4, "little") + report)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield path
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def main() -> int:
    """The process itself."""
    folder = Path(sys.argv[1])
    kernel = json.loads((folder / "kernel.json").read_text())
    configfs = SimulatedKernel(
        folder / "tsm", provider=kernel["provider"], init_data=bytes.fromhex(kernel["init_data"])
    )
    return run(sys.argv[2:], machine=Machine(pci=folder / "pci", configfs=configfs, ccel=folder / "CCEL"))


if __name__ == "__main__":
    sys.exit(main())
