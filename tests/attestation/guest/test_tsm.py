"""configfs-tsm against a simulated kernel: SNP and TDX evidence, races, and what the verifier makes of it."""

from base64 import b64decode
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from attestation.errors import AttestationError, Malformed, Unavailable
from attestation.formats.snp_evidence import CertKind, read_snp_evidence
from attestation.guest.tsm import ConfigfsTsm, KernelConfigfs, read_blob
from attestation.simulate.amd import SimulatedChip, mint_report
from attestation.values import Tee

DATA = bytes(range(64))
QUOTE = b"\x04\x00quote"
VCEK_GUID = bytes.fromhex("63da758de6644564adc5f4b93be8accd")


@dataclass
class SimulatedKernel:
    """A report folder on disk whose entries behave like the kernel's: options count, reports answer the inblob."""

    root: Path
    provider: str = "sev_guest"
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
            return QUOTE + data
        assert (self.root / entry / "privlevel").read_bytes() == b"0"
        chip = SimulatedChip()
        return mint_report(chip.fields().with_(report_data=data), chip.key)

    def _count(self, entry: str) -> None:
        path = self.root / entry / "generation"
        path.write_text(f"{int(path.read_text()) + 1}\n")


def cert_table() -> bytes:
    """The host's table with one leaf."""
    leaf = SimulatedChip().evidence().certificates[CertKind.VCEK]
    return VCEK_GUID + (48).to_bytes(4, "little") + len(leaf).to_bytes(4, "little") + bytes(24) + leaf


def test_snp_evidence_is_what_the_verifier_reads(tmp_path: Path) -> None:
    """Raw report and table, parsed by the broker's own code; the entry is gone afterwards."""
    kernel = SimulatedKernel(tmp_path)
    tsm = ConfigfsTsm(configfs=kernel)
    assert tsm.tee is Tee.SNP
    evidence = read_snp_evidence(tsm.quote(DATA))
    assert evidence.report[0x50:0x90] == DATA
    assert evidence.certificates == SimulatedChip().evidence().certificates
    assert list(tmp_path.iterdir()) == []
    assert len(kernel.removed) == 2


@pytest.mark.parametrize("log", [None, b"event log"])
def test_tdx_evidence(tmp_path: Path, log: bytes | None) -> None:
    """Quote, and the event log where the firmware has one."""
    ccel = tmp_path / "CCEL"
    if log is not None:
        ccel.write_bytes(log)
    (tmp_path / "report").mkdir()
    tsm = ConfigfsTsm(configfs=SimulatedKernel(tmp_path / "report", provider="tdx_guest"), ccel=ccel)
    assert tsm.tee is Tee.TDX
    evidence = tsm.quote(DATA)
    assert b64decode(str(evidence["quote"])) == QUOTE + DATA
    assert evidence["cc_eventlog"] == (None if log is None else "ZXZlbnQgbG9n")


def test_a_report_that_somebody_else_asked_for_is_asked_for_again(tmp_path: Path) -> None:
    """Twice is bad luck, always is an error."""
    tsm = ConfigfsTsm(configfs=SimulatedKernel(tmp_path, intruders=2))
    assert read_snp_evidence(tsm.quote(DATA)).report[0x50:0x90] == DATA
    with pytest.raises(Unavailable) as refused:
        ConfigfsTsm(configfs=SimulatedKernel(tmp_path, intruders=3)).quote(DATA)
    assert refused.value.code == "tsm-generation"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("provider", "data", "error"),
    [("arm_cca_guest", DATA, Unavailable), ("sev_guest", DATA[:63], Malformed), ("sev_guest", b"", Malformed)],
)
def test_other_kernels_and_lengths(tmp_path: Path, provider: str, data: bytes, error: type[AttestationError]) -> None:
    """Report data is never cut or padded here."""
    with pytest.raises(error):
        ConfigfsTsm(configfs=SimulatedKernel(tmp_path, provider=provider)).quote(data)
    assert list(tmp_path.iterdir()) == []


def test_outside_a_confidential_vm(tmp_path: Path) -> None:
    """One clear line."""
    with pytest.raises(Unavailable, match="not in a confidential VM"):
        ConfigfsTsm(configfs=KernelConfigfs(tmp_path / "absent")).quote(DATA)


def test_the_real_adapter_reads_and_writes_attributes(tmp_path: Path) -> None:
    """On a plain folder: an entry left by a killed run is replaced, sizes are bounded, errors are ours."""
    configfs = KernelConfigfs(tmp_path)
    (tmp_path / "entry").mkdir()
    configfs.mkdir("entry")
    (tmp_path / "entry" / "inblob").touch()
    configfs.write("entry", "inblob", DATA)
    assert configfs.read("entry", "inblob") == DATA
    (tmp_path / "entry" / "outblob").write_bytes(bytes(300_000))
    with pytest.raises(Malformed):
        configfs.read("entry", "outblob")
    with pytest.raises(Unavailable):
        configfs.read("entry", "absent")
    with pytest.raises(Unavailable):
        configfs.write("entry", "absent", b"")
