"""Every recorded artefact gives the result that gpu-attestation.md 8.1 to 8.3 states, without a socket."""

import hashlib
import socket
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest

from attestation.errors import AttestationError
from attestation.findings import Result
from attestation.formats.certs import parse_bundle
from attestation.formats.nv_evidence import NvEvidence
from attestation.formats.spdm import parse_report
from attestation.values import GpuMode, Level, Nonce
from attestation.verify.chain import verify_path
from attestation.verify.nv_gpu import Collateral, prove_device
from attestation.verify.nv_set import Expected, verify_set
from attestation.verify.rim import RimShelf, verify_rim
from attestation.verify.roots import NvTrust
from attestation.verify.signature import verify_raw_p384
from attestation.verify.verified import VerifiedDevice
from tests.attestation.gpu.support import GENUINE, IN_2024, NOW, find, genuine, recorded, recorded_nonce, refused

SWITCH_RIM = "NV_SWITCH_BIOS_5612_0002_890_9610550001"
ANCHORS = NvTrust.production().rim_roots


@pytest.fixture(autouse=True)
def no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may open one."""

    def refuse(*_args: object, **_kwargs: object) -> NoReturn:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def nv(vectors: Path) -> Path:
    return vectors / "nvidia"


def check(evidence: NvEvidence, collateral: Collateral = GENUINE, *, nonce: bytes | None = None) -> VerifiedDevice:
    given = Nonce(nonce) if nonce is not None else None
    return prove_device(evidence.report, evidence.chain, collateral, nonce=given, arch=evidence.arch).device


def shelf(rim_id: str, *documents: bytes) -> Collateral:
    return replace(GENUINE, rims=RimShelf({rim_id: documents}))


REPORTS = [
    ("hopperAttestationReport.txt", "hopper_cert_chain_case1.txt", "c438e7e714c0", "550.90.07", "96.00.9F.00.01"),
    ("gpu/blackwellAttestationReport.txt", "gpu/blackwellCertChain.txt", "5fec340fd11c", "575.32", "97.00.88.00.0F"),
    ("gpu/hopperAttestationReport.txt", "gpu/hopperCertChain.txt", "30cddcd0b0cd", "535.86.09", "96.00.5E.00.01"),
    ("switch/switchAttestationReport.txt", "switch/switchCertChain.txt", "352fc991e8d2", "", "96.10.55.00.01"),
]


@pytest.mark.parametrize(("report", "chain", "sha", "driver", "vbios"), REPORTS, ids=[row[2] for row in REPORTS])
def test_report(nv: Path, report: str, chain: str, sha: str, driver: str, vbios: str) -> None:
    evidence = genuine(nv / report, nv / chain)
    assert hashlib.sha256(evidence.report).hexdigest().startswith(sha)
    device = check(evidence)
    assert (device.level, device.driver_version, device.vbios_version) == (Level.AUTHENTIC, driver, vbios)
    assert device.mode is GpuMode.UNKNOWN


JSON = [
    ("hopper_evidence.json", "434af6fe06ce", GpuMode.PPCIE),
    ("hopper_evidence_cert_hold.json", "688167a83c32", GpuMode.UNKNOWN),
    ("switch_evidence_ls10.json", "352fc991e8d2", GpuMode.UNKNOWN),
]


@pytest.mark.parametrize(("name", "sha", "mode"), JSON, ids=[row[0] for row in JSON])
def test_json_evidence(nv: Path, name: str, sha: str, mode: GpuMode) -> None:
    (evidence,) = recorded(nv / name)
    assert hashlib.sha256(evidence.report).hexdigest().startswith(sha)
    device = check(evidence, nonce=recorded_nonce(nv / name))
    assert (device.level, device.mode) == (Level.AUTHENTIC, mode)


def test_wheel_sample(nv_samples: Path) -> None:
    """The genuine Hopper evidence that anybody can get."""
    device = check(genuine(nv_samples / "hopperAttestationReport.txt", nv_samples / "hopperCertChain.txt"))
    assert (device.level, device.driver_version) == (Level.AUTHENTIC, "550.90.07")


def test_switch_is_trusted(nv: Path) -> None:
    """LS10: 31 of 31 measurements at 2026-11-21, the one complete genuine set."""
    document = (nv / "rim/switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml").read_bytes()
    path = nv / "switch_evidence_ls10.json"
    (evidence,) = recorded(path)
    device = check(evidence, shelf(SWITCH_RIM, document), nonce=recorded_nonce(path))
    assert device.level is Level.TRUSTED
    assert next(f for f in device.findings if f.check == "bios-rim").got == "31 of 31 measurements"
    assert check(evidence, shelf(SWITCH_RIM, document)).level is Level.AUTHENTIC  # not fresh


def old_hopper(nv: Path) -> NvEvidence:
    return genuine(nv / "gpu/hopperAttestationReport.txt", nv / "gpu/hopperCertChain.txt")


OLD_NONCE = bytes.fromhex("27a328247bf7935c993341cf587be6f05986ccce4fe7ba2c54100bd616a58f66")
OLD_VBIOS = "NV_GPU_VBIOS_1010_0200_882_96005E0001"
OLD_DRIVER = "NV_GPU_DRIVER_GH100_535.86.09"


def test_vbios_half(nv: Path, nv_samples: Path) -> None:
    """535.86.09 and its VBIOS document: 12 of 12 in 2024, authentic, because the driver document is missing."""
    document = (nv_samples / "1010_0200_882_96005E0001_PROD.swidtag").read_bytes()
    collateral = shelf(OLD_VBIOS, document)
    device = check(old_hopper(nv), replace(collateral, now=IN_2024), nonce=OLD_NONCE)
    assert device.level is Level.AUTHENTIC
    assert next(f for f in device.findings if f.check == "vbios-rim").got == "12 of 12 measurements"
    assert find(device.findings, "rim-missing").expected == OLD_DRIVER
    today = check(old_hopper(nv), collateral, nonce=OLD_NONCE)
    assert today.level is Level.AUTHENTIC
    assert find(today.findings, "rim-signer-expired").result is Result.FAIL


def test_two_documents_under_one_id(nv: Path, nv_samples: Path) -> None:
    """The re-issued document differs at index 9; with both, the one that matches is named."""
    first = (nv_samples / "1010_0200_882_96005E0001_PROD.swidtag").read_bytes()
    again = (nv / "rim/sample_NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml").read_bytes()
    only = check(old_hopper(nv), replace(shelf(OLD_VBIOS, again), now=IN_2024), nonce=OLD_NONCE)
    assert [f.check for f in only.findings if f.code == "measurement-mismatch"] == ["measurement[9]"]
    both = check(old_hopper(nv), replace(shelf(OLD_VBIOS, again, first), now=IN_2024), nonce=OLD_NONCE)
    assert next(f for f in both.findings if f.check == "vbios-rim").result is Result.PASS
    assert both.claims["cgpu-vbios-rim-sha256"] == hashlib.sha256(first).hexdigest()


def test_index_9_is_explained(nv: Path, nv_samples: Path) -> None:
    """580.95.05 against its VBIOS document of 2023."""
    evidence = genuine(nv / "hopper_coco_report1.txt", nv / "hopper_coco_certs1.txt")
    document = (nv_samples / "1010_0200_882_960074001A_PROD.swidtag").read_bytes()
    collateral = replace(shelf("NV_GPU_VBIOS_1010_0200_882_960074001A", document), now=IN_2024)
    tolerant = replace(collateral, policy=replace(collateral.policy, trailing_zeros=1))
    device = check(evidence, tolerant)
    finding = find(device.findings, "measurement-mismatch")
    assert (finding.check, finding.got[:8], finding.expected[:8]) == ("measurement[9]", "059b32e7", "7f3e9382")
    assert "Documents signed in 2023 predate drivers of 550" in finding.hint


def test_near_miss_of_another_driver(nv: Path) -> None:
    """550.90.07 against the document of 550.144.03: refused by version; compared, it differs at five indices."""
    evidence = genuine(nv / "hopperAttestationReport.txt", nv / "hopper_cert_chain_case1.txt")
    document = (nv / "rim/NV_GPU_DRIVER_GH100_550.144.03.xml").read_bytes()
    device = check(evidence, shelf("NV_GPU_DRIVER_GH100_550.90.07", document))
    assert find(device.findings, "rim-version").got == "550.144.03"


def test_board(nv: Path) -> None:
    """8 GPUs and 4 switches over one nonce: authentic (no documents for them), topology consistent."""
    evidence = recorded(nv / "ppcie/gpu_evidence.json") + recorded(nv / "ppcie/switch_evidence.json")
    nonce = Nonce(recorded_nonce(nv / "ppcie/gpu_evidence.json"))
    result = verify_set(evidence, expected=Expected(gpus=8, switches=4), nonce=nonce, collateral=GENUINE)
    assert result.level is Level.AUTHENTIC
    topology = next(f for f in result.findings if f.check == "topology")
    assert (topology.result, topology.got) == (Result.PASS, "144 links, every edge seen from both ends")
    assert {p.device.mode for p in result.proofs if p.device.driver_version} == {GpuMode.PPCIE}
    incomplete = verify_set(evidence[:11], expected=Expected(gpus=8, switches=4), nonce=nonce, collateral=GENUINE)
    assert incomplete.level is Level.NONE


def test_four_copies_of_one_switch(nv: Path) -> None:
    """A peer's test expects this to pass."""
    evidence = recorded(nv / "multi_switch_ls10.json")
    result = verify_set(evidence, expected=Expected(gpus=0, switches=4), nonce=None, collateral=GENUINE)
    assert result.level is Level.NONE
    assert find(result.findings, "device-duplicate").result is Result.FAIL


CHAINS = [
    ("hopper_cert_chain_case2.txt", "chain-length"),
    ("hopper_cert_chain_case3.txt", "chain-issuer"),
    ("hopper_cert_chain_case4.txt", "leaf-usage"),
]


@pytest.mark.parametrize(("name", "code"), CHAINS, ids=[row[0] for row in CHAINS])
def test_negative_chain(nv: Path, name: str, code: str) -> None:
    refused(code, lambda: check(genuine(nv / "hopperAttestationReport.txt", nv / name)))


RIMS = [
    ("switchVBIOSRim_NV_SWITCH_BIOS_5612_0002_890_9610550001.xml", ""),
    ("NV_GPU_DRIVER_GH100_550.144.03.xml", ""),
    ("sample_NV_GPU_VBIOS_1010_0200_882_96005E0001_measurement_mismatch.xml", ""),
    ("incorrect_signature_driver_rim.xml", "rim-signature"),
    ("incorrect_cert_chain_driver_rim.xml", "debug-root"),
    ("sample_NV_GPU_DRIVER_GH100_535.86.09_measurement_mismatch.xml", "rim-digest"),
    ("sample_NV_GPU_DRIVER_GH100_570.124.03_expired.xml", "rim-digest"),
    ("sample_NV_SWITCH_BIOS_5612_0002_890_9610550001_invalid_signature.xml", "rim-digest"),
    ("sample_NV_SWITCH_BIOS_5612_0002_890_9610550001_measurement_mismatch.xml", "rim-digest"),
]


@pytest.mark.parametrize(("name", "code"), RIMS, ids=[row[0] for row in RIMS])
def test_document(nv: Path, name: str, code: str) -> None:
    document = (nv / "rim" / name).read_bytes()
    if code:
        refused(code, lambda: verify_rim(document, anchors=ANCHORS))
    else:
        assert verify_rim(document, anchors=ANCHORS).content.golden


def test_bundled_documents(nv_samples: Path) -> None:
    """All 26 of the wheel verify; all but the two for its self-test share one value at index 9; signers expired."""
    documents = {p.name: verify_rim(p.read_bytes(), anchors=ANCHORS) for p in sorted(nv_samples.glob("*.swidtag"))}
    assert len(documents) == 26
    production = [rim for name, rim in documents.items() if "test_no_gpu" not in name]
    assert {rim.content.golden[9].alternatives[0].hex()[:8] for rim in production} == {"7f3e9382"}
    assert all(rim.path.leaf.not_after < NOW for rim in documents.values())


def test_every_bit_of_the_signed_part(nv: Path) -> None:
    """Each of the 16576 signed bits of a genuine report, flipped: refused by the parser or by the signature."""
    evidence = genuine(nv / "switch/switchAttestationReport.txt", nv / "switch/switchCertChain.txt")
    path = verify_path(parse_bundle(evidence.chain), anchors=NvTrust.production().device_roots, where="chain")
    codes: set[str] = set()
    accepted: list[int] = []
    for bit in range(8 * len(parse_report(evidence.report).signed)):
        changed = bytearray(evidence.report)
        changed[bit >> 3] ^= 1 << (bit & 7)
        try:
            report = parse_report(bytes(changed))
            digest = hashlib.sha384(report.signed).digest()
            verify_raw_p384(path.leaf.key, report.signature, digest, code="report-signature", where="")
            accepted.append(bit)
        except AttestationError as exc:
            codes.add(exc.code)
    assert accepted == []
    assert "report-signature" in codes
