"""Cases gpu-139 to gpu-147 and gpu-150 to gpu-153: sets of devices and policy (gpu-attestation.md 8.6)."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from attestation.errors import AttestationError, Misconfigured, Unavailable
from attestation.findings import Result, passed
from attestation.formats.nv_evidence import NvEvidence, decode_report, parse_evidence
from attestation.simulate.nvidia import LINKS, ForgedEvidence
from attestation.values import GpuMode, Level, Nonce
from attestation.verify.nv_policy import AtLeast, Exactly, ExpiryMode, NvPolicy, OneOf, SignerExpiry, Unchecked
from attestation.verify.nv_set import DeviceOutcome, Expected, SetResult, verify_set
from attestation.verify.topology import check_set
from tests.attestation.gpu.support import (
    BLACKWELL,
    FORGE,
    FORGED,
    GENUINE,
    HOPPER,
    LS10,
    NONCE,
    REPORTED,
    SHELF,
    falls_short,
    find,
    policy,
    recorded,
    refused,
    verify,
)

BOARD = FORGE.board(nonce=NONCE)
FULL = Expected(gpus=8, switches=4)


def judge(board: Sequence[ForgedEvidence | NvEvidence], *, expected: Expected = FULL) -> SetResult:
    evidence = [NvEvidence(report=one.report, chain=one.chain) for one in board]
    return verify_set(evidence, expected=expected, nonce=Nonce(NONCE), collateral=FORGED)


def with_gpu(position: int, **changes: object) -> list[ForgedEvidence]:
    board = list(BOARD)
    options = {"mode": GpuMode.PPCIE, "nonce": NONCE, **changes}
    board[position] = FORGE.device(HOPPER, position, **options)  # type: ignore[arg-type]
    return board


def with_switch(position: int, **changes: object) -> list[ForgedEvidence]:
    board = list(BOARD)
    board[8 + position] = FORGE.device(LS10, position, nonce=NONCE, **changes)  # type: ignore[arg-type]
    return board


def test_forged_board_is_trusted() -> None:
    result = judge(BOARD)
    assert result.level is Level.TRUSTED
    assert {p.device.mode for p in result.proofs[:8]} == {GpuMode.PPCIE}
    assert any(f.check == "topology" and f.result is Result.PASS for f in result.findings)


def links(*, reverse: bool = True, last: bytes | None = None) -> dict[int, bytes | None]:
    """The links of a GPU, one of them replaced, or not reversed as GPUs do."""
    pdis = [FORGE.pdi(LS10, link % 4) for link in range(LINKS)]
    if last is not None:
        pdis[-1] = last
    return {22: b"".join(pdi[::-1] if reverse else pdi for pdi in pdis)}


STRANGER = FORGE.pdi(LS10, 9)
SETS: list[tuple[str, Callable[[], list[ForgedEvidence]], str]] = [
    ("139-one-gpu-one-switch", lambda: [BOARD[0]] * 8 + [BOARD[8]] * 4, "device-duplicate"),
    ("140-three-switches-and-a-copy", lambda: [*BOARD[:11], BOARD[8]], "device-duplicate"),
    ("141-seven-and-five", lambda: [*BOARD[:7], *BOARD[8:], FORGE.device(LS10, 4, nonce=NONCE)], "device-count"),
    ("142-one-gpu-not-protected", lambda: with_gpu(3, tlvs={21: b"\x55", 36: b"\x00\x00"}), "ppcie-off"),
    ("143-switch-not-locked", lambda: with_switch(2, tlvs={25: b"\x00\x00"}), "switch-unlocked"),
    ("144-link-to-a-stranger", lambda: with_gpu(5, tlvs=links(last=STRANGER)), "topology-edge"),
    ("144-switch-lists-a-stranger",
     lambda: with_switch(1, tlvs={26: FORGE.elements(LS10, 1, GpuMode.ON)[26].replace(FORGE.pdi(HOPPER, 6), STRANGER)}),
     "topology-edge"),
    ("144-switch-is-another", lambda: with_switch(1, tlvs={22: STRANGER}), "topology-edge"),
    ("144-no-port-leads-there",
     lambda: with_switch(1, tlvs={26: FORGE.elements(LS10, 1, GpuMode.ON)[26][:64] + b"\xff" * 64}), "topology-edge"),
    ("145-not-reversed", lambda: with_gpu(0, tlvs=links(reverse=False)), "topology-edge"),
    ("146-mode-mix", lambda: with_gpu(4, mode=GpuMode.ON), "mode-mix"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "code"), [pytest.param(m, c, id=f"gpu-{name}") for name, m, c in SETS])
def test_board(make: Callable[[], list[ForgedEvidence]], code: str) -> None:
    """One thing is wrong with a board of 12 genuine-looking devices."""
    result = judge(make())
    assert result.level is Level.NONE
    assert code in {f.code for f in result.findings if f.result is Result.FAIL}


@pytest.mark.parametrize(
    ("make", "expected", "code"),
    [
        pytest.param(lambda: BOARD[:1], Expected(gpus=1), None, id="gpu-141-one-gpu-alone"),
        pytest.param(lambda: BOARD[:2], Expected(gpus=2), "ppcie-incomplete", id="gpu-141-two-gpus"),
        pytest.param(
            lambda: [BOARD[0], BOARD[8]], Expected(gpus=1, switches=1), "ppcie-incomplete", id="gpu-141-gpu-and-switch"
        ),
        pytest.param(
            lambda: [FORGE.device(nonce=NONCE), BOARD[8]],
            Expected(gpus=1, switches=1),
            None,
            id="gpu-141-not-protected",
        ),
    ],
)
def test_who_must_be_a_whole_board(
    make: Callable[[], list[ForgedEvidence]], expected: Expected, code: str | None
) -> None:
    """Protected GPUs that have company, of either kind."""
    failing = {f.code for f in judge(make(), expected=expected).findings if f.result is Result.FAIL}
    assert ("ppcie-incomplete" in failing) == (code is not None)
    assert code is not None or not failing


def test_a_set_of_nothing_fails() -> None:
    assert [f.code for f in check_set(())] == ["device-missing"]


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-139-names-the-one")])
def test_only_the_one_that_is_there_twice_is_named(_case: None) -> None:
    finding = find(judge([BOARD[0], BOARD[0], BOARD[1]], expected=Expected(gpus=3)).findings, "device-duplicate")
    assert FORGE.chip_id(HOPPER, 0) in finding.got
    assert FORGE.chip_id(HOPPER, 1) not in finding.got


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-146-names-the-odd-one")])
def test_only_the_one_of_another_mode_is_named(_case: None) -> None:
    finding = find(judge(with_gpu(4, mode=GpuMode.ON)).findings, "mode-mix")
    assert finding.got.startswith(f"{FORGE.chip_id(HOPPER, 4)}: flag")


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-144-names-the-edge")])
def test_the_failing_edge_is_named(_case: None) -> None:
    found = [f for f in judge(with_gpu(5, tlvs=links(last=STRANGER))).findings if f.code == "topology-edge"]
    assert FORGE.chip_id(HOPPER, 5) in {f.subject for f in found}
    assert any(STRANGER.hex() in f.got for f in found)


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-146-mpt-and-spt")])
def test_mpt_and_spt(_case: None) -> None:
    pair = [
        FORGE.device(BLACKWELL, 0, nonce=NONCE, tlvs={36: b"\x01\x00"}),
        FORGE.device(BLACKWELL, 1, nonce=NONCE, tlvs={36: b"\x00\x00"}),
    ]
    result = judge(pair, expected=Expected(gpus=2))
    assert (result.level, find(result.findings, "mode-mix").check) == (Level.NONE, "one-mode")


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-147-nonce-differs")])
def test_one_nonce_differs(_case: None) -> None:
    result = judge(with_gpu(2, nonce=NONCE[::-1]))
    assert result.level is Level.NONE
    assert [o.position for o in result.outcomes if o.refusal and o.refusal.code == "nonce-mismatch"] == [2]


class FailingSource:
    """Documents for everybody, an error for one architecture."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def rims(self, rim_id: str) -> Sequence[bytes]:
        if "SWITCH" in rim_id:
            raise self.error
        return SHELF.rims(rim_id)


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-150-error-in-one-device")])
def test_error_in_one_device(_case: None) -> None:
    """An error of ours in one device is that device's outcome; any other one leaves no verdict at all."""
    pair = [NvEvidence(report=one.report, chain=one.chain) for one in (FORGE.device(nonce=NONCE), BOARD[8])]
    good = verify_set(pair, expected=Expected(gpus=1, switches=1), nonce=Nonce(NONCE), collateral=FORGED)
    failing = replace(FORGED, rims=FailingSource(Unavailable("store-down", "the store is down")))
    result = verify_set(pair, expected=Expected(gpus=1, switches=1), nonce=Nonce(NONCE), collateral=failing)
    assert result.level is Level.NONE
    assert [o.level for o in result.outcomes] == [Level.TRUSTED, Level.NONE]
    assert result.outcomes[0].proof is not None
    assert good.outcomes[0].proof is not None
    assert result.outcomes[0].proof.device == good.outcomes[0].proof.device
    broken = replace(FORGED, rims=FailingSource(RuntimeError("a bug")))
    with pytest.raises(RuntimeError):
        verify_set(pair, expected=Expected(gpus=1, switches=1), nonce=Nonce(NONCE), collateral=broken)


def test_results_have_no_truth_value() -> None:
    with pytest.raises(TypeError, match=r"ask \.level"):
        bool(judge(BOARD))


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-057-as-many-as-fit")])
def test_sets_have_a_size(_case: None) -> None:
    nothing = NvEvidence(report=b"", chain=b"")
    result = verify_set([nothing] * 64, expected=Expected(gpus=64), nonce=Nonce(NONCE), collateral=FORGED)
    assert (result.level, result.proofs, len(result.outcomes)) == (Level.NONE, (), 64)
    refused(
        "evidence-empty",
        lambda: verify_set([nothing] * 65, expected=Expected(gpus=64), nonce=Nonce(NONCE), collateral=FORGED),
    )


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-151-token-or-not")])
def test_claims_follow_the_verdict(_case: None) -> None:
    """Claims are computed with every verdict, asked for or not, and serialise to the same JSON twice."""
    first, second = verify(FORGE.device(nonce=NONCE)), verify(FORGE.device(nonce=NONCE))
    assert first == second
    assert json.dumps(first.claims) == json.dumps(second.claims)
    assert (first.claims["measres"], first.claims["cgpu-level"]) == ("success", str(first.level))


EVERYTHING_UNCHECKED = NvPolicy(
    driver=Unchecked("test"), vbios=Unchecked("test"), fwid=Unchecked("test"), chip_ids=Unchecked("test"),
    unknown_opaque=Unchecked("test"), revocation=REPORTED,
)  # fmt: skip


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-152-policy-cannot-excuse")])
def test_policy_cannot_replace_a_mandatory_check(_case: None) -> None:
    """With every field unchecked: a wrong measurement, nonce or signature still fails; a named waiver is repeated."""
    lax = replace(FORGED, policy=EVERYTHING_UNCHECKED)
    assert verify(FORGE.device(nonce=NONCE), lax).level is Level.TRUSTED
    wrong = FORGE.device(nonce=NONCE, measurements={9: bytes(48)})
    falls_short(verify(wrong, lax), "measurement-mismatch")
    refused("nonce-mismatch", lambda: verify(FORGE.device(nonce=NONCE[::-1]), lax))
    evidence = FORGE.device(nonce=NONCE)
    flipped = replace(evidence, report=evidence.report[:-1] + bytes([evidence.report[-1] ^ 1]))
    refused("report-signature", lambda: verify(flipped, lax))
    refused("fwid-mismatch", lambda: verify(FORGE.device(nonce=NONCE, tlvs={20: bytes(48)}), lax))
    skipped = next(f for f in verify(evidence, lax).findings if f.check == "driver-version")
    assert skipped.expected == "unchecked: test"


@pytest.mark.parametrize("_case", [pytest.param(None, id="gpu-153-nonce-in-the-envelope")])
def test_nonce_of_the_envelope_is_nothing(vectors: Path, _case: None) -> None:
    """Recorded evidence carries its own nonce: it is not even kept, and does not make anything fresh."""
    path = vectors / "nvidia/hopper_evidence.json"
    (one,) = recorded(path)
    assert not hasattr(one, "nonce")
    assert verify(one, GENUINE, nonce=None).level is Level.AUTHENTIC
    document = json.loads(path.read_text())
    document[0]["nonce"] = NONCE.hex()
    (other,) = parse_evidence(json.dumps(document).encode())
    refused("nonce-mismatch", lambda: verify(other, GENUINE))


def test_a_version_is_at_least_itself() -> None:
    driver = verify(FORGE.device(nonce=NONCE)).driver_version
    assert verify(FORGE.device(nonce=NONCE), policy(driver=AtLeast(driver))).level is Level.TRUSTED


def test_policies_do_not_change_with_what_they_were_made_of() -> None:
    pins, seen = {"NV": frozenset({"00"})}, {"00": FORGED.now}
    made, expiry = NvPolicy(rim_pins=pins), SignerExpiry(mode=ExpiryMode.FIRST_SEEN, first_seen=seen)
    pins.clear()
    seen.clear()
    assert (made.rim_pins, expiry.first_seen) == ({"NV": frozenset({"00"})}, {"00": FORGED.now})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"driver": AtLeast("591.0")}, "policy-driver-version"),
        ({"driver": Exactly("590.13")}, "policy-driver-version"),
        ({"vbios": AtLeast("96.00.A6", base=16)}, "policy-vbios-version"),
        ({"chip_ids": OneOf(frozenset({"0000000000000000"}))}, "policy-chip-id"),
    ],
    ids=["driver-minimum", "driver-exact", "vbios-minimum", "chip-id"],
)
def test_policy_tightens(changes: dict[str, object], code: str) -> None:
    falls_short(verify(FORGE.device(nonce=NONCE), policy(**changes)), code)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Unchecked(" "),
        lambda: OneOf(frozenset()),
        lambda: AtLeast("550.x"),
        lambda: NvPolicy(trailing_zeros=65),
        lambda: Expected(gpus=65),
        lambda: Expected(gpus=-1, switches=2),
        lambda: Expected(gpus=2, switches=-1),
        lambda: SetResult(outcomes=(), findings=()),
        lambda: SetResult(outcomes=(), findings=(passed("device-count"),)),
        lambda: SetResult(outcomes=(DeviceOutcome(position=0, proof=None, refusal=None),), findings=()),
    ],
)
def test_unusable_policy(make: Callable[[], object]) -> None:
    with pytest.raises(Misconfigured):
        make()


def test_default_policy_demands_revocation_answers() -> None:
    """Without stored answers a device is never trusted under the default policy."""
    falls_short(verify(FORGE.device(nonce=NONCE), replace(FORGED, policy=NvPolicy())), "revocation-unknown")


@pytest.mark.parametrize(
    ("document", "code"),
    [
        (b"{", "evidence-json"),
        (b"[" * 100_000, "evidence-json"),
        (b"[]", "evidence-empty"),
        (b"[1]", "evidence-json"),
        (b'[{"evidence": 1}]', "evidence-json"),
        (b'[{"evidence": "AA==", "certificate": "*"}]', "base64"),
        (b'[{"a": 1, "a": 2}]', "evidence-json"),
        (b'[{"evidence": "AA==", "evidence": "AA==", "certificate": "AA=="}]', "evidence-json"),
        (b'{"evidence_list": 1}', "evidence-json"),
        (b'{"evidence_list": "ab"}', "evidence-json"),
        (b'[{"evidence": "AA==", "certificate": "AA==", "arch": "VOLTA"}]', "arch-unknown"),
        (b"\xff", "evidence-json"),
        (b" " * (2 * 1024 * 1024 + 1), "evidence-size"),
        (json.dumps([{}] * 65).encode(), "evidence-json"),
    ],
)
def test_bad_evidence_json(document: bytes, code: str) -> None:
    refused(code, lambda: parse_evidence(document))


@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param("evidence", 8 * 1024, id="report"), pytest.param("certificate", 16 * 1024, id="chain")],
)
def test_members_have_a_size(name: str, size: int) -> None:
    """Twice the bytes that they may stand for."""
    for length, code in ((2 * size, "base64"), (2 * size + 1, "evidence-size")):
        entry = {"evidence": "AA==", "certificate": "AA=="} | {name: "*" * length}
        refused(code, partial(parse_evidence, json.dumps([entry]).encode()))


def test_evidence_files_have_a_size() -> None:
    refused("evidence-json", lambda: parse_evidence(b" " * (2 * 1024 * 1024)))
    refused("base64", lambda: decode_report(b"*" * (64 * 1024)))
    refused("report-size", lambda: decode_report(b"*" * (64 * 1024 + 1)))
    for read in (parse_evidence, decode_report):
        with pytest.raises(TypeError):
            read("[]")  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            read(bytearray(FORGE.device(nonce=NONCE).report))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "spell",
    [
        pytest.param(bytes, id="raw"),
        pytest.param(lambda raw: raw.hex().encode(), id="hex"),
        pytest.param(lambda raw: b"".join(b"\\x%02X" % byte for byte in raw), id="escapes"),
        pytest.param(lambda raw: b", ".join(b"0x%02x" % byte for byte in raw), id="list"),
        pytest.param(base64.encodebytes, id="base64"),
    ],
)
def test_spellings_of_a_report(spell: Callable[[bytes], bytes]) -> None:
    report = FORGE.device(nonce=NONCE).report
    assert decode_report(spell(report)) == report


def test_every_refusal_has_a_sentence() -> None:
    with pytest.raises(AttestationError, match="claims another architecture"):
        verify(FORGE.device(nonce=NONCE), arch=LS10)
