"""One forge, one nonce and one time for all GPU tests; a negative test takes valid evidence and changes one thing."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from attestation.errors import AttestationError
from attestation.findings import Finding, Result
from attestation.formats.nv_evidence import NvEvidence, decode_report, parse_evidence
from attestation.simulate.nvidia import ForgedEvidence, NvidiaForge
from attestation.values import Architecture, Level, Nonce
from attestation.verify.nv_gpu import Collateral, NvCache, prove_device
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.revocation import (
    ChainKind,
    NoRevocation,
    RevocationPolicy,
    RevocationRule,
    RevocationStatus,
)
from attestation.verify.rim import RimShelf
from attestation.verify.roots import NvTrust
from attestation.verify.verified import VerifiedDevice

NOW = datetime(2026, 11, 21, tzinfo=UTC)
IN_2024 = datetime(2024, 6, 1, tzinfo=UTC)  # when the signers of the bundled VBIOS documents were valid
NONCE = bytes(range(1, 33))
FORGE = NvidiaForge(seed="tests")
SHELF = FORGE.shelf()
HOPPER, BLACKWELL, LS10 = Architecture.HOPPER, Architecture.BLACKWELL, Architecture.LS10

# No stored answers in these tests: what cannot be known about revocation is reported, not demanded.
REPORTED = RevocationPolicy(
    rim=RevocationRule(kind=ChainKind.RIM, accept=frozenset({RevocationStatus.GOOD, RevocationStatus.UNKNOWN}))
)
POLICY = NvPolicy(revocation=REPORTED)
FORGED = Collateral(trust=FORGE.trust, rims=SHELF, revocation=NoRevocation(), policy=POLICY, now=NOW, cache=NvCache())
GENUINE = replace(FORGED, trust=NvTrust.production(), rims=RimShelf({}), cache=NvCache())


def verify(
    evidence: ForgedEvidence | NvEvidence,
    collateral: Collateral = FORGED,
    *,
    nonce: bytes | None = NONCE,
    arch: Architecture | None = None,
) -> VerifiedDevice:
    """The device, or the error."""
    given = Nonce(nonce) if nonce is not None else None
    return prove_device(evidence.report, evidence.chain, collateral, nonce=given, arch=arch).device


def refused(code: str, run: Callable[[], object]) -> None:
    """`run` raises one of our errors with exactly this code."""
    with pytest.raises(AttestationError) as caught:
        run()
    assert caught.value.code == code, str(caught.value)


def find(findings: Sequence[Finding], code: str) -> Finding:
    """The one finding with this code."""
    found = [f for f in findings if f.code == code]
    assert len(found) == 1, [(f.check, f.code) for f in findings]
    return found[0]


def falls_short(device: VerifiedDevice, code: str) -> None:
    """Authentic, not trusted, because of a failed finding with this code."""
    assert device.level is Level.AUTHENTIC
    assert code in {f.code for f in device.findings if f.result is Result.FAIL}, device.findings


def with_rim(rim_id: str, *documents: bytes, collateral: Collateral = FORGED) -> Collateral:
    """The same collateral with other documents under one id."""
    others = {i: (d,) for i, d in FORGE.rims().items() if i != rim_id}
    return replace(collateral, rims=RimShelf({**others, rim_id: documents}), cache=NvCache())


def policy(**changes: object) -> Collateral:
    """The same collateral under a changed policy."""
    return replace(FORGED, policy=replace(POLICY, **changes))  # type: ignore[arg-type]


def genuine(report: Path, chain: Path) -> NvEvidence:
    """A recorded pair of files."""
    return NvEvidence(report=decode_report(report.read_bytes()), chain=chain.read_bytes())


def recorded(path: Path) -> tuple[NvEvidence, ...]:
    """A recorded JSON file."""
    return parse_evidence(path.read_bytes())


def recorded_nonce(path: Path) -> bytes:
    """The challenge of a recorded JSON file, which a test has to know; verification never reads it from there."""
    return bytes.fromhex(json.loads(path.read_text())[0]["nonce"])
