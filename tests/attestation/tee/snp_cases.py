"""What the SNP tests share: policies, a forged base, and one word for an outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from attestation.errors import AttestationError
from attestation.findings import Result
from attestation.formats.snp_evidence import CertKind, SnpEvidence
from attestation.formats.snp_tcb import Product
from attestation.simulate.amd import CSP_ID, SimulatedChip, simulated_amd_collateral, simulated_amd_trust
from attestation.simulate.amd_pki import CertificateForm, authorities
from attestation.verify.expected import CpuExpected
from attestation.verify.snp import verify_snp
from attestation.verify.snp_policy import Rule, SnpPolicy
from attestation.verify.snp_trust import AmdTrust, LeafKind, StaticAmdCollateral
from attestation.verify.verified import VerifiedCpu

TODAY = datetime(2026, 11, 21, tzinfo=UTC)
VLEK_TIME = datetime(2025, 6, 1, tzinfo=UTC)


def open_policy(*chips: str) -> SnpPolicy:
    """Everything that may be opened is open: what still fails has no switch."""
    return SnpPolicy(
        products=frozenset(Product),
        versions=frozenset({2, 3, 4, 5}),
        leaf_kinds=frozenset(LeafKind),
        csp_ids=frozenset({CSP_ID, "CN=cc-us-east-2.amazonaws.com"}),
        provisional_firmware=True,
        vmpls=frozenset({0, 1}),
        alias_check=Rule.ANY,
        chip_allow=frozenset(chips or {"00"}),
    )


def chain(vectors: Path, *products: str) -> Sequence[bytes]:
    """AMD's own authorities."""
    return [
        (vectors / "snp" / f"{name}_ask_ark_asvk.pem").read_bytes() for name in products or ("milan", "genoa", "turin")
    ]


def genuine(vectors: Path, report: str, leaf: str, kind: CertKind = CertKind.VCEK) -> SnpEvidence:
    """Evidence of the vector folder."""
    folder = vectors / "snp"
    return SnpEvidence(report=(folder / report).read_bytes(), certificates={kind: (folder / leaf).read_bytes()})


def verify_genuine(
    vectors: Path, evidence: SnpEvidence, policy: SnpPolicy | None = None, now: datetime = TODAY
) -> VerifiedCpu:
    """Under AMD's roots."""
    return verify_snp(
        evidence,
        trust=AmdTrust.production(),
        collateral=StaticAmdCollateral(chain=chain(vectors)),
        policy=policy or open_policy(evidence.report[0x1A0:0x1E0].hex()),
        expected=CpuExpected.unchecked(),
        now=now,
    )


def verify_forged(
    evidence: SnpEvidence,
    policy: SnpPolicy | None = None,
    *,
    expected: CpuExpected | None = None,
    collateral: StaticAmdCollateral | None = None,
    trust: AmdTrust | None = None,
    now: datetime = TODAY,
) -> VerifiedCpu:
    """Under the simulated roots, with the default policy."""
    return verify_snp(
        evidence,
        trust=trust or simulated_amd_trust(),
        collateral=collateral or simulated_amd_collateral(),
        policy=policy or SnpPolicy(),
        expected=expected or CpuExpected.unchecked(),
        now=now,
    )


def failures(cpu: VerifiedCpu) -> list[str]:
    """Codes of what policy refused."""
    return [finding.code for finding in cpu.findings if finding.result is Result.FAIL]


def refusal(evidence: SnpEvidence, policy: SnpPolicy | None = None, **options: object) -> list[str]:
    """The code that was raised, or the codes that policy refused; empty when everything held."""
    try:
        return failures(verify_forged(evidence, policy, **options))  # type: ignore[arg-type]
    except AttestationError as exc:
        return [exc.code]


def genuine_refusal(
    vectors: Path, evidence: SnpEvidence, policy: SnpPolicy | None = None, now: datetime = TODAY
) -> list[str]:
    """The same under AMD's roots."""
    try:
        return failures(verify_genuine(vectors, evidence, policy, now))
    except AttestationError as exc:
        return [exc.code]


def flipped(data: bytes, offset: int, mask: int = 1) -> bytes:
    """One bit changed."""
    return data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :]


def with_report(evidence: SnpEvidence, report: bytes) -> SnpEvidence:
    """The same certificates with another report."""
    return replace(evidence, report=report)


def with_leaf(chip: SimulatedChip, form: CertificateForm, kind: CertKind = CertKind.VCEK) -> SnpEvidence:
    """A good report with another leaf."""
    return SnpEvidence(report=chip.evidence().report, certificates={kind: form.sign()})


def with_extension(form: CertificateForm, suffix: str, value: bytes | None) -> CertificateForm:
    """The leaf with one of AMD's extensions replaced, or removed."""
    identifier = f"1.3.6.1.4.1.3704.1.{suffix}"
    kept = tuple(e for e in form.extensions if e[0] != identifier)
    return replace(form, extensions=kept if value is None else (*kept, (identifier, value, False)))


def pool(product: Product, replaced: Mapping[int, bytes]) -> StaticAmdCollateral:
    """Authorities of a product with some of (ARK, ASK, ASVK) replaced."""
    return StaticAmdCollateral(chain=[replaced.get(i, der) for i, der in enumerate(authorities(product))])
