"""JWE for TEE keys: known answers of the KBS protocol, round trips, and everything that must not open."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.crypto.b64 import b64url
from attestation.crypto.jwe import TeePrivateKey, parse_sealed, seal, unseal
from attestation.crypto.jwk import parse_tee_key, tee_key_of, thumbprint
from attestation.errors import Malformed, Untrusted
from attestation.values import Secret

PROTECTED = (
    "eyJhbGciOiJFQ0RILUVTK0EyNTZLVyIsImVuYyI6IkEyNTZHQ00iLCJlcGsiOnsiY3J2IjoiUC0yNTYiLCJrdHkiOiJFQyIsIngiOiJIWjY0TE"
    "hmRjNzOHpKb1ZQeFNwQWdJZnlFT3NHQTRuSjhRZGxnWmNZMWxzIiwieSI6IkFyZVNnUXoxVDVSRk9ORnFWYUhRajZDRUlZOF9hMnhadXctUnhK"
    "bmZ0cEkifX0"
)
RSA_KEY = rsa.generate_private_key(65537, 2048)


def scalar(label: str) -> int:
    return int.from_bytes(hashlib.sha256(label.encode()).digest(), "big")


def known_random(size: int) -> bytes:
    """CEK 00..1f, ephemeral d = sha256("kbs-kat-ephemeral"), iv 00..0b."""
    if size in (40, 74):
        return (scalar("kbs-kat-ephemeral") - 1).to_bytes(size, "big")
    return bytes(range(size))


def recipient(curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(scalar("kbs-kat-recipient"), curve)


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-050-concat-kdf-p256")])
def test_known_answer_p256(_case: None) -> None:
    """The sealed bytes equal the known answer, member by member."""
    key = recipient(ec.SECP256R1())
    assert tee_key_of(key.public_key()).jwk["x"] == "vRn2nA4lgkUdcrJGt7i1vUd-fxLRpfiHS5Ax52bm59E"
    sealed = seal(Secret(b"shhhhhhh"), tee_key_of(key.public_key()), random=known_random)
    assert sealed.to_json() == {
        "protected": PROTECTED,
        "encrypted_key": "yDujRBMGhgbt8vQo2k5tZpnLNgTkg825GHhXe9cAcpAz2Z_tdbwJDA",
        "iv": "AAECAwQFBgcICQoL",
        "ciphertext": "NGq-c62NqnM",
        "tag": "k8fOw8jNIP01b1Jmf9KlHw",
    }
    assert list(sealed.to_json()) == ["protected", "encrypted_key", "iv", "ciphertext", "tag"]
    assert unseal(sealed, key) == Secret(b"shhhhhhh")


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-050-concat-kdf-p521")])
def test_known_answer_p521(_case: None) -> None:
    """P-521: Z is 66 bytes, left-padded."""
    key = recipient(ec.SECP521R1())
    sealed = seal(Secret(b"shhhhhhh"), tee_key_of(key.public_key()), random=known_random)
    assert sealed.encrypted_key == "1YP7TwGF0AzWdm8NLGoVrjxfThniawM74vL3TEc5NvaQVZXBWsE6lw"
    assert sealed.tag == "ALOOGy2WNDC3UcPCiUFaZw"
    assert unseal(sealed, key) == Secret(b"shhhhhhh")


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(recipient(ec.SECP256R1()), id="kbs-047-p256"),
        pytest.param(recipient(ec.SECP521R1()), id="kbs-047-p521"),
        pytest.param(RSA_KEY, id="kbs-051-rsa"),
    ],
)
def test_header_bytes_are_serdes(key: TeePrivateKey) -> None:
    """Parsing and re-serialising the header the way serde does gives the same bytes."""
    sealed = seal(Secret(b""), tee_key_of(key.public_key()), random=known_random)
    text = base64.urlsafe_b64decode(sealed.protected + "=" * (-len(sealed.protected) % 4)).decode("ascii")
    header = json.loads(text)
    rest = {name: header[name] for name in sorted(set(header) - {"alg", "enc"})}
    rest = {n: dict(sorted(v.items())) if isinstance(v, dict) else v for n, v in rest.items()}
    again = json.dumps({"alg": header["alg"], "enc": header["enc"], **rest}, separators=(",", ":"))
    assert text == again
    assert sealed.ciphertext == ""
    assert unseal(sealed, key) == Secret(b"")


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["P-256", "P-521", "RSA"]))
def test_round_trip(plaintext: bytes, kind: str) -> None:
    """What was sealed opens, for every kind of key."""
    keys: dict[str, TeePrivateKey] = {
        "P-256": recipient(ec.SECP256R1()),
        "P-521": recipient(ec.SECP521R1()),
        "RSA": RSA_KEY,
    }
    sealed = seal(Secret(plaintext), tee_key_of(keys[kind].public_key()), random=known_random)
    assert unseal(parse_sealed(json.loads(json.dumps(sealed.to_json()))), keys[kind]).expose() == plaintext


def test_other_key_and_any_changed_byte_are_refused() -> None:
    """Another recipient, and every member with one byte changed, opens nothing."""
    key = recipient(ec.SECP256R1())
    sealed = seal(Secret(b"shhhhhhh"), tee_key_of(key.public_key()), random=known_random)
    with pytest.raises(Untrusted):
        unseal(sealed, ec.derive_private_key(7, ec.SECP256R1()))
    for name, text in sealed.to_json().items():
        changed = ("A" if text[0] != "A" else "B") + text[1:]
        with pytest.raises((Untrusted, Malformed)):
            unseal(parse_sealed({**sealed.to_json(), name: changed}), key)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"aad": "AA"}, id="kbs-046-aad"),
        pytest.param({"header": {}}, id="kbs-046-header"),
        pytest.param({"iv": None}, id="iv-null"),
        pytest.param({"protected": "A" * 2000}, id="long-header"),
    ],
)
def test_other_members_are_malformed(change: dict[str, object]) -> None:
    """Exactly five string members."""
    sealed = seal(Secret(b"x"), tee_key_of(recipient(ec.SECP256R1()).public_key()), random=known_random)
    with pytest.raises(Malformed):
        parse_sealed({**sealed.to_json(), **change})


GOOD = tee_key_of(recipient(ec.SECP256R1()).public_key()).jwk
RSA_JWK = tee_key_of(RSA_KEY.public_key()).jwk


@pytest.mark.parametrize(
    ("jwk", "code"),
    [
        pytest.param({**GOOD, "kid": "1"}, "tee-key-members", id="unknown-member"),
        pytest.param({k: v for k, v in GOOD.items() if k != "alg"}, "tee-key-members", id="no-alg"),
        pytest.param({**GOOD, "x": b64url(bytes(31))}, "tee-key-coordinate", id="kbs-021-short-x"),
        pytest.param({**GOOD, "x": GOOD["x"] + "="}, "base64url", id="padded"),
        pytest.param({**GOOD, "y": GOOD["x"]}, "tee-key-point", id="off-curve"),
        pytest.param({**GOOD, "crv": "P-384"}, "tee-key-curve", id="kbs-020-p384"),
        pytest.param({**GOOD, "crv": ["P-256"]}, "tee-key-curve", id="crv-list"),
        pytest.param({**RSA_JWK, "alg": "RSA1_5"}, "tee-key-alg", id="kbs-020-rsa1_5"),
        pytest.param({**RSA_JWK, "e": "Aw"}, "tee-key-exponent", id="kbs-020-e3"),
        pytest.param({**RSA_JWK, "n": b64url(b"\x80" + bytes(127) + b"\1")}, "tee-key-modulus", id="rsa-1032"),
        pytest.param({**RSA_JWK, "n": b64url(b"\0" + b"\xff" * 256)}, "tee-key-integer", id="leading-zero"),
        pytest.param({"kty": "OKP"}, "tee-key-type", id="kbs-020-okp"),
        pytest.param("text", "tee-key", id="not-an-object"),
    ],
)
def test_bad_tee_keys(jwk: object, code: str) -> None:
    """Every deviation from exactly one canonical JWK is refused with its code."""
    with pytest.raises(Malformed) as caught:
        parse_tee_key(jwk)
    assert caught.value.code == code


@pytest.mark.parametrize("jwk", [GOOD, RSA_JWK], ids=["kbs-020-ec", "kbs-020-rsa"])
def test_good_tee_keys_keep_their_members(jwk: dict[str, str]) -> None:
    """Parsing and rendering is the identity: the hash over it is the guest's hash."""
    assert parse_tee_key(jwk).jwk == jwk


def test_thumbprint_is_rfc7638() -> None:
    """The example of RFC 7638 section 3.1."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknj"
        "hMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQ"
        "vRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzK"
        "nqDKgw"
    )
    jwk = {"kty": "RSA", "n": n, "e": "AQAB", "alg": "RS256"}
    assert thumbprint(jwk) == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
