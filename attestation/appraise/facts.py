"""What was proven about a platform, as plain values that policies judge and the store keeps (keyed by token id).

Facts are taken from proof types only (`PlatformFacts.of`), or read back from our own record of an attestation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attestation.crypto.b64 import b64
from attestation.findings import Finding, Result, failed
from attestation.values import Architecture, DeviceKind, Digest, GpuMode, JsonObject, Level, Tee
from attestation.verify.compare import MEASUREMENT
from attestation.verify.verified import BoundPlatform, VerifiedDevice


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFacts:
    """The CPU TEE. `measurement` and `init_data` are lower-case hex; `claims` have trustee's names."""

    tee: Tee
    product: str
    chip_id: str
    measurement: str
    init_data: str
    claims: JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """One GPU or NVSwitch. `evidence` is the digest of what it signed.

    `reason` is the finding that keeps the device below `trusted`, as JSON; None for a trusted one.
    """

    kind: DeviceKind
    arch: Architecture
    chip_id: str
    leaf_serial: str  # hexadecimal: serial numbers exceed JSON integers
    level: Level
    mode: GpuMode
    driver_version: str
    vbios_version: str
    evidence: str
    claims: JsonObject
    reason: JsonObject | None = None

    def untrusted(self, check: str, submod: str) -> Finding:
        """Why this device is not `trusted`: the code and the values of the finding that says so, its place and hint."""
        said = {name: str(value) for name, value in (self.reason or {}).items()}
        got = f"{said['check']}: {said['got']}" if said else str(self.level)
        hint = "; ".join(text for text in (said.get("subject"), said.get("hint")) if text)
        code, expected = said.get("code") or "firmware-unknown", said.get("expected") or str(Level.TRUSTED)
        return failed(check, code, expected=expected, got=got, hint=hint, subject=submod)


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDeviceFacts:
    """Upstream's sample device, which anybody can make: a submodule that policies may look at, and no device."""

    svn: str
    report_data: str  # base64, as upstream's policies see it

    def to_json(self) -> dict[str, str]:
        """The stored record, and what the audit log says of it."""
        return {"svn": self.svn, "report_data": self.report_data}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFacts:
    """One bound platform. A sample device is beside its devices, never among them."""

    cpu: CpuFacts
    devices: tuple[DeviceFacts, ...]
    init_data_digest: Digest | None
    init_data_claims: JsonObject | None
    binding: JsonObject
    sample_device: SampleDeviceFacts | None = None

    @property
    def forgeable(self) -> bool:
        """Whether anybody could have made a part of the evidence, on whatever roots it was verified."""
        return self.cpu.tee is Tee.SAMPLE or self.sample_device is not None

    @classmethod
    def of(cls, platform: BoundPlatform) -> "PlatformFacts":
        """From proof."""
        cpu = platform.cpu
        return cls(
            cpu=CpuFacts(
                tee=cpu.tee,
                product=cpu.product,
                chip_id=cpu.chip_id,
                measurement=cpu.measurement,
                init_data=cpu.init_data.hex(),
                claims=cpu.claims,
            ),
            devices=tuple(
                DeviceFacts(
                    kind=device.kind,
                    arch=device.arch,
                    chip_id=device.identity.chip_id,
                    leaf_serial=f"{device.identity.leaf_serial:x}",
                    level=device.level,
                    mode=device.mode,
                    driver_version=device.driver_version,
                    vbios_version=device.vbios_version,
                    evidence=str(device.signed_digest),
                    claims=device.claims,
                    reason=_reason(device),
                )
                for device in platform.devices
            ),
            init_data_digest=platform.init_data_digest,
            init_data_claims=platform.init_data_claims,
            binding=platform.binding,
            sample_device=None
            if platform.sample_device is None
            else SampleDeviceFacts(svn=platform.sample_device.svn, report_data=b64(platform.sample_device.report_data)),
        )

    def of_kind(self, kind: DeviceKind) -> tuple[DeviceFacts, ...]:
        """Devices of one kind, in the order of the evidence."""
        return tuple(device for device in self.devices if device.kind is kind)

    def submods(self) -> tuple[tuple[str, "Submod"], ...]:
        """Deterministic names: `cpu0`, then `gpuN`, then `switchN`. Upstream's class of the sample device is `gpu`: it
        has the number after the last GPU's.
        """
        sample = () if self.sample_device is None else (self.sample_device,)
        gpus = ((f"gpu{i}", d) for i, d in enumerate((*self.of_kind(DeviceKind.GPU), *sample)))
        switches = ((f"switch{i}", d) for i, d in enumerate(self.of_kind(DeviceKind.NVSWITCH)))
        return (("cpu0", self.cpu), *gpus, *switches)

    def to_json(self) -> dict[str, Any]:
        """The stored record; `from_json` is its inverse."""
        return {
            "cpu": {name: getattr(self.cpu, name) for name in CpuFacts.__slots__},
            "devices": [{name: getattr(d, name) for name in DeviceFacts.__slots__} for d in self.devices],
            "init_data_digest": None if self.init_data_digest is None else str(self.init_data_digest),
            "init_data_claims": self.init_data_claims,
            "binding": self.binding,
        } | ({"sample_device": self.sample_device.to_json()} if self.sample_device else {})

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "PlatformFacts":
        """Inverse of `to_json`, for records that this broker wrote."""
        cpu, digest = record["cpu"], record["init_data_digest"]
        return cls(
            cpu=CpuFacts(**{**cpu, "tee": Tee(cpu["tee"])}),
            devices=tuple(
                DeviceFacts(
                    **{
                        **device,
                        "kind": DeviceKind(device["kind"]),
                        "arch": Architecture(device["arch"]),
                        "level": Level(device["level"]),
                        "mode": GpuMode(device["mode"]),
                    }
                )
                for device in record["devices"]
            ),
            init_data_digest=None if digest is None else Digest.parse(digest),
            init_data_claims=record["init_data_claims"],
            binding=record["binding"],
            sample_device=SampleDeviceFacts(**record["sample_device"]) if "sample_device" in record else None,
        )


Submod = CpuFacts | DeviceFacts | SampleDeviceFacts


def _reason(device: VerifiedDevice) -> JsonObject | None:
    """The most telling finding: a measurement that differs, else the first failure, else what nobody could judge."""
    if device.level is Level.TRUSTED:
        return None
    failures = [f for f in device.findings if f.result is Result.FAIL]
    measured = [f for f in failures if f.check.startswith(MEASUREMENT)]
    open_ = [f for f in device.findings if f.result is Result.SKIPPED and f.code]
    return next((f.to_json() for f in (*measured, *failures, *open_)), None)
