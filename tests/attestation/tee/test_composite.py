"""CPU, GPUs, nonce and key as one platform: positives on forged evidence, and groups 56 to 67 of tee.md 5.4."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attestation.appraise.devices import DeviceRequirement, check_devices
from attestation.appraise.facts import PlatformFacts
from attestation.appraise.native import appraise_platform
from attestation.errors import AttestationError, Denied, Malformed, Misconfigured, Untrusted
from attestation.findings import Result
from attestation.formats.nv_evidence import parse_evidence
from attestation.simulate.amd import SimulatedChip
from attestation.simulate.nvidia import ForgedEvidence
from attestation.values import Architecture, BindingProfile, DeviceKind, GpuMode, Level, Tee
from attestation.verify.bind import NOT_PROVEN, Additional, bind_platform, parse_additional, require_distinct
from attestation.verify.nv_gpu import verify_device
from attestation.verify.nv_policy import NvPolicy, OneOf
from attestation.verify.platform import Expected, PlatformEvidence, PlatformPolicy, PlatformTrust, verify_platform
from attestation.verify.revocation import ChainKind, NoRevocation, RevocationPolicy, RevocationRule, RevocationStatus
from attestation.verify.rim import RimShelf
from attestation.verify.roots import NvTrust
from attestation.verify.snp_trust import AmdTrust
from attestation.verify.tdx_trust import IntelTrust
from attestation.verify.verified import BoundPlatform
from tests.attestation.tee.snp_cases import flipped
from tests.attestation.tee.world import (
    FORGE,
    INIT_DATA,
    NONCE,
    NOW,
    OTHER_JWK,
    OTHER_NONCE,
    Guest,
    collateral,
    policy,
    render_additional,
    trust,
    verify,
)

_RESPONDER_NONCE = 37 + 8 + 64 * 55  # after request, response header and 64 measurement blocks
RCAR, CGPU = BindingProfile.TRUSTEE_RCAR, BindingProfile.CGPU_V1


def code_of(call: Callable[[], object]) -> str:
    """The one code that a call is refused with."""
    with pytest.raises(AttestationError) as caught:
        call()
    return caught.value.code


def failing(platform: BoundPlatform) -> list[str]:
    return [finding.code for finding in platform.findings if finding.result is Result.FAIL]


@pytest.mark.parametrize("tee", [Tee.SNP, Tee.TDX])
@pytest.mark.parametrize("profile", [RCAR, CGPU])
@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_honest_platforms_are_bound(tee: Tee, profile: BindingProfile, gpus: int) -> None:
    platform = verify(Guest(tee=tee, profile=profile, gpus=gpus, init_data=INIT_DATA).evidence())
    assert failing(platform) == []
    assert [device.level for device in platform.devices] == [Level.TRUSTED] * gpus
    assert platform.binding["device_count"] == gpus
    assert (platform.profile, platform.nonce, platform.cpu.tee) == (profile, NONCE, tee)
    assert platform.init_data_digest is not None
    assert platform.init_data_claims == {"aa.toml": {"token_configs": {}}}


def test_what_is_not_proven_is_said() -> None:
    binding = verify(Guest().evidence()).binding
    assert (binding["colocation"], binding["tdisp"]) == ("not-proven", "not-available")
    proven = ("nonce_bound", "key_bound", "evidence_set_bound", "distinct_identities")
    assert [binding[name] for name in proven] == [True] * 4
    assert binding["colocation_why"] == NOT_PROVEN


@pytest.mark.parametrize(
    ("chip_ids", "gpus", "expected"),
    [
        pytest.param(None, 1, "off", id="no-list"),
        pytest.param("own", 1, "match", id="listed"),
        pytest.param("own", 2, "mismatch", id="one-of-two"),
        pytest.param("own", 0, "off", id="no-device"),
    ],
)
def test_whether_devices_are_on_a_list_is_said(chip_ids: str | None, gpus: int, expected: str) -> None:
    own = verify(Guest(gpus=1).evidence()).gpus[0].identity.chip_id
    rules = policy()
    if chip_ids is not None:
        rules = replace(rules, nvidia=replace(rules.nvidia, chip_ids=OneOf(frozenset({own}))))
    platform = verify(Guest(gpus=gpus).evidence(), rules=rules)
    assert platform.binding["identity_allowlist"] == expected
    assert ("policy-chip-id" in failing(platform)) == (expected == "mismatch")


@pytest.mark.parametrize(
    ("entry", "gate"),
    [
        pytest.param("expected_devices = 8", "initdata", id="count"),
        pytest.param("expected_devices = 1", "initdata", id="one"),
        pytest.param("expected_devices = 0", "none", id="nothing-expected"),
        pytest.param("expected_devices = true", "none", id="no-number"),
        pytest.param('binding_profile = "cgpu-v1"', "none", id="no-count"),
    ],
)
def test_local_gate_is_what_bound_init_data_asks_of_the_guest(entry: str, gate: str) -> None:
    document = INIT_DATA + f"\"kata-gpu.toml\" = '''\n{entry}\n'''\n"
    binding = verify(Guest(init_data=document).evidence()).binding
    assert (binding["local_gate"], binding["guest_measured"]) == (gate, False)
    assert verify(Guest().evidence()).binding["local_gate"] == "none"


def test_order_of_devices_does_not_depend_on_the_guest() -> None:
    guest = Guest(gpus=4)
    there, back = guest.devices(), guest.devices()[::-1]
    forward, backward = verify(guest.evidence(there)), verify(guest.evidence(back))
    assert [d.identity for d in forward.devices] == [d.identity for d in backward.devices]


@pytest.mark.parametrize("profile", [RCAR, CGPU])
def test_gpus_come_before_switches(profile: BindingProfile) -> None:
    """And the native profile knows which is which: its digests have the kind in them."""
    guest = Guest(profile=profile)
    board = FORGE.board(nonce=guest.device_nonce().raw)[::-1]
    platform = verify(guest.evidence(list(board)))
    assert [device.kind for device in platform.devices] == [DeviceKind.GPU] * 8 + [DeviceKind.NVSWITCH] * 4
    for devices in (platform.gpus, platform.switches):
        assert [d.identity for d in devices] == sorted(d.identity for d in devices)


def test_native_profile_needs_the_kind_of_each_device() -> None:
    guest = Guest(profile=CGPU)
    evidence = guest.evidence()
    without = json.loads(evidence.additional)
    del without["nvidia"]["device_evidence_list"][0]["arch"]
    assert code_of(lambda: verify(replace(evidence, additional=json.dumps(without)))) == "device-arch"


VENDORS = PlatformTrust(amd=AmdTrust.production(), intel=IntelTrust.production(), nvidia=NvTrust.production())


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"amd": trust().amd}, id="amd"),
        pytest.param({"intel": trust().intel}, id="intel"),
        pytest.param({"nvidia": trust().nvidia}, id="nvidia"),
        pytest.param({"unsafe_sample_tee": True}, id="sample"),
    ],
)
def test_one_root_that_can_be_forged_marks_everything(changes: dict[str, Any]) -> None:
    assert not VENDORS.simulated
    assert replace(VENDORS, **changes).simulated


WANTS_8 = DeviceRequirement(gpus=8)


@pytest.mark.parametrize(
    ("gpus", "codes"),
    [
        pytest.param(0, ["gpu-count-wrong"], id="tee-056-none"),
        pytest.param(7, ["gpu-count-wrong"], id="tee-056-seven"),
        pytest.param(8, [], id="tee-056-eight"),
        pytest.param(9, ["gpu-count-wrong"], id="tee-056-nine"),
    ],
)
def test_count(gpus: int, codes: list[str]) -> None:
    findings = check_devices(verify(Guest(gpus=gpus).evidence()), WANTS_8)
    assert [f.code for f in findings if f.result is Result.FAIL] == codes


def _genuine(vectors: Path, name: str) -> list[ForgedEvidence]:
    """Entries of a genuine file, in the carrier type of the forge; there is no key to sign them again."""
    key = FORGE.key("none")
    entries = parse_evidence((vectors / "nvidia" / name).read_bytes())
    return [
        ForgedEvidence(arch=one.arch or Architecture.HOPPER, report=one.report, chain=one.chain, key=key)
        for one in entries
    ]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("ppcie/gpu_evidence.json", id="tee-057-genuine-gpu-twice"),
        pytest.param("ppcie/switch_evidence.json", id="tee-057-genuine-switch-twice"),
    ],
)
def test_genuine_duplicates(vectors: Path, name: str) -> None:
    devices = _genuine(vectors, name)
    evidence = Guest().evidence([*devices, devices[0]])
    roots = replace(trust(), nvidia=NvTrust.production())
    assert code_of(lambda: verify(evidence, roots=roots)) == "device-duplicate"


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-057-identical-file")])
def test_genuine_file_of_identical_switches(vectors: Path, _case: None) -> None:
    """Four copies of one switch, as a peer's test data has them."""
    devices = _genuine(vectors, "multi_switch_ls10.json")
    assert len(devices) == 4
    assert code_of(lambda: verify(Guest().evidence(devices))) == "device-duplicate"


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-057-same-gpu-new-report")])
def test_one_gpu_with_two_reports(_case: None) -> None:
    """Two different reports of one chip: the bytes differ, the identity does not."""
    nonce = Guest().device_nonce().raw
    first = FORGE.device(index=0, nonce=nonce)
    second = FORGE.device(index=0, nonce=nonce, mutate=lambda s: flipped(s, _RESPONDER_NONCE))
    assert first.report != second.report
    assert code_of(lambda: verify(Guest().evidence([first, second]))) == "device-duplicate"


@pytest.mark.parametrize(
    "shared",
    [
        pytest.param({"chip_id"}, id="tee-057-chip"),
        pytest.param({"leaf_serial"}, id="tee-057-certificate"),
        pytest.param({"signed_digest"}, id="tee-057-report"),
    ],
)
def test_devices_that_share_one_thing_are_refused_whoever_verified_them(shared: set[str]) -> None:
    """The binding does not lean on what a verifier of devices says about its set."""
    one, two = verify(Guest(gpus=2).evidence()).devices
    twin = replace(
        two,
        identity=replace(two.identity, **{n: getattr(one.identity, n) for n in shared - {"signed_digest"}}),
        signed_digest=one.signed_digest if "signed_digest" in shared else two.signed_digest,
    )
    require_distinct([one, two])
    cpu = verify(Guest(gpus=0).evidence()).cpu

    def bind() -> BoundPlatform:
        return bind_platform(
            Guest(gpus=2).evidence(),
            Expected(tee=Tee.SNP, nonce=NONCE),
            cpu=lambda _tee, _evidence, _expected: cpu,
            devices=lambda _listed, _nonce: ([one, twin], ()),
        )

    assert code_of(bind) == "device-duplicate"


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-057-kinds")])
def test_a_switch_may_bear_the_chip_id_of_a_gpu(_case: None) -> None:
    one, two = verify(Guest(gpus=2).evidence()).devices
    named = replace(two.identity, chip_id=one.identity.chip_id)
    require_distinct([one, replace(two, kind=DeviceKind.NVSWITCH, identity=named)])


@pytest.mark.parametrize(
    "guest",
    [
        pytest.param(Guest(nonce=OTHER_NONCE), id="tee-058-other-session"),
        pytest.param(Guest(jwk=dict(OTHER_JWK)), id="tee-058-other-key"),
    ],
)
@pytest.mark.parametrize("profile", [RCAR, CGPU])
def test_gpu_of_another_session_or_key(guest: Guest, profile: BindingProfile) -> None:
    stale = guest.with_(profile=profile).devices()
    assert code_of(lambda: verify(Guest(profile=profile).evidence(stale))) == "nonce-mismatch"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("hopper_evidence.json", id="tee-058-genuine"),
        pytest.param("ppcie/gpu_evidence.json", id="tee-058-board"),
    ],
)
def test_genuine_gpu_bytes_fail_only_by_their_nonce(vectors: Path, name: str) -> None:
    """Everything else about them is right: under their own nonce they are authentic."""
    device = _genuine(vectors, name)[0]
    roots = replace(trust(), nvidia=NvTrust.production())
    assert code_of(lambda: verify(Guest().evidence([device]), roots=roots)) == "nonce-mismatch"
    alone = verify_device(
        device.report,
        device.chain,
        trust=NvTrust.production(),
        nonce=None,
        rims=RimShelf({}),
        revocation=NoRevocation(),
        policy=NvPolicy(),
        now=NOW,
    )
    assert alone.level is Level.AUTHENTIC


def _respell(text: str) -> str:
    return json.dumps(json.loads(text))


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-059-white-space")])
def test_respelled_evidence(_case: None) -> None:
    evidence = Guest().evidence()
    changed = replace(evidence, additional=_respell(evidence.additional))
    assert changed.additional != evidence.additional
    assert code_of(lambda: verify(changed)) == "report-data-mismatch"


@pytest.mark.parametrize("profile", [pytest.param(RCAR, id="tee-060-rcar"), pytest.param(CGPU, id="tee-060-cgpu")])
def test_gpu_swapped_after_the_cpu_signed(profile: BindingProfile) -> None:
    guest = Guest(gpus=2, profile=profile)
    first, second = guest.devices()
    evidence = guest.evidence([first])
    for other in ([second], [], [first, second]):
        changed = replace(evidence, additional=render_additional(other))
        assert code_of(lambda e=changed: verify(e)) == "report-data-mismatch"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("tee", "changes", "code"),
    [
        pytest.param(Tee.SNP, {"policy": 0xB0000}, "snp-debug", id="tee-061-snp"),
        pytest.param(Tee.TDX, {"td_attributes": 1 | 1 << 28}, "tdx-debug", id="tee-061-tdx"),
        pytest.param(Tee.SNP, {"vmpl": 1}, "snp-vmpl", id="tee-061-policy"),
    ],
)
def test_debug_cpu_with_a_perfect_gpu(tee: Tee, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Denied) as caught:
        verify(Guest(tee=tee).evidence(**changes))
    assert caught.value.code == code


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-062")])
def test_unknown_guest_with_a_perfect_gpu(_case: None) -> None:
    """Nobody lists this measurement, so the GPU may be anybody's and nothing is claimed about it."""
    platform = verify(Guest().evidence(measurement=b"\1" * 48))
    appraisals = appraise_platform(PlatformFacts.of(platform), references=lambda _name: None, now=NOW)
    gpu = next(a for a in appraisals if a.submod == "gpu0")
    assert str(gpu.status) != "affirming"
    assert [f.code for f in gpu.findings] == ["cpu-not-affirmed"]


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-063")])
def test_gpu_of_another_host(_case: None) -> None:
    platform = verify(Guest().evidence())
    ours = {platform.gpus[0].identity.chip_id}
    host = platform.cpu.chip_id
    for hosts, code in (
        ({host: frozenset(ours)}, ""),
        ({host: frozenset({"0000000000000000"})}, "gpu-not-of-this-host"),
        ({"ab" * 64: frozenset(ours)}, "gpu-not-of-this-host"),
    ):
        findings = check_devices(platform, DeviceRequirement(gpus=1, hosts=hosts))
        assert findings[-1].code == code


@pytest.mark.parametrize("profile", [pytest.param(RCAR, id="tee-064-rcar"), pytest.param(CGPU, id="tee-064-cgpu")])
def test_evidence_with_another_key(profile: BindingProfile) -> None:
    evidence = replace(Guest(profile=profile).evidence(), tee_jwk=dict(OTHER_JWK))
    assert code_of(lambda: verify(evidence)) == "report-data-mismatch"


@pytest.mark.parametrize(
    ("session", "code"),
    [
        pytest.param({"nonce": OTHER_NONCE}, "session-nonce", id="tee-065-other-nonce"),
        pytest.param({"tee": Tee.TDX}, "session-tee", id="tee-065-other-tee"),
        pytest.param({"profile": CGPU}, "session-profile", id="tee-065-profile-downgrade"),
        pytest.param({"init_data_required": True}, "init-data-missing", id="tee-065-init-data"),
        pytest.param({"hash_name": "sha256"}, "report-data-mismatch", id="tee-065-hash"),
    ],
)
def test_sessions_accept_only_what_they_agreed_on(session: dict[str, Any], code: str) -> None:
    """A nonce is one session's; single use is the session store's own promise."""
    assert code_of(lambda: verify(Guest().evidence(), **session)) == code


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-066")])
def test_sample_tee(_case: None) -> None:
    guest = Guest(gpus=0, tee=Tee.SNP)
    report_data = guest.report_data([], "")[:48]
    document = {"svn": "1", "report_data": b64encode(report_data).decode()}
    evidence = replace(guest.evidence(), tee=Tee.SAMPLE, primary=document)
    assert code_of(lambda: verify(evidence)) == "sample-tee"
    roots = replace(trust(), unsafe_sample_tee=True)
    platform = verify(evidence, roots=roots)
    assert (platform.cpu.product, roots.simulated) == ("sample", True)
    assert "sample-tee" in {finding.code for finding in platform.findings}
    wrong = replace(evidence, primary={**document, "report_data": b64encode(bytes(48)).decode()})
    assert code_of(lambda: verify(wrong, roots=roots)) == "report-data-mismatch"
    for broken in ({}, {"report_data": "*"}, {"report_data": b64encode(bytes(65)).decode()}):
        with pytest.raises(Malformed):
            verify(replace(evidence, primary=broken), roots=roots)


def _codes(devices: list[ForgedEvidence], want: DeviceRequirement) -> list[str]:
    platform = verify(Guest().evidence(devices))
    return [f.code for f in check_devices(platform, want) if f.result is Result.FAIL]


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-067-mixed-arch")])
def test_mixed_architectures(_case: None) -> None:
    nonce = Guest().device_nonce().raw
    devices = [FORGE.device(Architecture.HOPPER, 0, nonce=nonce), FORGE.device(Architecture.BLACKWELL, 1, nonce=nonce)]
    assert code_of(lambda: verify(Guest().evidence(devices))) == "mode-mix"
    platform = verify(Guest(gpus=2).evidence())
    other = replace(platform.devices[1], arch=Architecture.BLACKWELL)
    mixed = replace(platform, devices=(platform.devices[0], other))
    findings = check_devices(mixed, DeviceRequirement(gpus=2))
    assert [f.code for f in findings if f.result is Result.FAIL] == ["gpu-arch-mixed"]


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-067-arch-and-mode")])
def test_architecture_and_mode(_case: None) -> None:
    devices = Guest().devices()
    want = DeviceRequirement(
        gpus=1, architectures=frozenset({Architecture.BLACKWELL}), modes=frozenset({GpuMode.PPCIE})
    )
    assert _codes(devices, want) == ["gpu-arch-not-accepted", "gpu-mode-not-accepted"]
    with pytest.raises(Misconfigured):
        DeviceRequirement(gpus=1, modes=frozenset({GpuMode.UNKNOWN}))
    for gpus, switches in ((-1, 0), (1, -1)):
        with pytest.raises(Misconfigured):
            DeviceRequirement(gpus=gpus, switches=switches)
    assert DeviceRequirement(gpus=0).gpus == 0


@pytest.mark.parametrize(
    ("gpus", "switches", "codes"),
    [
        pytest.param(1, 0, [], id="tee-067-one-gpu"),
        pytest.param(2, 0, ["ppcie-without-switches"], id="tee-067-two-gpus"),
        pytest.param(8, 3, ["ppcie-without-switches"], id="tee-067-three-of-four"),
        pytest.param(8, 4, [], id="tee-067-board"),
    ],
)
def test_protected_gpus_need_their_switches(gpus: int, switches: int, codes: list[str]) -> None:
    """Whoever verified them: this is asked of verified devices again."""
    board = verify(Guest().evidence(list(FORGE.board(nonce=Guest().device_nonce().raw))))
    part = replace(board, devices=(*board.gpus[:gpus], *board.switches[:switches]))
    findings = check_devices(part, DeviceRequirement(gpus=gpus, switches=switches))
    assert [f.code for f in findings if f.result is Result.FAIL] == codes


def test_protected_pcie_board() -> None:
    board = list(FORGE.board(nonce=Guest().device_nonce().raw))
    want = DeviceRequirement(gpus=8, switches=4, modes=frozenset({GpuMode.PPCIE}))
    assert _codes(board, want) == []


@pytest.mark.parametrize(
    ("keep", "code"),
    [
        pytest.param(8, "ppcie-incomplete", id="tee-067-no-switches"),
        pytest.param(11, "ppcie-incomplete", id="tee-067-three-switches"),
    ],
)
def test_protected_pcie_without_switches(keep: int, code: str) -> None:
    board = list(FORGE.board(nonce=Guest().device_nonce().raw))[:keep]
    assert code_of(lambda: verify(Guest().evidence(board))) == code


@pytest.mark.parametrize("_case", [pytest.param(None, id="tee-067-other-switch")])
def test_switch_of_another_board(_case: None) -> None:
    """Another switch's identifier is in no GPU's link table."""
    nonce = Guest().device_nonce().raw
    board = [*FORGE.board(nonce=nonce)[:11], FORGE.device(Architecture.LS10, 9, nonce=nonce)]
    assert code_of(lambda: verify(Guest().evidence(board))) == "topology-edge"


def test_a_device_that_may_be_revoked_is_refused_whatever_keys_ask() -> None:
    """A key may do without reference values; nobody may do without knowing that the device was not revoked."""
    good = frozenset({RevocationStatus.GOOD})
    strict = RevocationPolicy(device_leaf=RevocationRule(kind=ChainKind.DEVICE, accept=good))
    evidence = Guest().evidence()
    with pytest.raises(Untrusted) as caught:
        verify_platform(
            evidence,
            session=Expected(tee=Tee.SNP, nonce=NONCE),
            trust=trust(),
            collateral=collateral(),
            policy=PlatformPolicy(nvidia=NvPolicy(revocation=strict)),
            now=NOW,
        )
    assert caught.value.code == "revocation-unknown"


def test_envelope_lies_about_the_architecture() -> None:
    device = replace(Guest().devices()[0], arch=Architecture.BLACKWELL)
    assert code_of(lambda: verify(Guest().evidence([device]))) == "arch-mismatch"


_ADDITIONAL: list[tuple[str, str, str]] = [
    ("not-json", "{", "json"),
    ("list", "[]", "json-type"),
    ("other-kind", '{"sampledevice": {}}', "device-kind-unknown"),
    ("duplicate-kind", '{"nvidia": 1, "nvidia": 2}', "json-duplicate-key"),
    ("empty-list", '{"nvidia": {"device_evidence_list": []}}', "evidence-empty"),
    ("largest", " " * (2 * 1024 * 1024), "json"),
    ("size", " " * (2 * 1024 * 1024 + 1), "json-size"),
    ("tee-056-65-devices", json.dumps({"nvidia": [{}] * 65}), "evidence-json"),
]


@pytest.mark.parametrize(("text", "code"), [pytest.param(t, c, id=i) for i, t, c in _ADDITIONAL])
def test_additional_evidence(text: str, code: str) -> None:
    assert code_of(lambda: parse_additional(text)) == code


def test_no_additional_evidence() -> None:
    assert parse_additional("") == parse_additional("{}") == Additional()


def test_init_data_is_the_documents_digest() -> None:
    evidence = Guest(init_data=INIT_DATA).evidence()
    other = replace(evidence, init_data=INIT_DATA + "# appended\n")
    assert code_of(lambda: verify(other)) == "init-data-mismatch"


def test_native_profile_covers_init_data() -> None:
    """Dropping the document changes the report data of the native profile: absence is bound as well."""
    evidence = Guest(profile=CGPU, init_data=INIT_DATA).evidence()
    assert code_of(lambda: verify(replace(evidence, init_data=None))) == "report-data-mismatch"


def test_masked_or_other_chip_does_not_matter_to_the_binding() -> None:
    first, second = (verify(Guest(chip=SimulatedChip(seed=s)).evidence()) for s in ("a", "b"))
    assert first.cpu.chip_id != second.cpu.chip_id


def test_evidence_type_is_what_the_broker_builds() -> None:
    evidence = Guest().evidence()
    assert isinstance(evidence, PlatformEvidence)
    assert len(b64decode(evidence.nonce)) == 32
