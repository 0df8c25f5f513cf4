"""A forged platform for one live session: simulated AMD chip, simulated GPUs, one TEE key, one nonce."""

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from attestation.crypto import binding
from attestation.formats.initdata import parse_init_data
from attestation.simulate.amd import ReportFields, SimulatedChip, simulated_amd_collateral, simulated_amd_trust
from attestation.simulate.intel import QuoteForm, simulated_intel_collateral, simulated_intel_trust
from attestation.simulate.nvidia import ForgedEvidence, NvidiaForge
from attestation.values import Architecture, BindingProfile, DeviceKind, GpuMode, Nonce, Tee
from attestation.verify.nv_policy import NvPolicy
from attestation.verify.platform import (
    Expected,
    PlatformCollateral,
    PlatformEvidence,
    PlatformPolicy,
    PlatformTrust,
    verify_platform,
)
from attestation.verify.revocation import (
    ChainKind,
    NoRevocation,
    RevocationPolicy,
    RevocationRule,
    RevocationStatus,
)
from attestation.verify.verified import BoundPlatform

NOW = datetime(2026, 11, 21, tzinfo=UTC)
NONCE = b64encode(bytes(range(32))).decode()
OTHER_NONCE = b64encode(bytes(range(1, 33))).decode()
JWK = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ECDH-ES+A256KW",
    "x": "G8fAud93NgCg8C_0bY1YqVZ5zNlkb-cNsGTQia7m0is",
    "y": "RK1gonvUKKQOCSHDwz3SiN9EijCqmXS4sDeRbc8RnL0",
}
OTHER_JWK = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ECDH-ES+A256KW",
    "x": "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
    "y": "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU",
}
INIT_DATA = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = """\n[token_configs]\n"""\n'
FORGE = NvidiaForge()


@lru_cache(maxsize=64)
def _gpu(index: int, nonce: bytes, arch: Architecture, mode: GpuMode) -> ForgedEvidence:
    return FORGE.device(arch, index, nonce=nonce, mode=mode)


@lru_cache(maxsize=1)
def _shelf() -> Any:
    return FORGE.shelf()


@dataclass(frozen=True, kw_only=True)
class Guest:
    """A guest that attests honestly; tests replace one thing in what it does or in what it sends."""

    chip: SimulatedChip = field(default_factory=SimulatedChip)
    gpus: int = 1
    arch: Architecture = Architecture.HOPPER
    mode: GpuMode = GpuMode.ON
    nonce: str = NONCE
    jwk: dict[str, str] = field(default_factory=lambda: dict(JWK))
    init_data: str | None = None
    profile: BindingProfile = BindingProfile.TRUSTEE_RCAR
    tee: Tee = Tee.SNP

    def device_nonce(self) -> Nonce:
        if self.profile is BindingProfile.CGPU_V1:
            return binding.cgpu_device_nonce(self.nonce, binding.tee_spki(self.jwk))
        return binding.trustee_device_nonce(self.nonce, self.jwk)

    def devices(self) -> list[ForgedEvidence]:
        return [_gpu(i, self.device_nonce().raw, self.arch, self.mode) for i in range(self.gpus)]

    def report_data(self, devices: Sequence[ForgedEvidence], additional: str) -> bytes:
        if self.profile is BindingProfile.CGPU_V1:
            raw = [
                binding.DeviceBytes(
                    kind=DeviceKind.NVSWITCH if d.arch is Architecture.LS10 else DeviceKind.GPU,
                    report=d.report,
                    chain=d.chain,
                )
                for d in devices
            ]
            init = None if self.init_data is None else self.init_data.encode()
            return binding.cgpu_report_data(self.nonce, binding.tee_spki(self.jwk), raw, init)
        return binding.trustee_report_data(self.nonce, self.jwk, additional)

    def fields(self, devices: Sequence[ForgedEvidence], additional: str) -> ReportFields:
        host_data = bytes(32) if self.init_data is None else parse_init_data(self.init_data).field_value(32)
        return self.chip.fields().with_(report_data=self.report_data(devices, additional), host_data=host_data)

    def evidence(self, devices: Sequence[ForgedEvidence] | None = None, **changes: object) -> PlatformEvidence:
        """Honest evidence; `changes` are made to the CPU report before it is signed."""
        devices = self.devices() if devices is None else devices
        additional = render_additional(devices)
        return PlatformEvidence(
            tee=self.tee,
            primary=json.loads(self.primary(devices, additional, changes)),
            additional=additional,
            nonce=self.nonce,
            tee_jwk=self.jwk,
            init_data=self.init_data,
            profile=self.profile,
        )

    def primary(self, devices: Sequence[ForgedEvidence], additional: str, changes: dict[str, Any]) -> str:
        if self.tee is Tee.TDX:
            init = bytes(48) if self.init_data is None else parse_init_data(self.init_data).field_value(48)
            quote = QuoteForm(report_data=self.report_data(devices, additional), mr_config_id=init)
            return quote.with_(**changes).evidence_json()
        return self.chip.evidence_json(self.fields(devices, additional).with_(**changes))

    def with_(self, **changes: Any) -> "Guest":
        return replace(self, **changes)


def render_additional(devices: Sequence[ForgedEvidence]) -> str:
    if not devices:
        return ""
    listed = [
        {
            "arch": device.arch.upper(),
            "uuid": "unknown",
            "evidence": b64encode(device.report).decode(),
            "certificate": b64encode(device.chain).decode(),
        }
        for device in devices
    ]
    return json.dumps({"nvidia": {"device_evidence_list": listed}}, separators=(",", ":"))


def trust() -> PlatformTrust:
    return PlatformTrust(amd=simulated_amd_trust(), intel=simulated_intel_trust(), nvidia=FORGE.trust)


def collateral() -> PlatformCollateral:
    return PlatformCollateral(
        amd=simulated_amd_collateral(), intel=simulated_intel_collateral(), rims=_shelf(), revocation=NoRevocation()
    )


def policy() -> PlatformPolicy:
    """Nobody runs a responder for simulated signers of reference documents."""
    accept = frozenset({RevocationStatus.GOOD, RevocationStatus.UNKNOWN})
    rule = RevocationRule(kind=ChainKind.RIM, accept=accept)
    return PlatformPolicy(nvidia=NvPolicy(revocation=RevocationPolicy(rim=rule)))


def verify(
    evidence: PlatformEvidence,
    *,
    roots: PlatformTrust | None = None,
    rules: PlatformPolicy | None = None,
    now: datetime = NOW,
    **session: Any,
) -> BoundPlatform:
    """Against the session of NONCE; `session` changes what the server expects."""
    known = {"tee": evidence.tee, "nonce": NONCE, "profile": evidence.profile}
    return verify_platform(
        evidence,
        session=Expected(**{**known, **session}),
        trust=roots or trust(),
        collateral=collateral(),
        policy=rules or policy(),
        now=now,
    )
