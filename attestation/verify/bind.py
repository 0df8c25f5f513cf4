"""One CPU TEE and its devices, over one nonce and one TEE key: the composition of verifiers (tee.md 4.5, 4.6).

The CPU comes first: what it measured decides whether any device may be believed, since the device is tied to the
guest only by the guest's own driver. The result says what that does not prove.
"""

import hmac
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from attestation.crypto import binding
from attestation.crypto.binding import DeviceBytes
from attestation.errors import Denied, Malformed, Untrusted, after_signature
from attestation.findings import Finding, Result, passed
from attestation.formats.initdata import InitData, parse_init_data
from attestation.formats.json_strict import parse_json, require_object
from attestation.formats.nv_evidence import Decoder, NvEvidence, decode_base64, read_evidence
from attestation.values import Architecture, BindingProfile, DeviceKind, JsonObject, Nonce, Tee
from attestation.verify.expected import CpuExpected
from attestation.verify.verified import BoundPlatform, SampleDevice, VerifiedCpu, VerifiedDevice

MAX_ADDITIONAL_BYTES = 2 * 1024 * 1024  # as the KBS request body; 12 devices take 137 kB
NVIDIA, SAMPLE_DEVICE = "nvidia", "sampledevice"
GUEST_ENTRY = "kata-gpu.toml"  # of init-data: what our guest checks by itself (docs/guest.md)
DEVICE_REVOCATION = "device-revocation"
NOT_PROVEN = (
    "no shipping GPU reports which machine or VM it is attached to: the link is the driver of the measured guest, "
    "and a relay to a genuine GPU elsewhere is not excluded"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformEvidence:
    """What a guest sent, verbatim where it is hashed. `primary` is the CPU evidence object, `additional` the string."""

    tee: Tee
    primary: JsonObject
    additional: str
    nonce: str
    tee_jwk: Mapping[str, str]
    init_data: str | None = None
    profile: BindingProfile = BindingProfile.TRUSTEE_RCAR


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the session fixed before any evidence came."""

    tee: Tee
    nonce: str
    profile: BindingProfile = BindingProfile.TRUSTEE_RCAR
    hash_name: str = binding.DEFAULT_HASH
    init_data_required: bool = False


# Verify CPU evidence of one kind; verify all devices of one platform together (proofs in the same order, and findings
# about the set). Both raise Malformed, Untrusted, Denied or Unavailable.
CpuVerifier = Callable[[Tee, JsonObject, CpuExpected], VerifiedCpu]
IdentityList = Callable[[str], bool]  # of a chip id
DeviceVerifier = Callable[[Sequence[NvEvidence], Nonce], tuple[Sequence[VerifiedDevice], Sequence[Finding]]]
SampleDeviceVerifier = Callable[[JsonObject, bytes], SampleDevice]  # of the evidence and the digest it answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Additional:
    """Evidence of devices, parsed: NVIDIA's, and the sample device, which anybody can make."""

    devices: tuple[NvEvidence, ...] = ()
    sample: JsonObject | None = None


def parse_additional(
    text: str, decode_chain: Decoder = decode_base64, *, unsafe_sample_device: bool = False
) -> Additional:
    """The additional-evidence string to devices: "" or `{}` is none. Raises Malformed, also for unknown kinds.

    The sample device is an unknown kind unless the operator accepts what anybody can make.
    """
    if not text:
        return Additional()
    document = require_object(
        parse_json(text, max_bytes=MAX_ADDITIONAL_BYTES, what="additional-evidence"), "additional-evidence"
    )
    unknown = sorted(set(document) - {NVIDIA} - ({SAMPLE_DEVICE} if unsafe_sample_device else set()))
    if unknown:
        raise Malformed(
            "device-kind-unknown", "unknown kind of device", where="additional-evidence", expected=NVIDIA, got=unknown
        )
    return Additional(
        devices=read_evidence(document[NVIDIA], decode_chain) if NVIDIA in document else (),
        sample=require_object(document[SAMPLE_DEVICE], SAMPLE_DEVICE) if SAMPLE_DEVICE in document else None,
    )


def bind_platform(
    evidence: PlatformEvidence,
    expected: Expected,
    *,
    cpu: CpuVerifier,
    devices: DeviceVerifier,
    sample_device: SampleDeviceVerifier | None = None,
    decode_chain: Decoder = decode_base64,
    about_collateral: Sequence[Finding] = (),
    identity_list: IdentityList | None = None,
) -> BoundPlatform:
    """Verify everything against the session. Raises the first error; a refused CPU is Denied before any device.

    `identity_list` says whether a device is on the operator's list; None where there is no list. Without
    `sample_device` such a device is of an unknown kind.
    """
    _require_session(evidence, expected)
    init_data = None if evidence.init_data is None else parse_init_data(evidence.init_data)
    additional = parse_additional(evidence.additional, decode_chain, unsafe_sample_device=sample_device is not None)
    listed = additional.devices
    _require_distinct_bytes(listed)
    nonce, report_data = _derive(evidence, expected, listed, init_data)
    wanted = CpuExpected(report_data=report_data, init_data=init_data, init_data_required=expected.init_data_required)
    verified_cpu = cpu(evidence.tee, evidence.primary, wanted)
    with after_signature():
        _require_accepted(verified_cpu)
        proofs, about_all = devices(listed, nonce)
        require_distinct(proofs)
        _require_usable(proofs, about_all)
        sample = _sample_device(additional.sample, evidence, expected, sample_device)
        init_data_claims = None if init_data is None else init_data.claims()
    ordered = tuple(sorted(proofs, key=_order))
    findings = [*verified_cpu.findings, *(f for device in ordered for f in device.findings), *about_all]
    findings += sample.findings if sample else ()
    return BoundPlatform(
        cpu=verified_cpu,
        devices=ordered,
        sample_device=sample,
        profile=expected.profile,
        nonce=expected.nonce,
        tee_key=dict(evidence.tee_jwk),
        init_data_digest=None if init_data is None else init_data.digest,
        init_data_claims=init_data_claims,
        binding=_claims(expected.profile, ordered, init_data_claims, identity_list),
        findings=(
            *findings,
            passed("binding", f"{len(ordered)} devices", expected=expected.profile),
            *about_collateral,
        ),
    )


def _require_session(evidence: PlatformEvidence, expected: Expected) -> None:
    """The evidence answers this challenge, by the profile that was agreed on: nothing can be downgraded later."""
    if not hmac.compare_digest(evidence.nonce.encode("utf-8", "surrogatepass"), expected.nonce.encode()):
        raise Untrusted("session-nonce", "the nonce is not this session's", where="runtime-data.nonce")
    if evidence.tee is not expected.tee:
        raise Untrusted(
            "session-tee", "another TEE than announced", where="tee", expected=expected.tee, got=evidence.tee
        )
    if evidence.profile is not expected.profile:
        raise Untrusted(
            "session-profile",
            "another binding profile than agreed",
            where="profile",
            expected=expected.profile,
            got=evidence.profile,
        )


def _require_distinct_bytes(devices: Sequence[NvEvidence]) -> None:
    """The cheap half of distinctness, before anything is verified."""
    if len({device.report for device in devices}) != len(devices):
        raise Untrusted("device-duplicate", "one report is listed twice", where="additional-evidence")


def require_distinct(devices: Sequence[VerifiedDevice]) -> None:
    """No chip, no certificate and no signed report may count twice. Raises Untrusted."""
    for name, values in (
        ("chip id", {(d.kind, d.identity.chip_id) for d in devices}),
        ("certificate", {d.identity.leaf_serial for d in devices}),
        ("report", {d.signed_digest for d in devices}),
    ):
        if len(values) != len(devices):
            raise Untrusted(
                "device-duplicate",
                f"one {name} is listed twice",
                where="devices",
                expected=f"{len(devices)} distinct devices",
                got=len(values),
            )


def _derive(
    evidence: PlatformEvidence, expected: Expected, devices: Sequence[NvEvidence], init_data: InitData | None
) -> tuple[Nonce, bytes]:
    """What devices and CPU must have answered, from the received bytes and nothing that the evidence claims."""
    jwk, text = evidence.tee_jwk, expected.nonce
    if expected.profile is BindingProfile.TRUSTEE_RCAR:
        return binding.trustee_binding(text, jwk, evidence.additional, expected.hash_name)
    spki = binding.tee_spki(jwk)
    raw = [DeviceBytes(kind=_kind(device), report=device.report, chain=device.chain) for device in devices]
    document = None if init_data is None else init_data.text.encode()
    return binding.cgpu_device_nonce(text, spki), binding.cgpu_report_data(text, spki, raw, document)


def _sample_device(
    document: JsonObject | None, evidence: PlatformEvidence, expected: Expected, verify: SampleDeviceVerifier | None
) -> SampleDevice | None:
    """It answers the digest of upstream's protocol; the native profile has no place for it and so would not bind it."""
    if document is None or verify is None:
        return None
    if expected.profile is not BindingProfile.TRUSTEE_RCAR:
        raise Malformed(
            "sample-device-profile", "a sample device, which this profile does not bind", where="additional-evidence",
            expected=BindingProfile.TRUSTEE_RCAR, got=expected.profile,
        )  # fmt: skip
    return verify(document, binding.trustee_device_digest(expected.nonce, evidence.tee_jwk, expected.hash_name))


def _kind(device: NvEvidence) -> DeviceKind:
    """The class octet of the native profile; the certificate has to confirm the architecture later."""
    if device.arch is None:
        raise Malformed("device-arch", "no architecture", where="additional-evidence.arch", expected="arch member")
    return DeviceKind.NVSWITCH if device.arch is Architecture.LS10 else DeviceKind.GPU


def _require_accepted(cpu: VerifiedCpu) -> None:
    """A genuine CPU that policy refuses carries nothing else: its devices are not even looked at."""
    for finding in cpu.findings:
        if finding.result is Result.FAIL:
            raise Denied(
                finding.code,
                "the CPU TEE is genuine and policy refuses it",
                where=f"{cpu.tee}.{finding.check}",
                expected=finding.expected,
                got=finding.got,
            )


def _require_usable(devices: Sequence[VerifiedDevice], about_all: Sequence[Finding]) -> None:
    """A revoked device, or devices that contradict each other, are false evidence that no key policy may excuse."""
    fatal = [f for device in devices for f in device.findings if f.check == DEVICE_REVOCATION]
    for finding in [*fatal, *about_all]:
        if finding.result is Result.FAIL:
            raise Untrusted(
                finding.code,
                finding.hint or "the devices cannot be believed",
                where=finding.subject or finding.check,
                expected=finding.expected,
                got=finding.got,
            )


def _order(device: VerifiedDevice) -> tuple[bool, str, int]:
    return device.kind is not DeviceKind.GPU, device.identity.chip_id, device.identity.leaf_serial


def _claims(
    profile: BindingProfile,
    devices: Sequence[VerifiedDevice],
    init_data: JsonObject | None,
    identity_list: IdentityList | None,
) -> JsonObject:
    """What the binding proves and what it does not. The last three are constants until devices can prove more.

    Whether the guest is measured is not known here: who holds reference values says so (`with_guest_measured`).
    """
    return {
        "profile": profile,
        "nonce_bound": True,
        "key_bound": True,
        "evidence_set_bound": True,
        "device_count": len(devices),
        "distinct_identities": True,
        "identity_allowlist": _identity_allowlist(devices, identity_list),
        "guest_measured": False,
        "local_gate": _local_gate(init_data),
        "tdisp": "not-available",
        "colocation": "not-proven",
        "colocation_why": NOT_PROVEN,
    }


def with_guest_measured(binding: JsonObject, measured: bool) -> JsonObject:
    """The claims of somebody who compared the launch measurement with reference values."""
    return {**binding, "guest_measured": measured}


def _identity_allowlist(devices: Sequence[VerifiedDevice], identity_list: IdentityList | None) -> str:
    if identity_list is None or not devices:
        return "off"
    return "match" if all(identity_list(device.identity.chip_id) for device in devices) else "mismatch"


def _local_gate(init_data: JsonObject | None) -> str:
    """`initdata` where bound init-data makes our guest count its devices before anything is sent or set ready.

    No guest extends a run-time register with its own check today, so `rtmr3` (tee.md 4.6) is never claimed.
    """
    entry = (init_data or {}).get(GUEST_ENTRY)
    expected = entry.get("expected_devices") if isinstance(entry, Mapping) else None
    return "initdata" if type(expected) is int and expected > 0 else "none"
