"""Claims in NVIDIA's shape, versions 2.0 and 3.0, for clients and policies written for NRAS (gpu-attestation.md 4.3).

The device's own claims already have NVIDIA's names. Added here are the members that NVIDIA's services emit although
no report states them: `secboot` and `dbgstat` repeat `measres` (6.4), which is why nothing of ours ever reads them.
"""

from collections.abc import Mapping
from enum import StrEnum

from attestation.findings import Result
from attestation.values import DeviceKind, JsonObject, JsonValue, Level
from attestation.verify.verified import VerifiedDevice

_SLOTS = {DeviceKind.GPU: ("driver", "vbios"), DeviceKind.NVSWITCH: ("bios",)}


class ClaimsVersion(StrEnum):
    """The two versions that a request may ask for."""

    V2 = "2.0"
    V3 = "3.0"


def prefix_of(kind: DeviceKind) -> str:
    """Start of the names of per-device claims."""
    return "x-nvidia-switch" if kind is DeviceKind.NVSWITCH else "x-nvidia-gpu"


def nvidia_claims(
    device: VerifiedDevice, version: ClaimsVersion, rim_chains: Mapping[str, JsonObject] | None = None
) -> dict[str, JsonValue]:
    """Claims of one device. `rim_chains`: certificate chain claims of its reference documents by slot, where known."""
    claims = _version_3(device, rim_chains or {})
    return claims if version is ClaimsVersion.V3 else _version_2(device, claims)


def nras_shaped(kind: DeviceKind, device: JsonObject) -> dict[str, JsonValue]:
    """A device's claims with what NVIDIA's policies and upstream's default policies expect beside them."""
    prefix, success = prefix_of(kind), device.get("measres") == "success"
    claims: dict[str, JsonValue] = dict(device)
    for slot in _SLOTS[kind]:
        # Our parser admits one exact document shape, which is narrower than NVIDIA's schema (3.3).
        claims[f"{prefix}-{slot}-rim-schema-validated"] = claims.get(f"{prefix}-{slot}-rim-fetched")
    return claims | {"secboot": True if success else None, "dbgstat": "disabled" if success else None}


def _version_3(device: VerifiedDevice, rim_chains: Mapping[str, JsonObject]) -> dict[str, JsonValue]:
    claims = nras_shaped(device.kind, device.claims)
    for slot, chain in rim_chains.items():
        claims[f"{prefix_of(device.kind)}-{slot}-rim-cert-chain"] = chain
    warnings = [f.code for f in device.findings if f.result is Result.WARN]
    return claims | {
        "x-nvidia-attestation-warning": ", ".join(dict.fromkeys(warnings)) or None,
        "claims-version": str(ClaimsVersion.V3),
    }


def _version_2(device: VerifiedDevice, claims: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The older set: a check that did not run is false, chains are booleans, and there are no objects."""
    prefix = prefix_of(device.kind)
    chain = claims.get(f"{prefix}-attestation-report-cert-chain")
    out: dict[str, JsonValue] = {
        "measres": claims.get("measres") or "fail",
        "hwmodel": claims.get("hwmodel"),
        "ueid": claims.get("ueid"),
        "oemid": claims.get("oemid"),
        "eat_nonce": claims.get("eat_nonce"),
        f"{prefix}-attestation-report-cert-chain-validated": _is_valid(chain),
    }
    if claims.get("secboot") is True:
        out |= {"secboot": True, "dbgstat": "disabled"}
    checks = ["arch-check"] + [f"attestation-report-{n}" for n in ("parsed", "nonce-match", "signature-verified")]
    checks += ["vbios-index-no-conflict"] if device.kind is DeviceKind.GPU else []
    for slot in _SLOTS[device.kind]:
        checks += [f"{slot}-rim-{n}" for n in ("fetched", "schema-validated", "signature-verified")]
        checks.append(f"{slot}-rim-measurements-available")
        out[f"{prefix}-{slot}-rim-cert-validated"] = claims.get(f"{prefix}-{slot}-rim-fetched") is True
        out[f"{prefix}-{slot}-version"] = claims.get(f"{prefix}-{slot}-version")
    return out | {f"{prefix}-{name}": claims.get(f"{prefix}-{name}") is True for name in checks}


def _is_valid(chain: JsonValue) -> bool:
    return isinstance(chain, Mapping) and chain.get("x-nvidia-cert-status") == "valid"


def is_successful(device: VerifiedDevice) -> bool:
    """NVIDIA's overall result for one device: every measurement known good, fresh, and no check failed."""
    return device.level is Level.TRUSTED
