"""Appraisal and release conditions on plain facts: a platform that gets its key, and one thing changed."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestation.appraise.checks import Usage, check_origin, check_release
from attestation.appraise.ear import Status
from attestation.appraise.facts import CpuFacts, DeviceFacts, PlatformFacts
from attestation.appraise.native import appraise_cpu, appraise_platform, guest_measured
from attestation.appraise.policy_toml import parse_conditions
from attestation.appraise.rules import ReferenceValue
from attestation.broker.release import decide
from attestation.broker.session import Attested
from attestation.broker.token import TokenAuthority, TokenKey, token_claims
from attestation.crypto.b64 import b64url
from attestation.findings import Finding, Result, failed, passed, warned
from attestation.values import Architecture, DeviceKind, Digest, GpuMode, JsonValue, Level, Tee
from attestation.verify.device_claims import SWITCH_LOCKED
from tests.attestation.broker.broker import NOW
from tests.attestation.tee.world import Guest, verify

SECOND = timedelta(seconds=1)
INIT, OTHER = (Digest("sha256", bytes([number]) * 32) for number in (1, 2))
REFERENCES = {"snp_launch_measurement": "aa", "mr_td": "aa", "rtmr_1": "11", "rtmr_2": "22", "launch_digest": "aa"}


def references(name: str) -> ReferenceValue | None:
    value = REFERENCES.get(name)
    return value and ReferenceValue(name=name, values=(value,), expires=NOW + SECOND, provenance="test")  # type: ignore[return-value]


def gpu(number: int, **changes: Any) -> DeviceFacts:
    made = DeviceFacts(
        kind=DeviceKind.GPU, arch=Architecture.HOPPER, chip_id=f"{number:016X}", leaf_serial=f"{number:x}",
        level=Level.TRUSTED, mode=GpuMode.ON, driver_version="550.90.07", vbios_version="96.00.9F.00.01",
        evidence=f"sha384:{number}", claims={},
    )  # fmt: skip
    return replace(made, **changes)


def switch(number: int, **changes: Any) -> DeviceFacts:
    made = gpu(
        100 + number, kind=DeviceKind.NVSWITCH, arch=Architecture.LS10, mode=GpuMode.UNKNOWN, driver_version="",
        vbios_version="96.10.73.00.01", claims={SWITCH_LOCKED: True},
    )  # fmt: skip
    return replace(made, **changes)


CLAIMS: dict[str, JsonValue] = {
    "reported_tcb_microcode": 84,
    "policy_debug_allowed": False,
    "policy_migrate_ma": False,
}
CPU = CpuFacts(tee=Tee.SNP, product="Genoa", chip_id="c0", measurement="aa", init_data="", claims=CLAIMS)
TD_CLAIMS: dict[str, JsonValue] = {
    "tcb_status": "UpToDate",
    "collateral_expiration_status": "0",
    "quote": {"body": {"rtmr_1": "11", "rtmr_2": "22"}},
    "td_attributes": {"debug": False},
}
TD = replace(CPU, tee=Tee.TDX, product="TDX", claims=TD_CLAIMS)
BINDING: dict[str, JsonValue] = {"profile": "trustee-rcar-0.4"}
GOOD = PlatformFacts(cpu=CPU, devices=(gpu(1),), init_data_digest=INIT, init_data_claims=None, binding=BINDING)
BOARD = (*(gpu(n, mode=GpuMode.PPCIE) for n in range(8)), *(switch(n) for n in range(4)))
POLICY = f"""
version = 1
[cpu]
tee = ["snp"]
measurement = {{ reference = "snp_launch_measurement" }}
[gpus]
count = 1
arch = ["hopper"]
mode = ["on"]
driver_version = {{ at_least = "550.90.07" }}
vbios_version = {{ at_least = "96.00.9F" }}
[init_data]
accept = ["{INIT}"]
"""
BOARD_POLICY = POLICY.replace("count = 1", "count = 8").replace('["on"]', '["ppcie"]') + "[switches]\ncount = 4\n"


def codes(
    facts: PlatformFacts = GOOD,
    policy: str = POLICY,
    *,
    simulated: bool = False,
    test_key: bool = False,
    releases: int = 0,
) -> list[str]:
    """Of every condition that does not hold."""
    verdict = check_release(
        facts,
        appraise_platform(facts, references=references, now=NOW),
        parse_conditions(policy),
        Usage(releases=releases, test_key=test_key),
        simulated=simulated,
        references=references,
        now=NOW,
    )
    return [finding.code for finding in verdict.failures]


def cpu(claims: dict[str, JsonValue] | None = None, **changes: Any) -> PlatformFacts:
    return replace(GOOD, cpu=replace(CPU, claims=CLAIMS | (claims or {}), **changes))


def devices(*made: DeviceFacts) -> PlatformFacts:
    return replace(GOOD, devices=made)


def with_cpu(line: str) -> str:
    return POLICY.replace("[gpus]", f"{line}\n[gpus]")


def with_gpus(line: str) -> str:
    return POLICY.replace("[init_data]", f"{line}\n[init_data]")


_MEASUREMENT = '{ reference = "snp_launch_measurement" }'
_AUTHENTIC = 'level = { authentic_only = "no documents for this driver" }'
CPUS: list[tuple[str, PlatformFacts, str, list[str]]] = [
    ("good", GOOD, POLICY, []),
    ("measurement", cpu(measurement="bb"), POLICY,
     ["measurement-unknown", "cpu-measurement-unknown", "cpu-not-affirmed"]),
    ("measurement-waived-by-the-policy", cpu(measurement="bb"),
     POLICY.replace(_MEASUREMENT, '{ unchecked = "any guest" }'), ["measurement-unknown", "cpu-not-affirmed"]),
    ("tee", replace(GOOD, cpu=TD), POLICY, ["cpu-tee-not-accepted"]),
    ("milan", cpu(product="Milan"), POLICY, ["milan-not-opted-in"]),
    ("milan-opted-in", cpu(product="Milan"), with_cpu('product = "milan"'), []),
    ("product", cpu(product="Turin"), with_cpu('product = "genoa"'), ["cpu-product-not-accepted"]),
    ("chip", GOOD, with_cpu('chip_id = "c0"'), []),
    ("chip-other", cpu(chip_id="c1"), with_cpu('chip_id = "c0"'), ["cpu-chip-not-accepted"]),
    ("chip-masked", cpu(chip_id=""), with_cpu('chip_id = "c0"'), ["cpu-chip-not-accepted"]),
    ("tcb", GOOD, with_cpu("[cpu.tcb_minimum]\nmicrocode = 84"), []),
    ("tcb-low", GOOD, with_cpu("[cpu.tcb_minimum]\nmicrocode = 85"), ["cpu-tcb-too-old"]),
    ("tcb-not-claimed", GOOD, with_cpu("[cpu.tcb_minimum]\nsnp = 0"), ["cpu-tcb-too-old"]),
    ("tcb-true", cpu({"reported_tcb_snp": True}), with_cpu("[cpu.tcb_minimum]\nsnp = 1"), ["cpu-tcb-too-old"]),
    ("debug", cpu({"policy_debug_allowed": True}), POLICY, ["debug-enabled", "cpu-not-affirmed"]),
    ("debug-waived", cpu({"policy_debug_allowed": True}), with_cpu('status = { unchecked = "debugging" }'),
     ["cpu-not-affirmed"]),
    ("migration", cpu({"policy_migrate_ma": True}), POLICY, ["migration-agent", "cpu-not-affirmed"]),
    ("nested-claims", cpu({"snp": {"policy_migrate_ma": True}}), POLICY, ["migration-agent", "cpu-not-affirmed"]),
    ("init-data-absent", replace(GOOD, init_data_digest=None), POLICY, ["init-data-absent"]),
    ("init-data-other", replace(GOOD, init_data_digest=OTHER), POLICY, ["init-data-unknown"]),
    ("init-data-second", replace(GOOD, init_data_digest=OTHER), POLICY.replace(f'"{INIT}"', f'"{INIT}", "{OTHER}"'), []),
    ("init-data-waived", replace(GOOD, init_data_digest=None),
     POLICY.replace(f'accept = ["{INIT}"]', 'unchecked = "bare metal"'), []),
    ("binding", GOOD, f'binding_profile = "trustee-rcar-0.4"\n{POLICY}', []),
    ("binding-weaker", GOOD, f'binding_profile = "cgpu-v1"\n{POLICY}', ["binding-profile-too-weak"]),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "policy", "expected"), [pytest.param(f, p, c, id=i) for i, f, p, c in CPUS])
def test_the_cpu(facts: PlatformFacts, policy: str, expected: list[str]) -> None:
    assert codes(facts, policy) == expected


_AT_LEAST = POLICY.replace("count = 1", "count = { at_least = 2 }")
_TWO = POLICY.replace("count = 1", "count = 2")
_HOSTS = '[gpus.hosts]\nA123456789ABCDEF = ["0000000000000001"]'
GPUS: list[tuple[str, PlatformFacts, str, list[str]]] = [
    ("none", devices(), POLICY, ["gpu-count-wrong"]),
    ("one-too-many", devices(gpu(1), gpu(2)), POLICY, ["gpu-count-wrong"]),
    ("at-least", devices(gpu(1), gpu(2)), _AT_LEAST, []),
    ("more-than-least", devices(gpu(1), gpu(2), gpu(3)), _AT_LEAST, []),
    ("less-than-least", devices(gpu(1)), _AT_LEAST, ["gpu-count-wrong"]),
    ("a-switch-is-no-gpu", devices(switch(1)), POLICY, ["gpu-count-wrong"]),
    ("one-chip-twice", devices(gpu(1), gpu(2, chip_id=gpu(1).chip_id)), _TWO, ["duplicate-device"]),
    ("one-certificate-twice", devices(gpu(1), gpu(2, leaf_serial="1")), _TWO, ["duplicate-device"]),
    ("one-report-twice", devices(gpu(1), gpu(2, evidence=gpu(1).evidence)), _TWO, ["duplicate-device"]),
    ("authentic", devices(gpu(1, level=Level.AUTHENTIC)), POLICY, ["firmware-unknown", "firmware-unknown"]),
    ("authentic-allowed", devices(gpu(1, level=Level.AUTHENTIC)), with_gpus(_AUTHENTIC), []),
    ("nothing-proven", devices(gpu(1, level=Level.NONE)), with_gpus(_AUTHENTIC), ["firmware-unknown"]),
    ("second-authentic", devices(gpu(1), gpu(2, level=Level.AUTHENTIC)), _TWO, ["firmware-unknown"] * 2),
    ("arch", devices(gpu(1, arch=Architecture.BLACKWELL)), POLICY, ["gpu-arch-not-accepted"]),
    ("mode-unknown", devices(gpu(1, mode=GpuMode.UNKNOWN)), POLICY, ["mode-not-proven", "gpu-mode-not-accepted"]),
    ("mode-ppcie", devices(gpu(1, mode=GpuMode.PPCIE)), POLICY, ["ppcie-incomplete", "gpu-mode-not-accepted"]),
    ("driver", devices(gpu(1, driver_version="550.90.06")), POLICY, ["gpu-driver-not-accepted"]),
    ("driver-none", devices(gpu(1, driver_version="")), POLICY, ["gpu-driver-not-accepted"]),
    ("vbios", devices(gpu(1, vbios_version="96.00.9E.00.01")), POLICY, ["gpu-vbios-not-accepted"]),
    ("vbios-is-hexadecimal", devices(gpu(1, vbios_version="96.00.A0")), POLICY, []),
    ("identity", GOOD, with_gpus(f'identity = ["{gpu(1).chip_id}"]'), []),
    ("identity-other", GOOD, with_gpus('identity = ["00"]'), ["gpu-identity-not-accepted"]),
    ("host", replace(GOOD, cpu=replace(CPU, chip_id="a123456789abcdef")), with_gpus(_HOSTS), []),
    ("host-other", GOOD, with_gpus(_HOSTS), ["gpu-not-of-this-host"]),
    ("host-masked", cpu(chip_id=""), with_gpus(_HOSTS), ["gpu-not-of-this-host"]),
    ("board", devices(*BOARD), BOARD_POLICY, []),
    ("board-three-switches", devices(*BOARD[:-1]), BOARD_POLICY.replace("count = 4", "count = 3"), ["ppcie-incomplete"]),
    ("board-seven-gpus", devices(*BOARD[1:]), BOARD_POLICY.replace("count = 8", "count = 7"), ["ppcie-incomplete"]),
    ("board-of-two-modes", devices(gpu(0), *BOARD[1:]), BOARD_POLICY.replace('["ppcie"]', '["ppcie", "on"]'),
     ["ppcie-incomplete"]),
    ("board-doubtful-switch", devices(*BOARD[:-1], switch(3, level=Level.AUTHENTIC)), BOARD_POLICY,
     ["firmware-unknown", "firmware-unknown"]),
    ("board-unlocked-switch", devices(*BOARD[:-1], switch(3, claims={})), BOARD_POLICY, ["switch-unlocked"]),
    ("board-lock-in-words", devices(*BOARD[:-1], switch(3, claims={SWITCH_LOCKED: "true"})), BOARD_POLICY,
     ["switch-unlocked"]),
    ("switch-count", devices(*BOARD), BOARD_POLICY.replace("count = 4", "count = 3"), ["switch-count-wrong"]),
    ("switch-twice", devices(*BOARD[:-1], switch(3, leaf_serial=switch(2).leaf_serial)), BOARD_POLICY,
     ["duplicate-device"]),
    ("switch-bios", devices(*BOARD), f'{BOARD_POLICY}bios_version = {{ at_least = "96.10.73" }}\n', []),
    ("switch-bios-low", devices(*BOARD), f'{BOARD_POLICY}bios_version = {{ at_least = "96.10.74" }}\n',
     ["switch-bios-not-accepted"] * 4),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "policy", "expected"), [pytest.param(f, p, c, id=i) for i, f, p, c in GPUS])
def test_the_devices(facts: PlatformFacts, policy: str, expected: list[str]) -> None:
    assert codes(facts, policy) == expected


def test_what_is_waived_is_said() -> None:
    """A level or a value that nobody asks for is a warning with the reason, never silence."""
    policy = with_gpus(_AUTHENTIC).replace('{ at_least = "96.00.9F" }', '{ unchecked = "any firmware" }')
    facts = devices(gpu(1, level=Level.AUTHENTIC))
    verdict = check_release(
        facts, appraise_platform(facts, references=references, now=NOW), parse_conditions(policy),
        Usage(releases=0, test_key=False), simulated=False, references=references, now=NOW,
    )  # fmt: skip
    warned = {f.check: f.hint for f in verdict.findings if f.result is Result.WARN}
    assert warned == {"gpu-level": "no documents for this driver", "gpu-vbios": "any firmware"}


@pytest.mark.parametrize(
    ("limits", "releases", "expected"),
    [
        pytest.param("not_before = 2026-11-21T00:00:00Z", 0, [], id="starts-now"),
        pytest.param("not_before = 2026-11-21T00:00:01Z", 0, ["outside-time-window"], id="starts-later"),
        pytest.param("not_after = 2026-11-21T00:00:00Z", 0, [], id="ends-now"),
        pytest.param("not_after = 2026-11-20T23:59:59Z", 0, ["outside-time-window"], id="ended"),
        pytest.param("max_releases = 2", 1, [], id="last-release"),
        pytest.param("max_releases = 2", 2, ["releases-exhausted"], id="no-release-left"),
        pytest.param("max_releases = 0", 0, ["releases-exhausted"], id="never"),
    ],
)
def test_when_and_how_often(limits: str, releases: int, expected: list[str]) -> None:
    assert codes(policy=f"{POLICY}[release]\n{limits}\n", releases=releases) == expected


@pytest.mark.parametrize("simulated", [True, False])
@pytest.mark.parametrize("tee", [Tee.SNP, Tee.SAMPLE])
@pytest.mark.parametrize("test_key", [True, False])
def test_what_can_be_forged_reaches_test_keys_alone(simulated: bool, tee: Tee, test_key: bool) -> None:
    facts = replace(GOOD, cpu=replace(CPU, tee=tee))
    finding = check_origin(facts, Usage(releases=0, test_key=test_key), simulated=simulated)
    forgeable = simulated or tee is Tee.SAMPLE
    assert finding.code == ("forgeable-evidence" if forgeable and not test_key else "")


def td(**changes: JsonValue) -> CpuFacts:
    return replace(TD, claims=TD_CLAIMS | changes)


def rtmrs(first: str | None, second: str | None) -> CpuFacts:
    return td(quote={"body": {"rtmr_1": first, "rtmr_2": second}})


SAMPLE = replace(CPU, tee=Tee.SAMPLE, claims={})
NATIVE: list[tuple[str, CpuFacts, list[str]]] = [
    ("snp", CPU, []),
    ("tdx", TD, []),
    ("sample", SAMPLE, []),
    ("tdx-measurement", replace(TD, measurement="bb"), ["measurement-unknown"]),
    ("tdx-rtmr-1", rtmrs("00", "22"), ["rtmr_1-unknown"]),
    ("tdx-rtmr-2", rtmrs("11", "00"), ["rtmr_2-unknown"]),
    ("tdx-no-rtmrs", td(quote=None), ["rtmr_1-unknown", "rtmr_2-unknown"]),
    ("tdx-status", td(tcb_status="OutOfDate"), ["tcb-not-up-to-date"]),
    ("tdx-no-status", td(tcb_status=None), ["tcb-not-up-to-date"]),
    ("tdx-collateral", td(collateral_expiration_status="1"), ["collateral-expired"]),
    ("tdx-collateral-not-said", td(collateral_expiration_status=None), []),
    ("tdx-debug", td(td_attributes={"debug": True}), ["debug-enabled"]),
    ("sample-debug", replace(SAMPLE, claims={"debug": True}), ["debug-enabled"]),
    ("snp-debug", replace(CPU, claims=CLAIMS | {"policy_debug_allowed": True}), ["debug-enabled"]),
    ("snp-migration", replace(CPU, claims=CLAIMS | {"policy_migrate_ma": True}), ["migration-agent"]),
    ("tdx-knows-no-migration", td(policy_migrate_ma=True), []),
]


@pytest.mark.parametrize(("facts", "expected"), [pytest.param(f, c, id=i) for i, f, c in NATIVE])
def test_the_native_appraisal_of_a_cpu(facts: CpuFacts, expected: list[str]) -> None:
    appraisal = appraise_cpu(facts, references=references, now=NOW)
    assert [f.code for f in appraisal.findings if f.result is Result.FAIL] == expected
    assert (appraisal.status is Status.AFFIRMING) == (not expected)
    known = not any("unknown" in code for code in expected)
    assert guest_measured((appraisal,)) == known


@pytest.mark.parametrize(
    ("device", "status"),
    [
        pytest.param(gpu(1), Status.AFFIRMING, id="gpu"),
        pytest.param(gpu(1, mode=GpuMode.PPCIE), Status.AFFIRMING, id="gpu-ppcie"),
        pytest.param(gpu(1, mode=GpuMode.UNKNOWN), Status.WARNING, id="gpu-mode"),
        pytest.param(gpu(1, level=Level.AUTHENTIC), Status.WARNING, id="gpu-level"),
        pytest.param(switch(1), Status.AFFIRMING, id="switch"),
        pytest.param(switch(1, claims={}), Status.WARNING, id="switch-unlocked"),
        pytest.param(switch(1, level=Level.AUTHENTIC), Status.WARNING, id="switch-level"),
    ],
)
def test_the_native_appraisal_of_a_device(device: DeviceFacts, status: Status) -> None:
    """And nothing at all where the guest that asked it is not known."""
    assert [a.status for a in appraise_platform(devices(device), references=references, now=NOW)][1] is status
    unknown = replace(devices(device), cpu=replace(CPU, measurement="bb"))
    appraised = appraise_platform(unknown, references=references, now=NOW)[1]
    assert (appraised.status, [f.code for f in appraised.findings]) == (Status.NONE, ["cpu-not-affirmed"])


def test_only_the_cpu_says_that_the_guest_is_known() -> None:
    """Whatever runs in its devices."""
    known = appraise_platform(GOOD, references=references, now=NOW)
    assert guest_measured(known)
    assert guest_measured(known[::-1])
    assert not guest_measured(known[1:])
    assert not guest_measured(())


def _attested(facts: PlatformFacts = GOOD, *, simulated: bool = False) -> Attested:
    appraisals = appraise_platform(facts, references=references, now=NOW)
    return Attested(
        jti="j", issued=NOW, expires=NOW, nonce="", tee_key={}, facts=facts, appraisals=appraisals, simulated=simulated
    )


@pytest.mark.parametrize(
    ("policy", "resource_policy", "make", "expected"),
    [
        pytest.param(POLICY, None, _attested, [], id="conditions"),
        pytest.param(POLICY, True, _attested, [], id="both"),
        pytest.param(POLICY, False, _attested, ["resource-policy-denies"], id="conditions-and-a-refusal"),
        pytest.param(POLICY, True, lambda: _attested(devices()), ["gpu-count-wrong"], id="an-allowance-and-no-gpu"),
        pytest.param(None, True, _attested, [], id="resource-policy"),
        pytest.param(None, False, _attested, ["resource-policy-denies"], id="refusal"),
        pytest.param(None, None, _attested, ["no-release-policy"], id="nothing"),
        pytest.param(None, True, lambda: _attested(simulated=True), ["forgeable-evidence"], id="forgeable"),
        pytest.param(POLICY, True, lambda: _attested(simulated=True), ["forgeable-evidence"], id="forgeable-and-both"),
    ],
)
def test_conditions_and_resource_policy_must_both_hold(
    policy: str | None, resource_policy: bool | None, make: Callable[[], Attested], expected: list[str]
) -> None:
    verdict = decide(
        make(),
        None if policy is None else parse_conditions(policy),
        Usage(releases=0, test_key=False),
        resource_policy=resource_policy,
        references=references,
        now=NOW,
    )
    assert [finding.code for finding in verdict.failures] == expected


_MEASURED = failed("measurement[9]", "measurement-mismatch", expected="aa", got="bb", subject="index 9", hint="mode")
_POLICY = failed("driver-version", "policy-driver-version", expected=">= 590", got="570", subject="GPU")
_MISSING = Finding(check="vbios-rim", result=Result.SKIPPED, code="rim-missing", expected="a document", got="none")
_NOT_ASKED = Finding(check="chip-id", result=Result.SKIPPED)
_REMARK = warned("device-chain", "simulated-roots", expected="NVIDIA's roots", got="others")
_FINE = passed("nonce")
_BOUND = verify(Guest().evidence())


@pytest.mark.parametrize(
    ("findings", "code"),
    [
        pytest.param((_FINE, _MISSING, _POLICY, _MEASURED), "measurement-mismatch", id="a-measurement-first"),
        pytest.param((_FINE, _MISSING, _POLICY), "policy-driver-version", id="then-a-failure"),
        pytest.param((_FINE, _NOT_ASKED, _REMARK, _MISSING), "rim-missing", id="then-what-nobody-could-judge"),
        pytest.param((_FINE, _NOT_ASKED), "firmware-unknown", id="nothing-that-says-why"),
    ],
)
def test_why_a_device_is_not_trusted(findings: tuple[Finding, ...], code: str) -> None:
    """The finding that tells most is the one that operators get to see."""
    device = replace(_BOUND.devices[0], level=Level.AUTHENTIC, findings=findings)
    facts = PlatformFacts.of(replace(_BOUND, devices=(device,)))
    said = facts.devices[0].untrusted("gpu-level", "gpu0")
    assert (said.code, said.subject, said.result) == (code, "gpu0", Result.FAIL)
    assert PlatformFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    if code == "measurement-mismatch":
        assert (said.expected, said.got, said.hint) == ("aa", "measurement[9]: bb", "index 9; mode")
    if code == "firmware-unknown":
        assert (said.expected, said.got, said.hint) == ("trusted", "authentic", "")


def test_a_trusted_device_needs_no_reason() -> None:
    device = replace(_BOUND.devices[0], findings=(_POLICY,))
    assert PlatformFacts.of(replace(_BOUND, devices=(device,))).devices[0].reason is None


_PEM = ec.derive_private_key(3, ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
AUTHORITY = TokenAuthority(issuer="i", audience="a", current=TokenKey.of(_PEM))


@pytest.mark.parametrize("simulated", [True, False])
def test_tokens_say_what_can_be_forged(simulated: bool) -> None:
    claims = token_claims(_attested(simulated=simulated), AUTHORITY)
    assert (claims.get("simulated"), claims.get("dbgstat")) == ((True, "enabled") if simulated else (None, None))


def test_tokens_name_policy_and_claims_of_each_part() -> None:
    """Claims by the SHA-256 of their canonical JSON: the record under `jti` has them."""
    made = _attested(devices(gpu(1, claims={"b": 1, "a": [2, None]})))
    other = replace(made.appraisals[1], policy_id="another")
    submods = token_claims(replace(made, appraisals=(other, made.appraisals[0])), AUTHORITY)["submods"]
    assert submods["cpu0"]["ear.appraisal-policy-id"] == "native-1"
    digest = hashlib.sha256(b'{"a":[2,null],"b":1}').digest()
    assert submods["gpu0"]["claims"] == b64url(digest)
