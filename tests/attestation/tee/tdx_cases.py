"""What the TDX tests share."""

from datetime import UTC, datetime
from pathlib import Path

from attestation.errors import AttestationError
from attestation.findings import Result
from attestation.formats.tdx_evidence import TdxEvidence
from attestation.simulate.intel import QuoteForm, simulated_intel_trust
from attestation.simulate.intel_pki import CollateralForm
from attestation.verify.expected import CpuExpected
from attestation.verify.tdx import verify_tdx
from attestation.verify.tdx_trust import IntelTrust, StaticIntelCollateral, TdxPolicy
from attestation.verify.verified import VerifiedCpu

TODAY = datetime(2026, 11, 21, tzinfo=UTC)
T1_TIME = datetime(2025, 6, 19, 11, 32, tzinfo=UTC)
T2_TIME = datetime(2026, 2, 18, 11, 0, tzinfo=UTC)
_DEFAULT = CollateralForm().render()


def failures(cpu: VerifiedCpu) -> list[str]:
    """Codes of what policy refused."""
    return [finding.code for finding in cpu.findings if finding.result is Result.FAIL]


def verify_genuine(
    vectors: Path, quote: str, collateral: str, now: datetime, policy: TdxPolicy | None = None
) -> VerifiedCpu:
    """A quote of the vector folder under Intel's root."""
    folder = vectors / "tdx"
    return verify_tdx(
        TdxEvidence(quote=(folder / quote).read_bytes()),
        trust=IntelTrust.production(),
        collateral=StaticIntelCollateral(documents=((folder / collateral).read_bytes(),)),
        policy=policy or TdxPolicy(),
        expected=CpuExpected.unchecked(),
        now=now,
    )


def verify_forged(
    quote: QuoteForm | bytes | None = None,
    collateral: CollateralForm | bytes | None = None,
    *,
    policy: TdxPolicy | None = None,
    trust: IntelTrust | None = None,
    expected: CpuExpected | None = None,
    event_log: bytes | None = None,
    now: datetime = TODAY,
) -> VerifiedCpu:
    """Under the simulated root."""
    if not isinstance(quote, bytes):
        quote = (quote or QuoteForm()).sign()
    if not isinstance(collateral, bytes):
        collateral = _DEFAULT if collateral is None else collateral.render()
    return verify_tdx(
        TdxEvidence(quote=quote, event_log=event_log),
        trust=trust or simulated_intel_trust(),
        collateral=StaticIntelCollateral(documents=(collateral,)),
        policy=policy or TdxPolicy(),
        expected=expected or CpuExpected.unchecked(),
        now=now,
    )


def refusal(
    quote: QuoteForm | bytes | None = None, collateral: CollateralForm | bytes | None = None, **options: object
) -> list[str]:
    """The code that was raised, or the codes that policy refused; empty when everything held."""
    try:
        return failures(verify_forged(quote, collateral, **options))  # type: ignore[arg-type]
    except AttestationError as exc:
        return [exc.code]
