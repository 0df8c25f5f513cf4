"""A simulated kernel: the report folder of configfs-tsm, and the PCI bus as sysfs shows it."""

from dataclasses import dataclass, field
from pathlib import Path

from attestation.formats.snp_evidence import CertKind
from attestation.guest.tsm import read_blob
from attestation.simulate.amd import SimulatedChip, mint_report
from attestation.simulate.intel import QuoteForm

HOST_DATA_BYTES, MRCONFIGID_BYTES = 32, 48
_VCEK_GUID = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
_GPU, _SWITCH = "0x030200", "0x068000"


@dataclass
class SimulatedKernel:
    """A report folder on disk whose entries behave like the kernel's: options count, reports answer the inblob."""

    root: Path
    provider: str = "sev_guest"
    init_data: bytes = b""  # digest that the VM was launched with: HOST_DATA or MRCONFIGID
    intruders: int = 0  # times that another program asks in between
    removed: list[str] = field(default_factory=list)

    def mkdir(self, entry: str) -> None:
        (self.root / entry).mkdir()
        for name, value in (("provider", f"{self.provider}\n"), ("generation", "0\n")):
            (self.root / entry / name).write_text(value)

    def rmdir(self, entry: str) -> None:
        for attribute in (self.root / entry).iterdir():
            attribute.unlink()
        (self.root / entry).rmdir()
        self.removed.append(entry)

    def write(self, entry: str, attribute: str, data: bytes) -> None:
        (self.root / entry / attribute).write_bytes(data)
        self._count(entry)

    def read(self, entry: str, attribute: str) -> bytes:
        if attribute in {"outblob", "auxblob"}:
            if attribute == "outblob" and self.intruders:
                self.intruders -= 1
                self._count(entry)
            return self._report(entry) if attribute == "outblob" else cert_table()
        return read_blob(self.root / entry / attribute)

    def _report(self, entry: str) -> bytes:
        data = (self.root / entry / "inblob").read_bytes()
        if self.provider == "tdx_guest":
            return QuoteForm(report_data=data, mr_config_id=self.init_data.ljust(MRCONFIGID_BYTES, b"\0")).sign()
        assert (self.root / entry / "privlevel").read_bytes() == b"0"
        chip, launched = SimulatedChip(), self.init_data.ljust(HOST_DATA_BYTES, b"\0")
        return mint_report(chip.fields().with_(report_data=data, host_data=launched), chip.key)

    def _count(self, entry: str) -> None:
        path = self.root / entry / "generation"
        path.write_text(f"{int(path.read_text()) + 1}\n")


def cert_table() -> bytes:
    """The host's table with one leaf."""
    leaf = SimulatedChip().evidence().certificates[CertKind.VCEK]
    return _VCEK_GUID + (48).to_bytes(4, "little") + len(leaf).to_bytes(4, "little") + bytes(24) + leaf


def make_pci(root: Path, *, gpus: int, switches: int = 0) -> Path:
    """`/sys/bus/pci/devices` with a network card and these."""
    rows = [("0x1af4", "0x020000"), *[("0x10de", _GPU)] * gpus, *[("0x10de", _SWITCH)] * switches]
    for index, (vendor, kind) in enumerate(rows):
        function = root / f"0000:{index:02x}:00.0"
        function.mkdir(parents=True)
        (function / "vendor").write_text(f"{vendor}\n")
        (function / "class").write_text(f"{kind}\n")
    return root
