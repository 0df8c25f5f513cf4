"""Release policies: what parses, what is refused with the path of the field, and how rules compare."""

import contextlib
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.appraise.ear import CLAIMS, Status, TrustVector, tier
from attestation.appraise.policy_toml import parse_conditions
from attestation.appraise.rego import vector_of
from attestation.appraise.rules import (
    AtLeast,
    OneOf,
    Reference,
    ReferenceValue,
    Rule,
    Unchecked,
    check_rule,
    parse_rule,
)
from attestation.errors import AttestationError, Malformed, Misconfigured
from attestation.findings import Result
from attestation.values import Architecture, GpuMode, Level, Tee
from tests.attestation.broker.broker import GPU_POLICY, NOW

SHA = "sha256:" + "ab" * 32
HOST = "A123456789ABCDEF"  # a Turin chip id


def test_a_full_policy() -> None:
    """Every field arrives typed."""
    text = f"""
version = 1
[cpu]
tee = ["snp", "tdx"]
status = {{ unchecked = "lab machines without reference values" }}
measurement = ["AA", "bb"]
product = "Genoa"
chip_id = {{ reference = "fleet" }}
[cpu.tcb_minimum]
snp = 23
microcode = 72
[gpus]
count = {{ at_least = 2 }}
arch = ["hopper", "blackwell"]
mode = ["on", "ppcie"]
level = {{ authentic_only = "no reference documents for this driver yet" }}
driver_version = {{ at_least = "550.90.07" }}
vbios_version = {{ at_least = "96.00.9F" }}
identity = ["0123"]
[gpus.hosts]
"{"AB" * 64}" = ["57cd27b6a4bb3c2e"]
"0123456789abcdef" = []
[switches]
count = 4
[init_data]
accept = ["{SHA}"]
[release]
max_releases = 3
not_before = 2026-01-01T00:00:00Z
not_after = 2027-01-01T00:00:00+01:00
"""
    got = parse_conditions(text)
    assert got.cpu.tees == (Tee.SNP, Tee.TDX)
    assert got.cpu.measurement == OneOf(("aa", "bb"))
    assert got.cpu.tcb_minimum == (("snp", 23), ("microcode", 72))
    assert got.gpus is not None
    assert (got.gpus.count, got.gpus.at_least, got.gpus.level) == (2, True, Level.AUTHENTIC)
    assert (got.gpus.arch, got.gpus.mode) == (
        (Architecture.HOPPER, Architecture.BLACKWELL),
        (GpuMode.ON, GpuMode.PPCIE),
    )
    assert got.gpus.hosts == {"ab" * 64: frozenset({"57CD27B6A4BB3C2E"}), "0123456789abcdef": frozenset()}
    assert got.switches is not None
    assert got.limits.max_releases == 3
    assert got.limits.not_after is not None
    assert got.limits.not_after.utcoffset() == timedelta(0)
    assert set(got.waivers) == {
        "lab machines without reference values",
        "no reference documents for this driver yet",
    }


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        pytest.param("version = 1", "version = 2", "version", id="version"),
        pytest.param("version = 1", "version = true", "version", id="version-bool"),
        pytest.param("version = 1", "version = 1\nepoch = false", "epoch", id="epoch-bool"),
        pytest.param("version = 1", 'version = 1\nepoch = ""', "epoch", id="epoch-text"),
        pytest.param("version = 1", "version = 1\ncpu2 = 1", "cpu2", id="unknown-field"),
        pytest.param('tee = ["snp"]', "", "cpu.tee", id="no-tee"),
        pytest.param('tee = ["snp"]', 'tee = ["sgx"]', "cpu.tee", id="unknown-tee"),
        pytest.param('tee = ["snp"]', "tee = []", "cpu.tee", id="empty-tee"),
        pytest.param('{ reference = "snp_launch_measurement" }', "[]", "cpu.measurement", id="empty-set"),
        pytest.param('{ reference = "snp_launch_measurement" }', '{ unchecked = "x" }', "cpu.measurement", id="reason"),
        pytest.param('{ reference = "snp_launch_measurement" }', '{ at_least = "1" }', "cpu.measurement", id="minimum"),
        pytest.param("count = 1", "count = 0", "gpus.count", id="zero"),
        pytest.param("count = 1", "count = true", "gpus.count", id="bool"),
        pytest.param("count = 1", "count = 65", "gpus.count", id="too-many"),
        pytest.param("count = 1", "count = 1\ndistinct = false", "gpus.distinct", id="distinct"),
        pytest.param("[init_data]", "[gpus.hosts]\n[init_data]", "gpus.hosts", id="no-host"),
        pytest.param("[init_data]", "[gpus.hosts]\nrack7 = []\n[init_data]", "gpus.hosts.rack7", id="host-name"),
        pytest.param(
            "[init_data]", f"[gpus.hosts]\n{HOST} = [12]\n[init_data]", f"gpus.hosts.{HOST}", id="host-gpu-number"
        ),
        pytest.param(
            "[init_data]", f'[gpus.hosts]\n{HOST} = ["gpu0"]\n[init_data]', f"gpus.hosts.{HOST}", id="host-gpu-name"
        ),
        pytest.param(
            "[init_data]",
            f"[gpus.hosts]\n{HOST} = []\n{HOST.lower()} = []\n[init_data]",
            f"gpus.hosts.{HOST.lower()}",
            id="host-twice",
        ),
        pytest.param('mode = ["on"]', 'mode = ["unknown"]', "gpus.mode", id="unproven-mode"),
        pytest.param('mode = ["on"]', "", "gpus.mode", id="no-mode"),
        pytest.param('mode = ["on"]', 'mode = ["on"]\nlevel = "authentic"', "gpus.level", id="level-without-reason"),
        pytest.param('at_least = "535.0"', 'at_least = "535.x"', "gpus.driver_version", id="version-text"),
        pytest.param("accept =", "acept =", "init_data.acept", id="typo"),
        pytest.param("[init_data]", "[release]\nmax_releases = -1\n[init_data]", "release.max_releases", id="negative"),
        pytest.param("[init_data]", "[release]\nnot_after = 2026-01-01\n[init_data]", "release.not_after", id="date"),
        pytest.param("[init_data]", "[gpuz]\n[init_data]", "gpuz", id="unknown-table"),
        pytest.param('accept = ["sha256:', 'accept = ["md5:', "init_data.accept", id="digest"),
    ],
)
def test_what_is_refused(old: str, new: str, where: str) -> None:
    """One change to a good policy; the error names the field."""
    assert old in GPU_POLICY
    with pytest.raises(Misconfigured) as caught:
        parse_conditions(GPU_POLICY.replace(old, new))
    assert caught.value.where == where


def test_init_data_is_required() -> None:
    """The host chooses it, so leaving it out is an error; a waiver has a reason."""
    without = GPU_POLICY[: GPU_POLICY.index("[init_data]")]
    with pytest.raises(Misconfigured):
        parse_conditions(without)
    waived = parse_conditions(without + '[init_data]\nunchecked = "bare metal without Kata"\n')
    assert waived.init_data == Unchecked("bare metal without Kata")


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(max_size=300), st.text(max_size=40).map(lambda s: GPU_POLICY + s)))
def test_any_text_parses_or_is_misconfigured(text: str) -> None:
    """Nothing else leaves the parser."""
    with contextlib.suppress(Misconfigured):
        parse_conditions(text)


def references(name: str) -> ReferenceValue | None:
    expires = {"good": NOW + timedelta(days=1), "old": NOW}.get(name)
    return ReferenceValue(name=name, values=("aa",), expires=expires, provenance="test") if expires else None


@pytest.mark.parametrize(
    ("rule", "got", "base", "result", "code"),
    [
        pytest.param(OneOf(("aa",)), "AA", 10, Result.PASS, "", id="case"),
        pytest.param(OneOf(("aa",)), "ab", 10, Result.FAIL, "x-not-accepted", id="other"),
        pytest.param(AtLeast("550.90.07"), "550.90.7", 10, Result.PASS, "", id="leading-zero"),
        pytest.param(AtLeast("550.90.07"), "550.100", 10, Result.PASS, "", id="numeric"),
        pytest.param(AtLeast("550.90.07"), "550.90", 10, Result.FAIL, "x-not-accepted", id="shorter"),
        pytest.param(AtLeast("96.00.9F"), "96.00.A0.00", 16, Result.PASS, "", id="hexadecimal"),
        pytest.param(AtLeast("1"), "", 10, Result.FAIL, "x-not-accepted", id="empty"),
        pytest.param(AtLeast("1"), "2-evil", 10, Result.FAIL, "x-not-accepted", id="text"),
        pytest.param(Reference("good"), "AA", 10, Result.PASS, "", id="reference"),
        pytest.param(Reference("good"), "bb", 10, Result.FAIL, "x-unknown", id="reference-other"),
        pytest.param(Reference("old"), "aa", 10, Result.FAIL, "reference-value-expired", id="reference-expired"),
        pytest.param(Reference("none"), "aa", 10, Result.FAIL, "reference-value-missing", id="reference-missing"),
        pytest.param(Unchecked("because we said so"), "?", 10, Result.WARN, "", id="unchecked"),
    ],
)
def test_rules(rule: Rule, got: str, base: int, result: Result, code: str) -> None:
    """Each kind of rule, both ways; expiry counts from the very moment."""
    finding = check_rule(rule, got, check="x", subject="s", references=references, now=NOW, base=base)
    assert (finding.result, finding.code) == (result, code)


_RULES: list[tuple[str, object, Rule | None]] = [
    ("text", "Genoa", OneOf(("genoa",))),
    ("list", ["A", "b"], OneOf(("a", "b"))),
    ("list-longest", ["a"] * 4096, OneOf(("a",) * 4096)),
    ("list-too-long", ["a"] * 4097, None),
    ("list-empty", [], None),
    ("list-of-numbers", [1], None),
    ("list-of-both", ["a", 1], None),
    ("minimum", {"at_least": "1.2"}, AtLeast("1.2")),
    ("minimum-number", {"at_least": 1}, None),
    ("minimum-empty", {"at_least": ""}, None),
    ("reference", {"reference": "name"}, Reference("name")),
    ("reference-empty", {"reference": ""}, None),
    ("reason-of-8", {"unchecked": "8 chars!"}, Unchecked("8 chars!")),
    ("reason-of-7", {"unchecked": "7 chars"}, None),
    ("word-unknown", {"ignored": "a long reason"}, None),
    ("two-words", {"reference": "name", "unchecked": "a long reason"}, None),
    ("no-word", {}, None),
    ("number", 1, None),
    ("true", True, None),
]


@pytest.mark.parametrize(("value", "rule"), [pytest.param(v, r, id=i) for i, v, r in _RULES])
def test_how_a_rule_is_written(value: object, rule: Rule | None) -> None:
    if rule is not None:
        assert parse_rule(value, "x") == rule
        return
    with pytest.raises(Misconfigured) as caught:
        parse_rule(value, "x")
    assert (caught.value.code, caught.value.where) == ("policy-rule", "x")


_IDENTITY, _WAIVED = 'identity = ["0123"]', 'identity = { unchecked = "any GPU of ours" }'
_HOSTS = '[gpus.hosts]\n0123456789ABCDEF = ["0000000000000001"]'


@pytest.mark.parametrize(
    ("line", "named", "waivers"),
    [
        pytest.param("", False, [], id="nobody"),
        pytest.param(_IDENTITY, True, [], id="identities"),
        pytest.param(_WAIVED, False, ["any GPU of ours"], id="waived"),
        pytest.param(_HOSTS, True, [], id="hosts"),
        pytest.param(f"{_WAIVED}\n{_HOSTS}", True, ["any GPU of ours"], id="waived-and-hosts"),
        pytest.param('level = { authentic_only = "no documents" }', False, ["no documents"], id="level"),
    ],
)
def test_what_a_policy_names_and_waives(line: str, named: bool, waivers: list[str]) -> None:
    got = parse_conditions(GPU_POLICY.replace("[init_data]", f"{line}\n[init_data]"))
    assert got.gpus is not None
    assert got.gpus.names_identities is named
    assert list(got.waivers) == ["the reference documents name the versions", *waivers]
    without = GPU_POLICY[: GPU_POLICY.index("[gpus]")] + GPU_POLICY[GPU_POLICY.index("[init_data]") :]
    assert parse_conditions(without).waivers == ()


@pytest.mark.parametrize(
    ("value", "status"),
    [(-1, "none"), (0, "none"), (1, "none"), (2, "affirming"), (31, "affirming"), (-2, "affirming"), (-32, "affirming"),
     (32, "warning"), (95, "warning"), (-33, "warning"), (-96, "warning"), (96, "contraindicated"),
     (127, "contraindicated"), (-97, "contraindicated"), (-128, "contraindicated")],
)  # fmt: skip
def test_tiers(value: int, status: str) -> None:
    """The boundaries of AR4SI."""
    assert tier(value) is Status(status)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"hardware": 258}, id="wraps-to-affirming-upstream"),
        pytest.param({"hardware": 2.5}, id="fraction"),
        pytest.param({"hardware": True}, id="bool"),
        pytest.param({"hardware": "2"}, id="text"),
        pytest.param({"nosuch": 2}, id="unknown-name"),
        pytest.param({}, id="empty"),
    ],
)
def test_bad_trust_claims(answer: dict[str, object]) -> None:
    """Upstream wraps around or panics; here they are Malformed."""
    with pytest.raises(Malformed):
        vector_of(answer)  # type: ignore[arg-type]


@given(st.dictionaries(st.sampled_from(CLAIMS), st.integers(-200, 200), max_size=8))
def test_vector_status_is_the_worst(values: dict[str, int]) -> None:
    """For any claims: the worst tier, or Malformed."""
    try:
        vector = TrustVector(values)
    except AttestationError:
        assert not values or any(not -128 <= v <= 127 for v in values.values())
        return
    order = list(Status)
    assert order.index(vector.status) == max(order.index(tier(v)) for v in values.values())


def test_the_documented_policy_parses() -> None:
    """The example of docs/policies.md."""
    from pathlib import Path

    text = (Path(__file__).resolve().parents[3] / "docs" / "policies.md").read_text()
    conditions = parse_conditions(text.split("```toml\n")[1].split("```")[0])
    assert conditions.gpus is not None
    assert conditions.gpus.count == 8
