"""configfs-tsm against a simulated kernel: SNP and TDX evidence, races, and what the verifier makes of it."""

from base64 import b64decode
from pathlib import Path

import pytest

from attestation.errors import AttestationError, Malformed, Unavailable
from attestation.formats.snp_evidence import read_snp_evidence
from attestation.guest.tsm import ConfigfsTsm, KernelConfigfs
from attestation.simulate.amd import SimulatedChip
from attestation.values import Tee
from tests.attestation.guest.kernel import SimulatedKernel

DATA = bytes(range(64))
TDX_REPORT_DATA = slice(48 + 520, 48 + 584)  # the last field of the TD report (tee.md 2.1)


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
    assert b64decode(str(evidence["quote"]))[TDX_REPORT_DATA] == DATA
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
