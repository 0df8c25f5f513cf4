"""A device that attests again: what is remembered about it changes no result, whatever is different this time."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.errors import AttestationError
from attestation.formats.spdm import parse_report, reread_report
from attestation.simulate.nvidia import ForgedEvidence
from attestation.values import Level
from attestation.verify.nv_gpu import Collateral, NvCache
from attestation.verify.nv_policy import Exactly, OneOf
from attestation.verify.revocation import NoRevocation
from attestation.verify.rim import RimShelf
from attestation.verify.verified import VerifiedDevice
from tests.attestation.gpu.support import FORGE, FORGED, HOPPER, LS10, NONCE, POLICY, verify

OTHER_NONCE = bytes(range(2, 34))
FIRST = {arch: FORGE.device(arch, nonce=OTHER_NONCE) for arch in (HOPPER, LS10)}
AGAIN = {arch: FORGE.device(arch, nonce=NONCE) for arch in (HOPPER, LS10)}


def outcome(evidence: ForgedEvidence, collateral: Collateral) -> VerifiedDevice | str:
    try:
        return verify(evidence, collateral)
    except AttestationError as exc:
        return exc.code


def knowing() -> Collateral:
    """Collateral whose cache has seen both devices under another nonce."""
    collateral = replace(FORGED, cache=NvCache())
    for evidence in FIRST.values():
        assert verify(evidence, collateral, nonce=OTHER_NONCE).level is Level.TRUSTED
    return collateral


KNOWING = knowing()


def same_with_and_without_memory(evidence: ForgedEvidence, collateral: Collateral = KNOWING) -> VerifiedDevice | str:
    cold = outcome(evidence, replace(collateral, cache=NvCache()))
    assert outcome(evidence, collateral) == cold
    assert outcome(evidence, collateral) == cold
    return cold


@pytest.mark.parametrize("arch", [HOPPER, LS10])
def test_the_same_again(arch: object) -> None:
    evidence = AGAIN[arch]  # type: ignore[index]
    device = same_with_and_without_memory(evidence)
    assert isinstance(device, VerifiedDevice)
    assert (device.level, device.nonce.raw, device.claims["eat_nonce"]) == (Level.TRUSTED, NONCE, NONCE.hex())


@settings(max_examples=120, deadline=None, derandomize=True)
@given(offset=st.integers(0, len(AGAIN[HOPPER].signed) - 1), bit=st.integers(0, 7), signed=st.booleans())
def test_any_bit_of_the_report(offset: int, bit: int, signed: bool) -> None:
    """Changed before the device signed, and changed on the way."""

    def flip(data: bytes) -> bytes:
        return data[:offset] + bytes([data[offset] ^ 1 << bit]) + data[offset + 1 :]

    good = AGAIN[HOPPER]
    evidence = good.resign(flip(good.signed)) if signed else replace(good, report=flip(good.report))
    got = same_with_and_without_memory(evidence)
    assert isinstance(got, str) or (signed and got.signed_digest != verify(good).signed_digest)


_CHANGES: list[tuple[str, Callable[[Collateral], Collateral]]] = [
    ("policy-chip", lambda c: replace(c, policy=replace(POLICY, chip_ids=OneOf(frozenset({"0" * 16}))))),
    ("policy-driver", lambda c: replace(c, policy=replace(POLICY, driver=Exactly("1.2")))),
    ("no-documents", lambda c: replace(c, rims=RimShelf({}))),
    ("one-document", lambda c: replace(c, rims=RimShelf({i: (d,) for i, d in list(FORGE.rims().items())[:1]}))),
    ("expired", lambda c: replace(c, now=c.now.replace(year=2099))),
    ("roots", lambda c: replace(c, trust=replace(c.trust, simulated=not c.trust.simulated))),
]


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in _CHANGES])
def test_another_policy_store_time_or_trust(change: Callable[[Collateral], Collateral]) -> None:
    same_with_and_without_memory(AGAIN[HOPPER], change(KNOWING))
    assert verify(AGAIN[HOPPER], KNOWING).level is Level.TRUSTED


def test_only_nonces_and_signature_may_differ() -> None:
    before = parse_report(FIRST[HOPPER].report)
    report = AGAIN[HOPPER].report
    again = reread_report(report, before)
    assert again == parse_report(report)
    assert again is not None
    assert reread_report(report + b"\0", before) is None
    assert reread_report(report[:-1], before) is None
    assert reread_report(AGAIN[LS10].report, before) is None
    longer = parse_report(FIRST[HOPPER].report + b"\0", max_trailing_zeros=1)
    assert reread_report(report, longer) is None, "what was said of the zero is not said of this one"


def shared(cache: NvCache, like: Collateral) -> Collateral:
    """What `verify_platform` takes from its cache."""
    return cache.collateral(
        trust=like.trust, rims=like.rims, revocation=like.revocation, policy=like.policy, now=like.now
    )


def test_what_is_shared_within_a_second() -> None:
    """The same object, dated at the second's beginning; a second later another one."""
    cache, late = NvCache(), replace(FORGED, now=FORGED.now + timedelta(microseconds=999_999))
    first = shared(cache, late)
    assert (first.now, first.cache) == (FORGED.now, cache)
    assert shared(cache, FORGED) is first
    assert shared(cache, replace(FORGED, now=FORGED.now + timedelta(seconds=1))) is not first
    assert shared(cache, replace(FORGED, now=FORGED.now - timedelta(microseconds=1))) is not first


@pytest.mark.parametrize(
    "change",
    [
        *(pytest.param(change, id=name) for name, change in _CHANGES),
        pytest.param(lambda c: replace(c, revocation=NoRevocation()), id="revocation"),
    ],
)
def test_nothing_is_shared_with_another_policy_store_time_or_trust(change: Callable[[Collateral], Collateral]) -> None:
    """Whatever was judged a moment before."""
    cache = NvCache()
    before = shared(cache, FORGED)
    assert verify(AGAIN[HOPPER], before).level is Level.TRUSTED
    changed = change(FORGED)
    after = shared(cache, changed)
    assert after is not before
    assert outcome(AGAIN[HOPPER], after) == outcome(AGAIN[HOPPER], replace(changed, cache=NvCache()))
    assert verify(AGAIN[HOPPER], shared(cache, FORGED)).level is Level.TRUSTED
