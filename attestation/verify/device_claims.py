"""Claims about one device, under NVIDIA's v3 names where NVIDIA has one (gpu-attestation.md 4.3).

`secboot` and `dbgstat` are left out on purpose: no report states them, NVIDIA's verifiers emit them as constants when
measurements match. Whoever needs NVIDIA's shape adds them from `measres`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

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
_NONCE_MATCH, _DEVICE_CHAIN = (  # of a GPU, of a switch
    [f"{prefix}-attestation-report-{claim}" for prefix in (_GPU, _SWITCH)] for claim in ("nonce-match", "cert-chain")
)
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


def document_claims(needs: Sequence[RimNeed], comparisons: Sequence[Comparison], *, is_switch: bool) -> JsonObject:
    """Claims that follow from what a device measures and from its reference documents, whoever signed those."""
    prefix = _SWITCH if is_switch else _GPU
    complete = len(comparisons) == len(needs)
    by_slot = {c.need.slot: c for c in comparisons}
    claims: dict[str, JsonValue] = {
        "measres": ("success" if all(c.matches for c in comparisons) else "fail") if complete else None,
        "oemid": comparisons[0].rim.content.manufacturer_id if comparisons else None,
        "x-nvidia-mismatch-measurement-records": _mismatches(comparisons) or None,
    }
    for need in needs:
        comparison = by_slot.get(need.slot)
        claims |= {f"{prefix}-{need.slot}-rim-{flag}": True if comparison else None for flag in _RIM_FLAGS}
        claims[_signer_claim(is_switch, need.slot)] = None
        claims[f"cgpu-{need.slot}-rim-id"] = need.rim_id
        claims[f"cgpu-{need.slot}-rim-sha256"] = comparison.rim.sha256 if comparison else None
    if not is_switch:
        distinct = complete and not shared_indices(comparisons)
        claims["x-nvidia-gpu-vbios-index-no-conflict"] = True if distinct else None
    return claims


def report_claims(
    report: SpdmReport,
    *,
    is_switch: bool,
    path: VerifiedPath,
    revocations: Sequence[Revocation],
    signers: Mapping[Slot, JsonObject],
    nonce_given: bool,
    level: Level,
) -> JsonObject:
    """The other claims: of this report, at this time. A check that never ran is null.

    `signers` are the `chain_claims` of the documents.
    """
    claims: dict[str, JsonValue] = {
        "eat_nonce": report.nonce.hex(),
        _NONCE_MATCH[is_switch]: True if nonce_given else None,
        _DEVICE_CHAIN[is_switch]: chain_claims(path, revocations),
        "cgpu-level": level.value,
        "cgpu-trailing-zeros": report.trailing_zeros,
    }
    for slot, chain in signers.items():
        claims[_signer_claim(is_switch, slot)] = chain
    return claims


@lru_cache(maxsize=2 * len(Slot))
def _signer_claim(is_switch: bool, slot: Slot) -> str:
    return f"{_SWITCH if is_switch else _GPU}-{slot}-rim-cert-chain"


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


def chain_claims(path: VerifiedPath, revocations: Sequence[Revocation]) -> JsonObject:
    """One object for the whole chain: its earliest end, and the worst that stored revocation statements say."""
    worst = max(revocations, key=lambda r: _SEVERITY[r.status], default=None)
    revoked = worst is not None and worst.status is RevocationStatus.REVOKED
    return {
        "x-nvidia-cert-expiration-date": path.not_after.isoformat(),
        "x-nvidia-cert-status": "revoked" if revoked else "valid",
        "x-nvidia-cert-ocsp-status": str(worst.status) if worst is not None else "good",
        "x-nvidia-cert-revocation-reason": worst.reason if revoked and worst is not None else None,
    }
