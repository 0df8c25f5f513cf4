"""Evidence of this VM, bound to one nonce and one TEE key: devices first, then the CPU report over all of them."""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from attestation.crypto import binding
from attestation.crypto.binding import DeviceBytes
from attestation.errors import Untrusted
from attestation.values import Architecture, BindingProfile, DeviceKind, JsonObject, Nonce, Tee

_ARCH_NAMES = {
    Architecture.HOPPER: "HOPPER",
    Architecture.BLACKWELL: "BLACKWELL",
    Architecture.LS10: "LS10",
}  # as the stock attester writes them (keybroker.md 1.10)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceEvidence:
    """What one device answered. `uuid` is what the driver says, unsigned; `chain` is PEM, leaf first."""

    arch: Architecture
    uuid: str
    report: bytes
    chain: bytes

    @property
    def kind(self) -> DeviceKind:
        """GPU or NVSwitch."""
        return DeviceKind.NVSWITCH if self.arch is Architecture.LS10 else DeviceKind.GPU


class CpuSource(Protocol):
    """The CPU TEE."""

    @property
    def tee(self) -> Tee:
        """Which one."""

    def quote(self, report_data: bytes) -> JsonObject:
        """`primary_evidence` of the KBS protocol over these bytes."""


class DeviceSource(Protocol):
    """GPUs or NVSwitches."""

    def collect(self, nonce: Nonce) -> Sequence[DeviceEvidence]:
        """Evidence of every device there is. One that fails is an error: nothing is ever left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceProvider:
    """All sources of this VM. `expected_devices` None means that nobody said; the broker's policy still counts."""

    cpu: CpuSource
    devices: tuple[DeviceSource, ...] = ()
    init_data: str | None = None
    expected_devices: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What evidence answers. `nonce` is base64 text, hashed as it came."""

    nonce: str
    profile: BindingProfile
    hash_name: str
    tee_key: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that goes into `POST /kbs/v0/attest`; `additional` is the exact string that was hashed."""

    primary: JsonObject
    additional: str
    devices: tuple[DeviceEvidence, ...]
    init_data: str | None


def collect(provider: EvidenceProvider, challenge: Challenge) -> Evidence:
    """Ask every device, then the CPU. Untrusted when a device is missing, twice there, or answers another nonce."""
    devices: list[DeviceEvidence] = []
    if provider.devices:
        nonce = device_nonce(challenge)
        for source in provider.devices:
            devices += source.collect(nonce)
        for device in devices:
            if not nonce.matches(
                device.report[4 : 4 + len(nonce.raw)]
            ):  # SPDM GET_MEASUREMENTS (gpu-attestation.md 1.1)
                raise Untrusted("device-nonce", "device answered another nonce", where=device.uuid)
    require_count(devices, provider.expected_devices)
    if len({d.report for d in devices}) != len(devices):
        raise Untrusted("device-duplicate", "two devices gave the same report", where="devices", got=len(devices))
    additional = render_additional(devices)
    return Evidence(
        primary=provider.cpu.quote(report_data(challenge, provider, devices, additional)),
        additional=additional,
        devices=tuple(devices),
        init_data=provider.init_data,
    )


def device_nonce(challenge: Challenge) -> Nonce:
    """The SPDM nonce that the binding profile asks of every device."""
    if challenge.profile is BindingProfile.CGPU_V1:
        return binding.cgpu_device_nonce(challenge.nonce, binding.tee_spki(challenge.tee_key))
    return binding.trustee_device_nonce(challenge.nonce, challenge.tee_key, challenge.hash_name)


def report_data(
    challenge: Challenge, provider: EvidenceProvider, devices: Sequence[DeviceEvidence], additional: str
) -> bytes:
    """The bytes that the CPU report must carry. The sample TEE carries the digest as it is, real ones padded."""
    if challenge.profile is BindingProfile.CGPU_V1:
        init_data = provider.init_data.encode() if provider.init_data is not None else None
        raw = [DeviceBytes(kind=d.kind, report=d.report, chain=d.chain) for d in devices]
        return binding.cgpu_report_data(challenge.nonce, binding.tee_spki(challenge.tee_key), raw, init_data)
    bind = binding.trustee_primary_digest if provider.cpu.tee is Tee.SAMPLE else binding.trustee_report_data
    return bind(challenge.nonce, challenge.tee_key, additional, challenge.hash_name)


def require_count(devices: Sequence[DeviceEvidence], expected: int | None) -> None:
    """Untrusted unless exactly the expected number of devices answered."""
    if expected is not None and len(devices) != expected:
        raise Untrusted("device-count", "wrong number of devices", where="devices", expected=expected, got=len(devices))


def render_additional(devices: Sequence[DeviceEvidence]) -> str:
    """`additional_evidence`: JSON in a string, empty when there is no device (keybroker.md 1.10)."""
    if not devices:
        return ""
    rows = [
        {
            "arch": _ARCH_NAMES[d.arch],
            "uuid": d.uuid,
            "evidence": b64encode(d.report).decode("ascii"),
            "certificate": b64encode(d.chain).decode("ascii"),
        }
        for d in devices
    ]
    return json.dumps({"nvidia": {"device_evidence_list": rows}}, separators=(",", ":"))
