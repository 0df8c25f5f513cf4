"""Proof types. Only the verifiers of this package construct them; everything after verification takes them.

`VerifiedDevice` says that an NVIDIA device signed this report (level `authentic`) and that every measurement equals
a vendor reference value (level `trusted`). `VerifiedCpu` says that a genuine CPU TEE signed this report.
`BoundPlatform` says that all of them answer one nonce for one TEE key.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from attestation.findings import Finding
from attestation.values import Architecture, BindingProfile, DeviceKind, Digest, GpuMode, JsonObject, Level, Nonce, Tee


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class DeviceIdentity:
    """Who a device is, from its certificate and never from the envelope: chip id of the SAN and leaf serial number."""

    chip_id: str
    leaf_serial: int

    def __str__(self) -> str:
        return self.chip_id


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedDevice:
    """A GPU or NVSwitch whose report, chain and nonce were verified; at `trusted` also its measurements.

    `signed_digest` is SHA-384 over the signed bytes (never over the signature: ECDSA is malleable).
    `claims` use NVIDIA's v3 names where NVIDIA has one.
    """

    kind: DeviceKind
    arch: Architecture
    identity: DeviceIdentity
    level: Level
    mode: GpuMode
    nonce: Nonce
    driver_version: str  # empty for NVSwitches
    vbios_version: str  # BIOS version of an NVSwitch
    signed_digest: Digest
    claims: JsonObject
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDevice:
    """Upstream's sample device: what somebody said, over the right nonce. It proves nothing and is no `VerifiedDevice`,
    so that nothing which counts, lists or judges devices can meet it.
    """

    svn: str
    report_data: bytes
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedCpu:
    """A CPU TEE report whose signature, chain and mandatory rules were verified. Measurements are not yet judged.

    `chip_id` is the SNP CHIP_ID or the TDX platform instance id (hex); `init_data` the raw HOST_DATA or MRCONFIGID.
    `claims` use trustee's names (`snp` and `tdx` maps, tee.md 6.4).
    """

    tee: Tee
    product: str
    chip_id: str
    report_data: bytes  # 64 bytes; 48 for the sample TEE
    init_data: bytes
    measurement: str  # hex launch measurement (SNP MEASUREMENT, TDX MRTD)
    claims: JsonObject
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundPlatform:
    """One CPU TEE and its devices, all over one nonce and one TEE key, with distinct device identities.

    `binding` are the claims of tee.md 4.6; co-location of CPU and GPU is *not* proven and says so there.
    `init_data_claims` is the parsed init-data document when one was presented and equals the TEE's field.
    """

    cpu: VerifiedCpu
    devices: tuple[VerifiedDevice, ...]
    profile: BindingProfile
    nonce: str  # as issued, base64 text
    tee_key: Mapping[str, str]  # public JWK, known members only
    init_data_digest: Digest | None
    init_data_claims: JsonObject | None
    binding: JsonObject
    findings: tuple[Finding, ...]
    sample_device: SampleDevice | None = None  # only where the operator accepts what anybody can make

    @property
    def gpus(self) -> tuple[VerifiedDevice, ...]:
        """Devices that are GPUs, in deterministic order."""
        return tuple(d for d in self.devices if d.kind is DeviceKind.GPU)

    @property
    def switches(self) -> tuple[VerifiedDevice, ...]:
        """Devices that are NVSwitches, in deterministic order."""
        return tuple(d for d in self.devices if d.kind is DeviceKind.NVSWITCH)
