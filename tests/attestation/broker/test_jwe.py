"""JWE for TEE keys: known answers of the KBS protocol, round trips, and everything that must not open."""

import base64
import hashlib
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.crypto.b64 import b64url, parse_b64url
from attestation.crypto.jwe import Sealed, TeePrivateKey, parse_sealed, seal, unseal
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


RECIPIENT = recipient(ec.SECP256R1())
SEALED = seal(Secret(b"shhhhhhh"), tee_key_of(RECIPIENT.public_key()), random=known_random)
SEALED_RSA = seal(Secret(b"shhhhhhh"), tee_key_of(RSA_KEY.public_key()), random=known_random)
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def header(sealed: Sealed = SEALED, /, **changes: object) -> Sealed:
    """With some members of the protected header replaced, or left out where None."""
    members = json.loads(parse_b64url(sealed.protected, where="test")) | changes
    text = json.dumps({name: value for name, value in members.items() if value is not None})
    return replace(sealed, protected=b64url(text.encode()))


def epk(**changes: object) -> Sealed:
    known = json.loads(parse_b64url(SEALED.protected, where="test"))["epk"]
    return header(epk=known | changes)


OTHER_EPK = tee_key_of(ec.derive_private_key(7, ec.SECP256R1()).public_key()).jwk


@pytest.mark.parametrize(
    ("sealed", "key", "code"),
    [
        pytest.param(SEALED, RECIPIENT, "", id="good"),
        pytest.param(SEALED_RSA, RSA_KEY, "", id="good-rsa"),
        pytest.param(SEALED_RSA, RECIPIENT, "jwe-header", id="rsa-for-an-ec-key"),
        pytest.param(SEALED, RSA_KEY, "jwe-header", id="ec-for-an-rsa-key"),
        pytest.param(replace(SEALED, protected=b64url(b"{")), RECIPIENT, "jwe-header", id="header-not-json"),
        pytest.param(replace(SEALED, protected=b64url(b"[]")), RECIPIENT, "jwe-header", id="header-a-list"),
        pytest.param(replace(SEALED, protected=b64url(b"\xff")), RECIPIENT, "jwe-header", id="header-not-text"),
        pytest.param(header(enc="A128GCM"), RECIPIENT, "jwe-header", id="enc"),
        pytest.param(header(enc=None), RECIPIENT, "jwe-header", id="no-enc"),
        pytest.param(header(alg="ECDH-ES"), RECIPIENT, "jwe-header", id="alg"),
        pytest.param(header(alg=None), RECIPIENT, "jwe-header", id="no-alg"),
        pytest.param(header(apu="AA"), RECIPIENT, "jwe-header", id="apu"),
        pytest.param(header(epk=None), RECIPIENT, "jwe-header", id="no-epk"),
        pytest.param(header(epk="AA"), RECIPIENT, "jwe-epk", id="epk-no-object"),
        pytest.param(header(epk=["crv", "kty", "x", "y"]), RECIPIENT, "jwe-epk", id="epk-a-list"),
        pytest.param(epk(kty="OKP"), RECIPIENT, "jwe-epk", id="epk-of-another-type"),
        pytest.param(epk(crv="P-521"), RECIPIENT, "jwe-epk", id="epk-of-another-curve"),
        pytest.param(epk(d="AA"), RECIPIENT, "jwe-epk", id="epk-with-more"),
        pytest.param(epk(y=OTHER_EPK["y"]), RECIPIENT, "jwe-epk", id="epk-off-the-curve"),
        pytest.param(epk(x=OTHER_EPK["x"], y=OTHER_EPK["y"]), RECIPIENT, "jwe-key", id="epk-of-somebody-else"),
        pytest.param(replace(SEALED, iv=b64url(bytes(11))), RECIPIENT, "jwe-length", id="iv-short"),
        pytest.param(replace(SEALED, iv=b64url(bytes(13))), RECIPIENT, "jwe-length", id="iv-long"),
        pytest.param(replace(SEALED, tag=b64url(bytes(15))), RECIPIENT, "jwe-length", id="tag-short"),
        pytest.param(replace(SEALED, tag=b64url(bytes(17))), RECIPIENT, "jwe-length", id="tag-long"),
        pytest.param(replace(SEALED, tag=b64url(bytes(16))), RECIPIENT, "jwe-tag", id="tag-zero"),
        pytest.param(replace(SEALED, ciphertext=""), RECIPIENT, "jwe-tag", id="nothing-inside"),
        pytest.param(replace(SEALED, encrypted_key=b64url(bytes(39))), RECIPIENT, "jwe-length", id="key-short"),
        pytest.param(replace(SEALED, encrypted_key=b64url(bytes(41))), RECIPIENT, "jwe-length", id="key-long"),
        pytest.param(replace(SEALED, encrypted_key=b64url(bytes(40))), RECIPIENT, "jwe-key", id="key-zero"),
        pytest.param(SEALED, recipient(ec.SECP521R1()), "jwe-epk", id="a-key-on-another-curve"),
        pytest.param(header(SEALED_RSA, epk={}), RSA_KEY, "jwe-header", id="rsa-with-epk"),
        pytest.param(header(SEALED_RSA, alg="RSA1_5"), RSA_KEY, "jwe-header", id="kbs-020-rsa1_5"),
        pytest.param(replace(SEALED_RSA, encrypted_key=b64url(bytes(512))), RSA_KEY, "jwe-key", id="rsa-longest"),
        pytest.param(replace(SEALED_RSA, encrypted_key=b64url(bytes(513))), RSA_KEY, "jwe-key", id="rsa-too-long"),
        *(
            pytest.param(
                replace(SEALED_RSA, encrypted_key=b64url(RSA_KEY.public_key().encrypt(bytes(size), _OAEP))),
                RSA_KEY, "jwe-key", id=f"rsa-key-of-{size}",
            )
            for size in (16, 31, 33)
        ),
    ],
)  # fmt: skip
def test_what_does_not_open(sealed: Sealed, key: TeePrivateKey, code: str) -> None:
    """One thing of a good JWE is changed."""
    if not code:
        assert unseal(sealed, key) == Secret(b"shhhhhhh")
        return
    with pytest.raises((Malformed, Untrusted)) as caught:
        unseal(sealed, key)
    assert caught.value.code == code


def test_a_wrapped_key_that_no_key_unwraps_is_malformed() -> None:
    """512 bytes may be of a longer key than ours; 513 are of none that we take."""
    for size, kind in ((512, Untrusted), (513, Malformed)):
        with pytest.raises(kind) as caught:
            unseal(replace(SEALED_RSA, encrypted_key=b64url(bytes(size))), RSA_KEY)
        assert caught.value.code == "jwe-key"


def test_headers_have_a_size() -> None:
    sealed = SEALED.to_json()
    assert parse_sealed(sealed | {"protected": "A" * 1024}).protected == "A" * 1024
    for body in (sealed | {"protected": "A" * 1025}, [sealed], list(sealed)):
        with pytest.raises(Malformed) as caught:
            parse_sealed(body)
        assert caught.value.code == "jwe-members"


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
        pytest.param({**RSA_JWK, "n": b64url(b"\x7f" + b"\xff" * 255)}, "tee-key-modulus", id="rsa-2047"),
        pytest.param({**RSA_JWK, "n": b64url(b"\xff" * 255 + b"\xfe")}, "tee-key-modulus", id="rsa-even"),
        pytest.param({**RSA_JWK, "n": b64url(b"\1" + b"\xff" * 512)}, "tee-key-integer", id="rsa-4097"),
        pytest.param({**RSA_JWK, "n": ""}, "tee-key-integer", id="rsa-nothing"),
        pytest.param({**RSA_JWK, "e": b64url(b"\1\0\2")}, "tee-key-exponent", id="kbs-020-e65538"),
        pytest.param({**RSA_JWK, "kid": "1"}, "tee-key-members", id="rsa-unknown-member"),
        pytest.param({**RSA_JWK, "d": "AQ"}, "tee-key-members", id="rsa-private-member"),
        pytest.param({k: v for k, v in RSA_JWK.items() if k != "e"}, "tee-key-members", id="rsa-no-exponent"),
        pytest.param({**GOOD, "x": ["AA"]}, "base64url", id="x-a-list"),
        pytest.param({**GOOD, "y": ["AA"]}, "base64url", id="y-a-list"),
        pytest.param({**GOOD, "x": 1}, "base64url", id="x-a-number"),
        pytest.param({**GOOD, "y": None}, "base64url", id="y-null"),
        pytest.param({**GOOD, "y": b64url(bytes(33))}, "tee-key-coordinate", id="kbs-021-long-y"),
        pytest.param({**GOOD, "alg": "ECDH-ES"}, "tee-key-alg", id="kbs-020-ecdh-es"),
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


def test_a_key_of_ours_on_another_curve() -> None:
    with pytest.raises(Malformed) as caught:
        tee_key_of(recipient(ec.SECP384R1()).public_key())
    assert caught.value.code == "tee-key-curve"


@pytest.mark.parametrize(
    "jwk",
    [
        GOOD,
        RSA_JWK,
        {**RSA_JWK, "n": b64url(b"\x80" + bytes(254) + b"\1")},
        {**RSA_JWK, "n": b64url(b"\xff" * 512)},
    ],
    ids=["kbs-020-ec", "kbs-020-rsa", "rsa-2048", "rsa-4096"],
)
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
