"""Claims about one device, under NVIDIA's v3 names where NVIDIA has one (gpu-attestation.md 4.3).

`secboot` and `dbgstat` are left out on purpose: no report states them, NVIDIA's verifiers emit them as constants when
measurements match. Whoever needs NVIDIA's shape adds them from `measres`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from attestation.formats.nv_report import GpuFacts, SwitchFacts
from attestation.formats.spdm import SpdmReport
from attestation.values import JsonObject, JsonValue, Level
from attestation.verify.chain import VerifiedPath
from attestation.verify.compare import Comparison, shared_indices
from attestation.verify.identity import DeviceCertificate, FwidMatch
from attestation.verify.revocation import Revocation, RevocationStatus
from attestation.verify.rim import RimNeed, Slot

SWITCH_LOCKED = "cgpu-switch-locked"
_GPU, _SWITCH = "x-nvidia-gpu", "x-nvidia-switch"
_RIM_FLAGS = ("fetched", "signature-verified", "version-match", "measurements-available")
_SEVERITY = {status: position for position, status in enumerate(("good", "unknown", "stale", "revoked"))}
_FWID = {FwidMatch.MATCH: True, FwidMatch.MISMATCH: False, FwidMatch.ABSENT: None}


def content_claims(certificate: DeviceCertificate, facts: GpuFacts | SwitchFacts, fwid: FwidMatch) -> JsonObject:
    """Claims of a device whose chain, identity and signature hold, whatever the document, nonce or clock."""
    is_switch = isinstance(facts, SwitchFacts)
    prefix = _SWITCH if is_switch else _GPU
    claims: dict[str, JsonValue] = {
        "x-nvidia-device-type": "nvswitch" if is_switch else "gpu",
        "hwmodel": certificate.hardware_model,
        "ueid": str(certificate.identity.leaf_serial),
        f"{prefix}-arch-check": True,
        f"{prefix}-attestation-report-parsed": True,
        f"{prefix}-attestation-report-signature-verified": True,
        f"{prefix}-attestation-report-cert-chain-fwid-match": _FWID[fwid],
        "cgpu-chip-id": certificate.identity.chip_id,
        "cgpu-fwid": str(fwid),
        "cgpu-unknown-opaque": {str(kind): value.hex() for kind, value in facts.unknown.items()},
    }
    if isinstance(facts, SwitchFacts):
        return claims | {
            "x-nvidia-switch-bios-version": facts.bios,
            "x-nvidia-switch-pdi": facts.pdi.hex(),
            "x-nvidia-switch-gpu-pdis": [pdi.hex() for pdi in facts.gpu_pdis],
            SWITCH_LOCKED: facts.locked,
        }
    return claims | {
        "x-nvidia-gpu-driver-version": facts.driver,
        "x-nvidia-gpu-vbios-version": facts.vbios,
        "x-nvidia-gpu-switch-pdis": sorted({pdi.hex() for pdi in facts.linked_switches}) or None,
    }


def device_claims(
    content: JsonObject,
    report: SpdmReport,
    *,
    is_switch: bool,
    path: VerifiedPath,
    revocations: Sequence[Revocation],
    comparisons: Sequence[Comparison],
    signers: Mapping[Slot, Sequence[Revocation]],
    needs: Sequence[RimNeed],
    nonce_given: bool,
    level: Level,
) -> JsonObject:
    """All claims of one report: those of its content, and the rest. A check that never ran is null."""
    prefix = _SWITCH if is_switch else _GPU
    by_slot = {c.need.slot: c for c in comparisons}
    complete = len(comparisons) == len(needs)
    claims: dict[str, JsonValue] = {
        **content,
        "measres": ("success" if all(c.matches for c in comparisons) else "fail") if complete else None,
        "oemid": comparisons[0].rim.content.manufacturer_id if comparisons else None,
        "eat_nonce": report.nonce.hex(),
        f"{prefix}-attestation-report-nonce-match": True if nonce_given else None,
        f"{prefix}-attestation-report-cert-chain": _chain_claims(path, revocations),
        "x-nvidia-mismatch-measurement-records": _mismatches(comparisons) or None,
        "cgpu-level": str(level),
        "cgpu-trailing-zeros": report.trailing_zeros,
    }
    for need in needs:
        comparison = by_slot.get(need.slot)
        found = True if comparison else None
        names = _rim_claims(prefix, need.slot)
        claims |= dict.fromkeys(names.flags, found)
        claims[names.chain] = _chain_claims(comparison.rim.path, signers[need.slot]) if comparison else None
        claims[names.rim_id] = need.rim_id
        claims[names.sha256] = comparison.rim.sha256 if comparison else None
    if not is_switch:
        distinct = complete and not shared_indices(comparisons)
        claims["x-nvidia-gpu-vbios-index-no-conflict"] = True if distinct else None
    return claims


class _RimClaims(NamedTuple):
    flags: tuple[str, ...]
    chain: str
    rim_id: str
    sha256: str


@lru_cache(maxsize=len(Slot))
def _rim_claims(prefix: str, slot: Slot) -> _RimClaims:
    """Names of the claims about one reference document."""
    name = f"{prefix}-{slot}-rim"
    return _RimClaims(
        flags=tuple(f"{name}-{flag}" for flag in _RIM_FLAGS),
        chain=f"{name}-cert-chain",
        rim_id=f"cgpu-{slot}-rim-id",
        sha256=f"cgpu-{slot}-rim-sha256",
    )


def _mismatches(comparisons: Sequence[Comparison]) -> list[JsonValue]:
    return [
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


def _chain_claims(path: VerifiedPath, revocations: Sequence[Revocation]) -> JsonObject:
    """One object for the whole chain: its earliest end, and the worst that stored revocation statements say."""
    worst = max(revocations, key=lambda r: _SEVERITY[r.status], default=None)
    revoked = worst is not None and worst.status is RevocationStatus.REVOKED
    return {
        "x-nvidia-cert-expiration-date": path.not_after.isoformat(),
        "x-nvidia-cert-status": "revoked" if revoked else "valid",
        "x-nvidia-cert-ocsp-status": str(worst.status) if worst is not None else "good",
        "x-nvidia-cert-revocation-reason": worst.reason if revoked and worst is not None else None,
    }
