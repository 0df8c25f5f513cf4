"""Fuzz target: any bytes give a value or one of our errors, in bounded time, and nothing is accepted that was changed.

`python -m tests.attestation.gpu.fuzz SECONDS` runs it for long; a short run is part of the tests. The corpus is forged
evidence, and genuine evidence where the vectors are.
"""

import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attestation.errors import AttestationError, Malformed
from attestation.formats.certs import parse_bundle
from attestation.formats.nv_evidence import NvEvidence, decode_report, parse_evidence
from attestation.formats.rim import parse_rim_content
from attestation.formats.rim_signature import parse_signed_rim
from attestation.formats.snp_evidence import parse_snp_evidence
from attestation.formats.spdm import parse_report
from attestation.formats.tdx_evidence import TdxEvidence
from attestation.simulate.amd import SimulatedChip, simulated_amd_collateral, simulated_amd_trust
from attestation.simulate.intel import QuoteForm, simulated_intel_collateral, simulated_intel_trust
from attestation.values import Architecture, Nonce
from attestation.verify.expected import CpuExpected
from attestation.verify.nv_gpu import Collateral, NvCache, prove_device
from attestation.verify.rim import verify_rim
from attestation.verify.snp import verify_snp
from attestation.verify.snp_certs import AmdCache
from attestation.verify.snp_policy import SnpPolicy
from attestation.verify.tdx import IntelCache, verify_tdx
from attestation.verify.tdx_trust import TdxPolicy
from tests.attestation.gpu.support import FORGE, FORGED, GENUINE, NONCE, NOW, recorded

SLOWEST_S = 2.0  # one input, on any machine that runs tests
_TOKENS = (
    b"\x00",
    b"\xff",
    b"\xff\xff",
    b"0x",
    b"\\x",
    b"<!",
    b"<?",
    b"&",
    b"=",
    b"-----BEGIN CERTIFICATE-----\n",
    b"[",
    b"{",
)


@dataclass(frozen=True, slots=True)
class Finding:
    """An input that was accepted, crashed or took too long."""

    what: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Seed:
    """A valid report with its chain, and what verifies it."""

    evidence: NvEvidence
    collateral: Collateral
    nonce: Nonce | None


def seeds(vectors: Path | None) -> list[Seed]:
    """Forged devices of every architecture; recorded ones too, where they are."""
    found = []
    for arch in Architecture:
        forged = FORGE.device(arch, nonce=NONCE)
        found.append(Seed(NvEvidence(report=forged.report, chain=forged.chain), FORGED, Nonce(NONCE)))
    if vectors is not None:
        for name in ("hopper_evidence.json", "switch_evidence_ls10.json"):
            found += [Seed(one, GENUINE, None) for one in recorded(vectors / "nvidia" / name)]
    return found


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four edits: a flip, a token, a cut, a repetition, a changed byte."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(6):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << rng.randrange(8)
            case 1:
                changed[at:at] = rng.choice(_TOKENS)
            case 2:
                del changed[at : at + rng.randint(1, 64)]
            case 3:
                changed[at:at] = changed[at : at + rng.randint(1, 64)]
            case 4 if changed:
                changed[at % len(changed)] = rng.randrange(256)
            case _:
                changed = changed[:at]
    return bytes(changed)


def check_report(seed: Seed, data: bytes) -> None:
    """A changed report is refused with an error of ours. A changed signature may only be the malleable twin."""
    try:
        prove_device(data, seed.evidence.chain, replace(seed.collateral, cache=_CACHE), nonce=seed.nonce)
    except AttestationError:
        return
    if parse_report(data).signed != parse_report(seed.evidence.report).signed:
        raise AssertionError("a changed report was accepted")


def check_chain(seed: Seed, data: bytes) -> None:
    """A changed chain is refused, or holds the same certificates in other text."""
    try:
        prove_device(seed.evidence.report, data, replace(seed.collateral, cache=_CACHE), nonce=seed.nonce)
    except AttestationError:
        return
    if parse_bundle(data) != parse_bundle(seed.evidence.chain):
        raise AssertionError("a changed chain was accepted")


def check_rim(_seed: Seed, data: bytes) -> None:
    """A changed document is refused, or says the same."""
    try:
        rim = verify_rim(data, anchors=FORGE.trust.rim_roots)
    except AttestationError:
        return
    if rim.content != parse_rim_content(parse_signed_rim(_RIM).content):
        raise AssertionError("a changed document was accepted")


def check_text(_seed: Seed, data: bytes) -> None:
    """Evidence files of any content: a value or Malformed."""
    for parse in (decode_report, parse_evidence, parse_bundle):
        try:
            parse(data)
        except Malformed:
            continue


def check_snp(_: Seed, data: bytes) -> None:
    """A changed SNP evidence document is refused, or means the same report."""
    try:
        cpu = verify_snp(
            parse_snp_evidence(data), trust=simulated_amd_trust(), collateral=simulated_amd_collateral(),
            policy=SnpPolicy(), expected=CpuExpected.unchecked(), now=NOW, cache=_AMD,
        )  # fmt: skip
    except AttestationError:
        return
    if cpu.claims != _SNP_CLAIMS:
        raise AssertionError("a changed SNP report was accepted")


def check_tdx(_: Seed, data: bytes) -> None:
    """A changed TDX quote is refused, or differs in padding and encoding only."""
    try:
        cpu = verify_tdx(
            TdxEvidence(quote=data), trust=simulated_intel_trust(), collateral=simulated_intel_collateral(),
            policy=TdxPolicy(), expected=CpuExpected.unchecked(), now=NOW, cache=_INTEL,
        )  # fmt: skip
    except AttestationError:
        return
    if cpu.claims["quote"] != _TDX_CLAIMS["quote"]:
        raise AssertionError("a changed TDX quote was accepted")


_CACHE = NvCache()
_AMD, _INTEL = AmdCache(), IntelCache()
_SNP, _TDX = SimulatedChip().evidence_json().encode(), QuoteForm().sign()
_SNP_CLAIMS = verify_snp(
    parse_snp_evidence(_SNP), trust=simulated_amd_trust(), collateral=simulated_amd_collateral(), policy=SnpPolicy(),
    expected=CpuExpected.unchecked(), now=NOW,
).claims  # fmt: skip
_TDX_CLAIMS = verify_tdx(
    TdxEvidence(quote=_TDX), trust=simulated_intel_trust(), collateral=simulated_intel_collateral(),
    policy=TdxPolicy(), expected=CpuExpected.unchecked(), now=NOW,
).claims  # fmt: skip
_RIM = FORGE.rim(Architecture.HOPPER, driver=True)


def run(
    seconds: float, *, seed: int = 0, corpus: Sequence[Seed], rounds: int | None = None
) -> tuple[int, list[Finding]]:
    """Mutate and check until the time or the number of rounds is over. Returns how many inputs, and what was found."""
    rng = random.Random(seed)
    found: list[Finding] = []
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end and (rounds is None or done < rounds):
        base = rng.choice(corpus)
        target, source = rng.choice(
            (
                (check_report, base.evidence.report),
                (check_chain, base.evidence.chain),
                (check_rim, _RIM),
                (check_text, base.evidence.report.hex().encode()),
                (check_text, base.evidence.chain),
                (check_snp, _SNP),
                (check_tdx, _TDX),
            )
        )
        data = mutate(source, rng)
        started = time.monotonic()
        try:
            target(base, data)
        except Exception as exc:  # noqa: BLE001 - every escape is a finding
            found.append(Finding(f"{target.__name__}: {exc!r}", data))
        if time.monotonic() - started > SLOWEST_S:
            found.append(Finding(f"{target.__name__}: slow", data))
        done += 1
    return done, found


def main(argv: Sequence[str]) -> int:
    """Run for argv[1] seconds; print what was found. Exit code 1 when something was."""
    from tests.conftest import VECTORS

    vectors = VECTORS if (VECTORS / "MANIFEST.json").is_file() else None
    done, found = run(float(argv[1]) if len(argv) > 1 else 60.0, seed=time.time_ns(), corpus=seeds(vectors))
    print(f"{done} inputs, {len(found)} findings")
    for finding in found[:10]:
        print(finding.what, finding.data[:200].hex())
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
