"""One store serves every verifier: genuine TDX, SNP and LS10 evidence against collateral that crossed an air gap."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation.errors import Unavailable
from attestation.formats.collateral import Document, Kind
from attestation.formats.nv_evidence import parse_evidence
from attestation.formats.snp_evidence import SnpEvidence
from attestation.formats.snp_report import parse_snp_report
from attestation.formats.snp_tcb import Product
from attestation.formats.tdx_evidence import TdxEvidence
from attestation.sources.amd_kds import hwid, read_offline_copy
from attestation.sources.bundle import build_bundle, import_bundle, read_signer, write_key_pair
from attestation.sources.collateral import Collateral, chain_id
from attestation.sources.collateral_files import read_rim_files, read_tdx_file
from attestation.sources.collateral_store import CollateralStore
from attestation.values import Level, Nonce, Tee
from attestation.verify.expected import CpuExpected
from attestation.verify.nv_gpu import verify_device
from attestation.verify.revocation import RevocationSource
from attestation.verify.rim import RimSource
from attestation.verify.roots import NvTrust
from attestation.verify.snp import verify_snp
from attestation.verify.snp_certs import split_pem
from attestation.verify.snp_policy import SnpPolicy
from attestation.verify.snp_trust import AmdCollateral, AmdTrust, LeafKind
from attestation.verify.tdx import verify_tdx
from attestation.verify.tdx_trust import IntelCollateral, IntelTrust, TdxPolicy
from tests.attestation.collateral.conftest import NOW
from tests.attestation.collateral.test_nras_service import LS10_RIM, UNKNOWN_SIGNERS

IN_WINDOW = datetime(2025, 6, 19, 11, 32, tzinfo=UTC)  # the TDX vectors' collateral is valid then (tee.md 3.1)


@pytest.fixture(scope="module")
def site(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Collateral:
    """Files into a store, the store into a bundle, the bundle into another store."""
    folder = tmp_path_factory.mktemp("site")
    online, offline = CollateralStore(folder / "online"), CollateralStore(folder / "offline")
    report = parse_snp_report((vectors / "snp" / "genoa_attestation_report.bin").read_bytes())
    chip = folder / "kds" / "vcek" / hwid(report.chip_id, Product.GENOA)
    chip.mkdir(parents=True)
    (leaf,) = split_pem((vectors / "snp" / "genoa_vcek.pem").read_bytes())
    (chip / "vcek.der").write_bytes(leaf)
    chain = Document(
        kind=Kind.AMD_CA,
        id=chain_id(Product.GENOA, LeafKind.VCEK),
        content=(vectors / "snp" / "genoa_ask_ark_asvk.pem").read_bytes(),
        first_seen=NOW,
        source="test",
    )
    rim = folder / f"{LS10_RIM}.xml"
    rim.write_bytes((vectors / "nvidia" / "rim" / f"switchVBIOSRim_{LS10_RIM}.xml").read_bytes())
    for document in (
        chain,
        *read_offline_copy(folder / "kds", now=NOW),
        *read_tdx_file(vectors / "tdx" / "dcap_tdx_quote_collateral.json", now=NOW),
        *read_rim_files(rim, now=NOW),
    ):
        online.add(document)
    write_key_pair(folder / "key", folder / "pub")
    bundle = build_bundle([s.document for s in online.stored()], read_signer(folder / "key"), issued_at=NOW)
    (folder / "bundle").write_bytes(bundle)
    import_bundle(offline, folder / "bundle", folder / "pub", now=NOW)
    return offline.load()


def test_it_satisfies_every_port(site: Collateral) -> None:
    ports: tuple[RimSource, RevocationSource, AmdCollateral, IntelCollateral] = (site, site, site, site)
    assert all(port is site for port in ports)
    assert site.bundle is not None


def test_tdx(site: Collateral, vectors: Path) -> None:
    evidence = TdxEvidence(quote=(vectors / "tdx" / "dcap_tdx_quote").read_bytes())
    values = {
        "trust": IntelTrust.production(), "policy": TdxPolicy(), "expected": CpuExpected.unchecked(), "now": IN_WINDOW,
    }  # fmt: skip
    assert verify_tdx(evidence, collateral=site, **values).tee is Tee.TDX  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        verify_tdx(evidence, collateral=Collateral.of([]), **values)  # type: ignore[arg-type]


def test_snp(site: Collateral, vectors: Path) -> None:
    """The report comes without certificates: leaf and CA chain are the store's."""
    report = (vectors / "snp" / "genoa_attestation_report.bin").read_bytes()
    values = {
        "trust": AmdTrust.production(), "policy": SnpPolicy(), "expected": CpuExpected.unchecked(), "now": NOW,
    }  # fmt: skip
    evidence = SnpEvidence(report=report, certificates={})
    assert verify_snp(evidence, collateral=site, **values).product == "Genoa"  # type: ignore[arg-type]
    with pytest.raises(Unavailable):
        verify_snp(evidence, collateral=Collateral.of([]), **values)  # type: ignore[arg-type]


def test_nvidia(site: Collateral, vectors: Path) -> None:
    (device,) = parse_evidence((vectors / "nvidia" / "switch_evidence_ls10.json").read_bytes())
    verified = verify_device(
        device.report,
        device.chain,
        trust=NvTrust.production(),
        nonce=Nonce(device.report[4:36]),
        rims=site,
        revocation=site,
        policy=replace(UNKNOWN_SIGNERS),
        now=NOW,
    )
    assert verified.level is Level.TRUSTED
    assert json.dumps(verified.claims)
