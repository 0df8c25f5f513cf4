"""Claims about one device, under NVIDIA's v3 names where NVIDIA has one (gpu-attestation.md 4.3).

`secboot` and `dbgstat` are left out on purpose: no report states them, NVIDIA's verifiers emit them as constants when
measurements match. Whoever needs NVIDIA's shape adds them from `measres`.
"""

from collections.abc import Mapping, Sequence

from attestation.formats.nv_report import GpuFacts, SwitchFacts
from attestation.formats.spdm import SpdmReport
from attestation.values import JsonObject, JsonValue, Level
from attestation.verify.chain import VerifiedPath
from attestation.verify.compare import Comparison, shared_indices
from attestation.verify.identity import DeviceCertificate, FwidMatch
from attestation.verify.revocation import Revocation, RevocationStatus
from attestation.verify.rim import RimNeed, Slot

SWITCH_LOCKED = "cgpu-switch-locked"
_FWID = {FwidMatch.MATCH: True, FwidMatch.MISMATCH: False, FwidMatch.ABSENT: None}


def device_claims(
    certificate: DeviceCertificate,
    facts: GpuFacts | SwitchFacts,
    report: SpdmReport,
    *,
    path: VerifiedPath,
    revocations: Sequence[Revocation],
    fwid: FwidMatch,
    comparisons: Sequence[Comparison],
    signers: Mapping[Slot, Sequence[Revocation]],
    needs: Sequence[RimNeed],
    nonce_given: bool,
    level: Level,
) -> JsonObject:
    """Claims of a device whose chain, identity and signature were verified. A check that never ran is null."""
    is_switch = isinstance(facts, SwitchFacts)
    prefix = "x-nvidia-switch" if is_switch else "x-nvidia-gpu"
    by_slot = {c.need.slot: c for c in comparisons}
    complete = len(comparisons) == len(needs)
    claims: dict[str, JsonValue] = {
        "measres": ("success" if all(c.matches for c in comparisons) else "fail") if complete else None,
        "x-nvidia-device-type": "nvswitch" if is_switch else "gpu",
        "hwmodel": certificate.hardware_model,
        "ueid": str(certificate.identity.leaf_serial),
        "oemid": next((c.rim.content.manufacturer_id for c in comparisons), None),
        "eat_nonce": report.nonce.hex(),
        f"{prefix}-arch-check": True,
        f"{prefix}-attestation-report-parsed": True,
        f"{prefix}-attestation-report-nonce-match": True if nonce_given else None,
        f"{prefix}-attestation-report-signature-verified": True,
        f"{prefix}-attestation-report-cert-chain": _chain_claims(path, revocations),
        f"{prefix}-attestation-report-cert-chain-fwid-match": _FWID[fwid],
        "x-nvidia-mismatch-measurement-records": [
            {
                "index": m.index,
                "goldenSize": len(m.alternatives[0]),
                "goldenValue": m.alternatives[0].hex(),
                "runtimeSize": len(m.got) if m.got is not None else 0,
                "runtimeValue": m.got.hex() if m.got is not None else "NA",
                "measurementSource": "Driver" if c.need.slot == "driver" else "Firmware",
            }
            for c in comparisons
            for m in c.mismatches
        ]
        or None,
        "cgpu-level": str(level),
        "cgpu-chip-id": certificate.identity.chip_id,
        "cgpu-fwid": str(fwid),
        "cgpu-trailing-zeros": report.trailing_zeros,
        "cgpu-unknown-opaque": {str(kind): value.hex() for kind, value in facts.unknown.items()},
    }
    for need in needs:
        comparison = by_slot.get(need.slot)
        found = True if comparison else None
        name = f"{prefix}-{need.slot}-rim"
        claims |= {
            f"{name}-fetched": found,
            f"{name}-signature-verified": found,
            f"{name}-version-match": found,
            f"{name}-measurements-available": found,
            f"{name}-cert-chain": _chain_claims(comparison.rim.path, signers[need.slot]) if comparison else None,
            f"cgpu-{need.slot}-rim-id": need.rim_id,
            f"cgpu-{need.slot}-rim-sha256": comparison.rim.sha256 if comparison else None,
        }
    if isinstance(facts, SwitchFacts):
        claims |= {
            "x-nvidia-switch-bios-version": facts.bios,
            "x-nvidia-switch-pdi": facts.pdi.hex(),
            "x-nvidia-switch-gpu-pdis": [pdi.hex() for pdi in facts.gpu_pdis],
            SWITCH_LOCKED: facts.locked,
        }
    else:
        claims |= {
            "x-nvidia-gpu-driver-version": facts.driver,
            "x-nvidia-gpu-vbios-version": facts.vbios,
            "x-nvidia-gpu-vbios-index-no-conflict": True if complete and _disjoint(comparisons) else None,
            "x-nvidia-gpu-switch-pdis": sorted({pdi.hex() for pdi in facts.linked_switches}) or None,
        }
    return claims


def _disjoint(comparisons: Sequence[Comparison]) -> bool:
    return not shared_indices(comparisons)


def _chain_claims(path: VerifiedPath, revocations: Sequence[Revocation]) -> JsonObject:
    """One object for the whole chain: its earliest end, and the worst that stored revocation statements say."""
    worst = next(
        (r for s in (RevocationStatus.REVOKED, RevocationStatus.STALE, RevocationStatus.UNKNOWN) for r in revocations
         if r.status is s),
        None,
    )  # fmt: skip
    revoked = worst is not None and worst.status is RevocationStatus.REVOKED
    return {
        "x-nvidia-cert-expiration-date": path.not_after.isoformat(),
        "x-nvidia-cert-status": "revoked" if revoked else "valid",
        "x-nvidia-cert-ocsp-status": str(worst.status) if worst is not None else "good",
        "x-nvidia-cert-revocation-reason": worst.reason if revoked and worst is not None else None,
    }
