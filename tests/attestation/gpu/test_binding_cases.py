"""Cases gpu-050 to gpu-060: freshness and identity (gpu-attestation.md 8.6)."""

from dataclasses import replace
from pathlib import Path

import pytest

from attestation.errors import Malformed
from attestation.formats.nv_evidence import NvEvidence
from attestation.formats.spdm import parse_report
from attestation.values import GpuMode, Level, Nonce
from attestation.verify.nv_set import Expected, verify_set
from tests.attestation.gpu.support import (
    BLACKWELL,
    FORGE,
    FORGED,
    GENUINE,
    HOPPER,
    LS10,
    NONCE,
    find,
    genuine,
    refused,
    verify,
)


def evidence(index: int = 0, *, nonce: bytes = NONCE, mode: GpuMode = GpuMode.ON) -> NvEvidence:
    forged = FORGE.device(index=index, nonce=nonce, mode=mode)
    return NvEvidence(report=forged.report, chain=forged.chain)


@pytest.mark.parametrize("bit", [pytest.param(0, id="gpu-050-first-bit"), pytest.param(255, id="gpu-050-last-bit")])
def test_nonce_off_by_one_bit(bit: int) -> None:
    other = (int.from_bytes(NONCE, "big") ^ 1 << bit).to_bytes(32, "big")
    refused("nonce-mismatch", lambda: verify(evidence(), nonce=other))


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        pytest.param(bytes(31), "nonce-length", id="gpu-051-31-bytes"),
        pytest.param(bytes(33), "nonce-length", id="gpu-051-33-bytes"),
        pytest.param(bytes(32), "nonce-zero", id="gpu-052-zero"),
    ],
)
def test_unusable_nonce(raw: bytes, code: str) -> None:
    refused(code, lambda: Nonce(raw))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-053-responder-position")])
def test_nonce_in_responder_position(_case: None) -> None:
    """The right nonce where the device's own random number is, and only there."""
    other = bytes(31) + b"\x07"
    forged = FORGE.device(nonce=other, mutate=lambda signed: signed[:3565] + NONCE + signed[3597:])
    assert parse_report(forged.report).responder_nonce == NONCE
    refused("nonce-mismatch", lambda: verify(forged))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-054-same-report-twice")])
def test_same_report_twice(_case: None) -> None:
    result = verify_set([evidence(), evidence()], expected=Expected(gpus=2), nonce=Nonce(NONCE), collateral=FORGED)
    assert result.level is Level.NONE
    assert find(result.findings, "device-duplicate").check == "distinct-devices"


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-055-same-leaf-two-nonces")])
def test_same_leaf_with_two_nonces(_case: None) -> None:
    pair = [evidence(), evidence(nonce=NONCE[::-1])]
    result = verify_set(pair, expected=Expected(gpus=2), nonce=None, collateral=FORGED)
    assert result.level is Level.NONE
    assert find(result.findings, "device-duplicate").got.startswith("chip id")
    assert find(result.findings, "nonce-differs").check == "one-nonce"


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-056-report-of-a-chain-of-b")])
def test_report_and_chain_of_two_devices(_case: None) -> None:
    refused("report-signature", lambda: verify(replace(evidence(), chain=evidence(1).chain)))


@pytest.mark.parametrize(
    ("report", "chain", "code"),
    [
        pytest.param(
            "gpu/hopperAttestationReportInvalidSignature.txt", "gpu/hopperCertChain.txt", "fwid-mismatch",
            id="gpu-056-recorded-gpu",
        ),
        pytest.param(
            "switch/switchAttestationReportInvalidSignature.txt", "switch/switchCertChain.txt", "report-signature",
            id="gpu-056-recorded-switch",
        ),
        pytest.param(
            "hopperAttestationReport.txt", "gpu/hopperCertChain.txt", "fwid-mismatch", id="gpu-056-recorded-pair"
        ),
    ],
)  # fmt: skip
def test_recorded_mixtures(vectors: Path, report: str, chain: str, code: str) -> None:
    mixed = genuine(vectors / "nvidia" / report, vectors / "nvidia" / chain)
    refused(code, lambda: verify(mixed, GENUINE, nonce=None))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-057-seven-of-eight")])
def test_seven_of_eight(_case: None) -> None:
    """One outcome per expected device: the missing one is an outcome, too."""
    seven = [evidence(i) for i in range(7)]
    result = verify_set(seven, expected=Expected(gpus=8), nonce=Nonce(NONCE), collateral=FORGED)
    assert result.level is Level.NONE
    assert find(result.findings, "device-count").got == "gpus=7,switches=0"
    assert [o.level for o in result.outcomes] == [Level.TRUSTED] * 7 + [Level.NONE]


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-058-empty")])
def test_empty(_case: None) -> None:
    with pytest.raises(Malformed, match="number of devices"):
        verify_set([], expected=Expected(gpus=8), nonce=Nonce(NONCE), collateral=FORGED)
    refused("expected-devices", lambda: Expected(gpus=0))


@pytest.mark.parametrize(
    ("claimed", "code"),
    [
        pytest.param(BLACKWELL, "arch-mismatch", id="gpu-059-blackwell-with-gh100-chain"),
        pytest.param(LS10, "arch-mismatch", id="gpu-060-ls10-with-gpu-report"),
    ],
)
def test_envelope_architecture(claimed: object, code: str) -> None:
    assert verify(evidence(), arch=HOPPER).level is Level.TRUSTED
    refused(code, lambda: verify(evidence(), arch=claimed))  # type: ignore[arg-type]


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-060-switch-signs-gpu-report")])
def test_switch_signs_a_gpu_report(_case: None) -> None:
    """A switch's key over a GPU-shaped report."""
    switch = FORGE.device(LS10, nonce=NONCE)
    refused("block-count", lambda: verify(switch.resign(FORGE.device(nonce=NONCE).signed), arch=LS10))


def test_without_a_nonce_authentic_at_most() -> None:
    device = verify(evidence(), nonce=None)
    assert device.level is Level.AUTHENTIC
    assert find(device.findings, "nonce-not-given").got == NONCE.hex()
    assert (device.mode, device.nonce.raw) == (GpuMode.UNKNOWN, NONCE)
    claim = "x-nvidia-gpu-attestation-report-nonce-match"
    assert (device.claims[claim], verify(evidence()).claims[claim]) == (None, True)
