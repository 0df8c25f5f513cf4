"""The cookie of a challenge: what `seal` wrote comes back, and nothing else does."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.broker.cookie import COOKIE_CHARS, ChallengeCookies
from attestation.broker.session import Challenged
from attestation.crypto.b64 import b64
from attestation.errors import Untrusted
from attestation.values import NONCE_BYTES, BindingProfile, Tee

NOW = datetime(2026, 11, 21, tzinfo=UTC)
COOKIES = ChallengeCookies(bytes(range(32)))
CHALLENGED = Challenged(tee=Tee.SNP, nonce=b64(bytes(range(NONCE_BYTES))), expires=NOW + timedelta(minutes=5))


def refused(cookie: str, cookies: ChallengeCookies = COOKIES, now: datetime = NOW) -> bool:
    with pytest.raises(Untrusted) as caught:
        cookies.open(cookie, now=now)
    return caught.value.code == "session-unknown"


@pytest.mark.parametrize(("tee", "profile"), list(product(Tee, BindingProfile)))
def test_a_challenge_comes_back(tee: Tee, profile: BindingProfile) -> None:
    """Every kind of it, in lower-case hexadecimal of one length."""
    challenged = replace(CHALLENGED, tee=tee, profile=profile)
    cookie = COOKIES.seal(challenged)
    assert len(cookie) == COOKIE_CHARS
    assert not cookie.strip("0123456789abcdef")
    assert COOKIES.open(cookie, now=NOW) == challenged


def test_it_ends() -> None:
    """At the very moment that it says, and cannot be made to last longer."""
    cookie = COOKIES.seal(CHALLENGED)
    assert COOKIES.open(cookie, now=CHALLENGED.expires - timedelta(milliseconds=1)) == CHALLENGED
    assert refused(cookie, now=CHALLENGED.expires)


@pytest.mark.parametrize("bit", range(4 * COOKIE_CHARS))
def test_a_flipped_bit_is_refused(bit: int) -> None:
    """Of TEE, profile, end, nonce or MAC."""
    raw = bytearray(bytes.fromhex(COOKIES.seal(CHALLENGED)))
    raw[bit // 8] ^= 1 << bit % 8
    assert refused(raw.hex())


def test_every_other_length_is_refused() -> None:
    """Every prefix, and more at the end."""
    cookie = COOKIES.seal(CHALLENGED)
    assert all(refused(cookie[:size]) for size in range(len(cookie)))
    assert refused(cookie + "0")
    assert refused(cookie + "00")


@pytest.mark.parametrize(
    "change", [str.upper, lambda c: " " + c[1:], lambda c: c[:-2] + "0x", lambda c: c[:-1] + "\u0660"]
)
def test_one_text_for_one_challenge(change: object) -> None:
    """The row that spends a challenge is found by the text: another text of the same bytes would be another row."""
    assert callable(change)
    changed = change(COOKIES.seal(CHALLENGED))
    assert len(changed) == COOKIE_CHARS
    assert refused(changed)


def test_another_store_knows_none_of_ours() -> None:
    """The key is the store's."""
    assert refused(COOKIES.seal(CHALLENGED), ChallengeCookies(bytes(32)))


@given(st.text(max_size=2 * COOKIE_CHARS))
def test_any_text_is_refused(text: str) -> None:
    """And nothing but our error leaves."""
    assert refused(text)
