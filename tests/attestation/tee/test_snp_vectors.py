"""Genuine AMD reports: the result that the reference states, at the time that it states (tee.md 5.1)."""

import base64
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from attestation.errors import Malformed, Unavailable, Untrusted
from attestation.formats.snp_evidence import CertKind, SnpEvidence, parse_snp_evidence, render_snp_evidence
from attestation.formats.snp_report import REPORT_BYTES, parse_snp_report
from attestation.formats.snp_tcb import Product, parse_tcb
from attestation.simulate.amd import SimulatedChip
from attestation.simulate.amd_pki import authorities
from attestation.values import Tee
from attestation.verify.expected import CpuExpected
from attestation.verify.snp import verify_snp
from attestation.verify.snp_policy import SnpPolicy
from attestation.verify.snp_trust import AmdTrust, StaticAmdCollateral
from tests.attestation.tee.snp_cases import (
    TODAY,
    VLEK_TIME,
    chain,
    failures,
    genuine,
    genuine_refusal,
    open_policy,
    verify_genuine,
)

_HCL_REPORT = 32  # the SNP report inside Azure's HCL blob
VCEK, VLEK = CertKind.VCEK, CertKind.VLEK


@pytest.mark.parametrize(
    ("report", "leaf", "kind", "now", "product", "refused"),
    [
        pytest.param("test-report.bin", "test-vcek.der", VCEK, TODAY, "Milan", [], id="S1-milan-v2"),
        pytest.param("test-vlek-report.bin", "test-vlek.der", VLEK, VLEK_TIME, "Milan", [], id="S2-vlek-frozen-clock"),
        pytest.param("debug-report.bin", "debug-vcek.der", VCEK, TODAY, "Milan", ["snp-debug"], id="S3-debug"),
        pytest.param("milan_attestation_report.bin", "milan_vcek.pem", VCEK, TODAY, "Milan", [], id="S10-milan-v3"),
        pytest.param("genoa_attestation_report.bin", "genoa_vcek.pem", VCEK, TODAY, "Genoa", [], id="S11-genoa-v3"),
        pytest.param("turin_attestation_report.bin", "turin_vcek.pem", VCEK, TODAY, "Turin", [], id="S12-turin-v5"),
    ],
)
def test_genuine_reports(
    vectors: Path, report: str, leaf: str, kind: CertKind, now: datetime, product: str, refused: list[str]
) -> None:
    """Signature and chain hold; with every switch open, only DEBUG is still refused."""
    evidence = genuine(vectors, report, leaf, kind)
    cpu = verify_genuine(vectors, evidence, now=now)
    assert (cpu.tee, cpu.product, failures(cpu)) == (Tee.SNP, product, refused)


@pytest.mark.parametrize(
    ("name", "leaf"),
    [pytest.param("genoa", "genoa_vcek.pem", id="genoa"), pytest.param("turin", "turin_vcek.pem", id="turin")],
)
def test_current_products_pass_the_default_policy(vectors: Path, name: str, leaf: str) -> None:
    evidence = genuine(vectors, f"{name}_attestation_report.bin", leaf)
    assert failures(verify_genuine(vectors, evidence, SnpPolicy())) == []


def test_milan_is_refused_by_default_and_warned_about_when_opted_in(vectors: Path) -> None:
    evidence = genuine(vectors, "milan_attestation_report.bin", "milan_vcek.pem")
    assert failures(verify_genuine(vectors, evidence, SnpPolicy())) == ["snp-product"]
    cpu = verify_genuine(vectors, evidence)
    assert failures(cpu) == []
    assert "snp-milan-root-extractable" in {finding.code for finding in cpu.findings}
    other_chip = verify_genuine(vectors, evidence, open_policy("ab" * 64))
    assert failures(other_chip) == ["snp-chip-not-allowed"]


def test_turin_facts(vectors: Path) -> None:
    """Turin's own TCB layout, 8-byte chip id and mitigation vectors (S12)."""
    cpu = verify_genuine(vectors, genuine(vectors, "turin_attestation_report.bin", "turin_vcek.pem"))
    tcb = {name: cpu.claims[f"reported_tcb_{name}"] for name in ("fmc", "bootloader", "tee", "snp", "microcode")}
    assert tcb == {"fmc": 1, "bootloader": 1, "tee": 1, "snp": 4, "microcode": 81}
    assert cpu.chip_id == "59790fb1c39f35c1"
    assert (cpu.claims["launch_mit_vector"], cpu.claims["current_mit_vector"]) == (0x3F, 0x3F)
    assert cpu.claims["current_firmware"] == "1.55.65"


@pytest.mark.parametrize(
    ("name", "product"),
    [pytest.param("evidence-v2.json", "Milan", id="S8-milan"), pytest.param("evidence-genoa.json", "Genoa", id="S6")],
)
def test_reports_inside_azure_blobs(vectors: Path, name: str, product: str) -> None:
    document = json.loads((vectors / "snp" / "azure" / name).read_bytes())
    blob = document.get("hcl_report") or document["report"]
    blob = base64.urlsafe_b64decode(blob + "==") if isinstance(blob, str) else bytes(blob)
    vcek = document["vcek"]
    leaf = vcek.encode() if vcek.startswith("-----") else base64.urlsafe_b64decode(vcek + "==")
    evidence = SnpEvidence(report=blob[_HCL_REPORT : _HCL_REPORT + REPORT_BYTES], certificates={VCEK: leaf})
    cpu = verify_genuine(vectors, evidence)
    assert (cpu.product, failures(cpu)) == (product, [])


@pytest.mark.parametrize("now", [pytest.param(TODAY, id="tee-013-vlek-today")])
def test_vlek_expired(vectors: Path, now: datetime) -> None:
    evidence = genuine(vectors, "test-vlek-report.bin", "test-vlek.der", VLEK)
    assert genuine_refusal(vectors, evidence, now=now) == ["snp-cert-expired"]
    early = VLEK_TIME.replace(year=2024)
    assert genuine_refusal(vectors, evidence, now=early) == ["snp-cert-not-yet-valid"]


@pytest.mark.parametrize(
    "leaf",
    [
        pytest.param("test-vcek-invalid-legacy.der", id="tee-014-legacy-hwid"),
        pytest.param("test-vcek-invalid-new.der", id="tee-014-der-hwid"),
    ],
)
def test_altered_leaves(vectors: Path, leaf: str) -> None:
    assert genuine_refusal(vectors, genuine(vectors, "test-report.bin", leaf)) == ["snp-chain-signature"]


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-015-other-chip")])
def test_leaf_of_another_chip(vectors: Path, _case: None) -> None:
    evidence = genuine(vectors, "test-report.bin", "milan_vcek.pem")
    assert genuine_refusal(vectors, evidence) == ["snp-signature-invalid"]


@pytest.mark.parametrize(
    ("versions", "codes"),
    [
        pytest.param({2}, ["snp-debug"], id="tee-005-debug"),
        pytest.param({3, 5}, ["snp-debug", "snp-version"], id="tee-011-v2-not-opted-in"),
    ],
)
def test_debug_report_is_genuine_and_refused(vectors: Path, versions: set[int], codes: list[str]) -> None:
    evidence = genuine(vectors, "debug-report.bin", "debug-vcek.der")
    policy = replace(open_policy(evidence.report[0x1A0:0x1E0].hex()), versions=frozenset(versions))
    assert genuine_refusal(vectors, evidence, policy) == codes


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-008-vmpl-1")])
def test_vmpl(vectors: Path, _case: None) -> None:
    """Everything else about S2 may be allowed: at VMPL 1 it is refused for that alone."""
    evidence = genuine(vectors, "test-vlek-report.bin", "test-vlek.der", VLEK)
    policy = replace(open_policy(evidence.report[0x1A0:0x1E0].hex()), vmpls=frozenset({0}))
    assert genuine_refusal(vectors, evidence, policy, VLEK_TIME) == ["snp-vmpl"]


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-024-provisional")])
def test_provisional_firmware(vectors: Path, _case: None) -> None:
    """S1 runs microcode 0xCE with 0x73 committed."""
    evidence = genuine(vectors, "test-report.bin", "test-vcek.der")
    policy = replace(open_policy(evidence.report[0x1A0:0x1E0].hex()), provisional_firmware=False)
    assert genuine_refusal(vectors, evidence, policy) == ["snp-provisional-firmware"]


@pytest.mark.parametrize(
    "offset",
    [
        pytest.param(0x2A, id="tee-001-image-id"),
        pytest.param(0x180, id="tee-001-reported-tcb"),
        pytest.param(0x29F, id="tee-001-last-signed-byte"),
    ],
)
def test_flipped_bits(vectors: Path, offset: int) -> None:
    evidence = genuine(vectors, "test-report.bin", "test-vcek.der")
    report = bytearray(evidence.report)
    report[offset] ^= 1
    changed = SnpEvidence(report=bytes(report), certificates=evidence.certificates)
    assert genuine_refusal(vectors, changed) == ["snp-signature-invalid"]


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-016-genoa-leaf-milan-chain")])
def test_wrong_product_chain(vectors: Path, _case: None) -> None:
    """Without Genoa's authorities there is nothing to chain a Genoa leaf to, whatever else is at hand."""

    with pytest.raises(Unavailable) as caught:
        verify_snp(
            genuine(vectors, "genoa_attestation_report.bin", "genoa_vcek.pem"),
            trust=AmdTrust.production(),
            collateral=StaticAmdCollateral(chain=chain(vectors, "milan")),
            policy=SnpPolicy(),
            expected=CpuExpected.unchecked(),
            now=TODAY,
        )
    assert caught.value.code == "snp-authority-missing"


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-021-turin-with-milan-layout")])
def test_turin_tcb_is_not_milans(vectors: Path, _case: None) -> None:

    raw = parse_snp_report((vectors / "snp" / "turin_attestation_report.bin").read_bytes()).reported_tcb
    with pytest.raises(Malformed) as caught:
        parse_tcb(raw, Product.MILAN, "reported_tcb")
    assert caught.value.code == "snp-tcb-reserved"


@pytest.mark.parametrize("name", ["test", "milan_attestation", "genoa_attestation", "turin_attestation"])
def test_stock_json_rebuilds_the_signed_bytes(vectors: Path, name: str) -> None:
    suffix = "-report.bin" if name == "test" else "_report.bin"
    raw = (vectors / "snp" / f"{name}{suffix}").read_bytes()
    assert parse_snp_evidence(render_snp_evidence(raw, {VCEK: b"leaf"})).report == raw


def test_simulated_roots_are_not_amds(vectors: Path) -> None:

    evidence = SimulatedChip().evidence()
    ark, ask, _ = authorities(Product.GENOA)
    offered = SnpEvidence(
        report=evidence.report, certificates={**evidence.certificates, CertKind.ARK: ark, CertKind.ASK: ask}
    )
    with pytest.raises(Untrusted):
        verify_genuine(vectors, offered, SnpPolicy())
