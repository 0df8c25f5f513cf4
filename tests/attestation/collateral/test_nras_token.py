"""NRAS-shaped tokens verified offline: every rule refuses by itself; genuine bundles have the digests they declare."""

import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from attestation.appraise.eat import EatKey
from attestation.crypto.b64 import b64, b64url
from attestation.errors import AttestationError, Malformed, Misconfigured, Untrusted
from attestation.values import Nonce
from attestation.verify.nras_token import (
    Keys,
    TokenRule,
    parse_detached_eat,
    parse_jwks,
    require_digests,
    token_claims,
    verify_nras_token,
)
from tests.attestation.collateral.conftest import DAY, NOW, certify

ISSUER = "https://nras.example"
NONCE = Nonce(bytes(range(32)))
RULE = TokenRule(issuers=frozenset({ISSUER}))
ISSUED = int(NOW.timestamp())
ALPHABET = "?" * 6 + ">" * 6  # base64 of these has / and + at every alignment


def eat_key(name: str) -> EatKey:
    made = certify(name, None, ca=False, serial=9)
    assert isinstance(made.key, ec.EllipticCurvePrivateKey)
    return EatKey(made.key, made.certificate)


KEY, OTHER = eat_key("SIMULATED NRAS"), eat_key("SIMULATED impostor")
KEYS: Keys = parse_jwks(json.dumps(KEY.jwks()).encode())


def claims(**changes: Any) -> dict[str, Any]:
    values = {"iss": ISSUER, "eat_nonce": NONCE.hex(), "nbf": ISSUED, "iat": ISSUED, "exp": ISSUED + 3600, "jti": "1"}
    return {k: v for k, v in (values | changes).items() if v is not ...}


def digest(token: str) -> list[object]:
    return ["DIGEST", ["SHA-256", hashlib.sha256(token.encode()).hexdigest()]]


def bundle(
    *,
    overall: dict[str, Any] | None = None,
    submods: dict[str, str] | None = None,
    declared: dict[str, Any] | None = None,
    sign: Callable[[dict[str, Any]], str] = KEY.sign,
) -> bytes:
    tokens = submods if submods is not None else {"GPU-0": KEY.sign(claims(measres="success"))}
    body = {
        "submods": declared if declared is not None else {name: digest(token) for name, token in tokens.items()},
        "x-nvidia-overall-att-result": True,
    }
    return json.dumps([["JWT", sign(claims(**(body | (overall or {}))))], tokens]).encode()


def encode(header: dict[str, Any], body: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    text = ".".join(b64url(json.dumps(part).encode()) for part in (header, body))
    return f"{text}.{b64url(sign(text.encode()))}"


def hs256(secret: bytes) -> Callable[[dict[str, Any]], str]:
    def sign(body: dict[str, Any]) -> str:
        header = {"alg": "HS256", "typ": "JWT", "kid": KEY.kid}
        return encode(header, body, lambda text: hmac.digest(secret, text, "sha256"))

    return sign


PUBLIC_PEM = KEY.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
TOKEN = KEY.sign(claims())

REFUSED: list[tuple[str, bytes, type[AttestationError], str]] = [
    (
        "gpu-148-alg-none",
        bundle(sign=lambda c: encode({"alg": "none", "kid": KEY.kid}, c, lambda _: b"")),
        Untrusted,
        "jwt-header",
    ),
    ("gpu-148-hs256-with-public-key", bundle(sign=hs256(PUBLIC_PEM)), Untrusted, "jwt-header"),
    (
        "gpu-148-es384-header-hmac-signature",
        bundle(
            sign=lambda c: encode({"alg": "ES384", "kid": KEY.kid}, c, lambda t: hmac.digest(PUBLIC_PEM, t, "sha256"))
        ),
        Untrusted,
        "jwt-signature",
    ),
    ("gpu-148-wrong-iss", bundle(overall={"iss": "https://nras.example.org"}), Untrusted, "jwt-issuer"),
    ("gpu-148-iss-list", bundle(overall={"iss": [ISSUER]}), Untrusted, "jwt-issuer"),
    ("gpu-148-wrong-eat-nonce", bundle(overall={"eat_nonce": "11" * 32}), Untrusted, "jwt-nonce"),
    ("gpu-148-no-eat-nonce", bundle(overall={"eat_nonce": ...}), Untrusted, "jwt-nonce"),
    (
        "gpu-148-wrong-eat-nonce-in-submod",
        bundle(submods={"GPU-0": KEY.sign(claims(eat_nonce="11" * 32))}),
        Untrusted,
        "jwt-nonce",
    ),
    ("gpu-148-expired", bundle(overall={"exp": ISSUED - 61}), Untrusted, "jwt-expired"),
    ("gpu-148-not-yet-valid", bundle(overall={"nbf": ISSUED + 61}), Untrusted, "jwt-not-yet-valid"),
    ("gpu-148-no-exp", bundle(overall={"exp": ...}), Untrusted, "jwt-times"),
    ("gpu-148-exp-float", bundle(overall={"exp": ISSUED + 0.5}), Untrusted, "jwt-times"),
    ("gpu-148-exp-true", bundle(overall={"exp": True}), Untrusted, "jwt-times"),
    ("gpu-148-submod-digest-mismatch", bundle(declared={"GPU-0": digest("x")}), Untrusted, "eat-digest"),
    (
        "gpu-148-submod-digest-other-algorithm",
        bundle(submods={"GPU-0": TOKEN}, declared={"GPU-0": ["DIGEST", ["SHA256", digest(TOKEN)[1][1]]]}),  # type: ignore[index]
        Untrusted,
        "eat-digest",
    ),
    (
        "gpu-148-extra-undeclared-submod",
        bundle(submods={"GPU-0": TOKEN, "GPU-1": TOKEN}, declared={"GPU-0": digest(TOKEN)}),
        Untrusted,
        "eat-submods",
    ),
    (
        "gpu-148-missing-submod",
        bundle(submods={"GPU-0": TOKEN}, declared={"GPU-0": digest(TOKEN), "GPU-1": digest(TOKEN)}),
        Untrusted,
        "eat-submods",
    ),
    ("gpu-148-no-submods-claim", bundle(overall={"submods": ...}), Untrusted, "eat-submods"),
    ("gpu-148-result-string-true", bundle(overall={"x-nvidia-overall-att-result": "true"}), Untrusted, "eat-result"),
    ("gpu-148-result-one", bundle(overall={"x-nvidia-overall-att-result": 1}), Untrusted, "eat-result"),
    ("gpu-148-audience-of-another", bundle(overall={"aud": "somebody"}), Untrusted, "jwt-audience"),
    ("gpu-148-unknown-key", bundle(sign=OTHER.sign), Untrusted, "jwt-key"),
    (
        "gpu-148-kid-of-ours-key-of-another",
        bundle(sign=lambda c: EatKey(OTHER.key, KEY.certificate).sign(c)),
        Untrusted,
        "jwt-signature",
    ),
    (
        "gpu-148-critical-header",
        bundle(sign=lambda c: encode({"alg": "ES384", "kid": KEY.kid, "crit": ["x"]}, c, lambda _: bytes(96))),
        Untrusted,
        "jwt-header",
    ),
    (
        "gpu-148-key-in-header",
        bundle(sign=lambda c: encode({"alg": "ES384", "kid": KEY.kid, "jwk": {}}, c, lambda _: bytes(96))),
        Untrusted,
        "jwt-header",
    ),
    (
        "gpu-148-signature-zero",
        bundle(sign=lambda c: encode({"alg": "ES384", "kid": KEY.kid}, c, lambda _: bytes(96))),
        Untrusted,
        "jwt-signature-range",
    ),
    ("gpu-149-local-hs256-secret", bundle(sign=hs256(b"secret")), Untrusted, "jwt-header"),
    ("gpu-149-local-hs256-notasecret", bundle(sign=hs256(b"notasecret")), Untrusted, "jwt-header"),
    (
        "gpu-149-local-wrapper",
        json.dumps([["JWT", hs256(b"notasecret")(claims())], {"LOCAL_GPU_CLAIMS": [["JWT", TOKEN], {}]}]).encode(),
        Malformed,
        "json-type",
    ),
    ("not-json", b"\xff", Malformed, "json"),
    ("no-submodules", json.dumps([["JWT", TOKEN], {}]).encode(), Malformed, "eat-shape"),
    ("third-element", json.dumps([["JWT", TOKEN], {"GPU-0": TOKEN}, 1]).encode(), Malformed, "eat-shape"),
    ("other-type", json.dumps([["CWT", TOKEN], {"GPU-0": TOKEN}]).encode(), Malformed, "eat-shape"),
    ("not-ascii", json.dumps([["JWT", TOKEN], {"GPU-0": "\ud800"}]).encode(), Malformed, "eat-shape"),
    ("two-parts", json.dumps([["JWT", "a.b"], {"GPU-0": TOKEN}]).encode(), Malformed, "jwt-shape"),
    ("padded", json.dumps([["JWT", TOKEN + "="], {"GPU-0": TOKEN}]).encode(), Malformed, "base64url"),
    ("duplicate-submods", f'[["JWT","{TOKEN}"],{{"G":"a","G":"b"}}]'.encode(), Malformed, "json-duplicate-key"),
]


@pytest.mark.parametrize(("raw", "error", "code"), [pytest.param(r, e, c, id=i) for i, r, e, c in REFUSED])
def test_refused(raw: bytes, error: type[AttestationError], code: str) -> None:
    with pytest.raises(error) as caught:
        verify_nras_token(raw, KEYS, rule=RULE, nonce=NONCE, now=NOW)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("raw", "rule", "successful"),
    [
        pytest.param(bundle(), RULE, True, id="good"),
        pytest.param(bundle(overall={"x-nvidia-overall-att-result": False}), RULE, False, id="honest-failure"),
        pytest.param(bundle(overall={"eat_nonce": NONCE.hex().upper()}), RULE, True, id="nonce-upper-case"),
        pytest.param(
            bundle(
                overall={"aud": "us"},
                submods={"SWITCH-0": KEY.sign(claims(aud="us"))},
            ),
            TokenRule(issuers=frozenset({ISSUER}), audience="us"),
            True,
            id="our-audience",
        ),
        pytest.param(
            bundle(submods={"GPU-0": KEY.sign(claims(text=ALPHABET))}),
            RULE,
            True,
            id="gpu-148-dash-and-underscore-decode",
        ),
    ],
)
def test_accepted(raw: bytes, rule: TokenRule, successful: bool) -> None:
    verified = verify_nras_token(raw, KEYS, rule=rule, nonce=NONCE, now=NOW)
    assert (verified.issuer, verified.successful) == (ISSUER, successful)
    assert all(c["eat_nonce"] == NONCE.hex() for c in verified.submods.values())


def test_alphabet_case_has_both_characters() -> None:
    payload = KEY.sign(claims(text=ALPHABET)).split(".")[1]
    assert "-" in payload
    assert "_" in payload


def test_every_flipped_character_is_refused() -> None:
    raw = bundle().decode()
    start = raw.index("ey")
    for position in range(start, start + 400, 7):
        other = "A" if raw[position] != "A" else "B"
        with pytest.raises((Malformed, Untrusted)):
            verify_nras_token(
                (raw[:position] + other + raw[position + 1 :]).encode(), KEYS, rule=RULE, nonce=NONCE, now=NOW
            )


@pytest.mark.parametrize(
    ("name", "submod"),
    [
        pytest.param("hopperClaimsv3_detached_eat.json", "GPU-0", id="genuine-gpu"),
        pytest.param("switch_detached_eat.json", "SWITCH-0", id="genuine-switch"),
    ],
)
def test_genuine_bundles(vectors: Path, name: str, submod: str) -> None:
    """Real NRAS answers parse and have the digests they declare; without NVIDIA's key set they are not believed."""
    raw = (vectors / "nvidia" / "nras" / name).read_bytes()
    parsed = parse_detached_eat(raw)
    header, overall, _, signature = token_claims(parsed.overall, "overall")
    assert (header["alg"], len(signature), set(parsed.submods)) == ("ES384", 96, {submod})
    require_digests(overall, parsed.submods)
    with pytest.raises(Untrusted) as caught:
        require_digests(overall, {submod: parsed.submods[submod] + "A"})
    assert caught.value.code == "eat-digest"
    nonce = Nonce.from_hex(str(overall["eat_nonce"]))
    rule = TokenRule(issuers=frozenset({str(overall["iss"])}))
    with pytest.raises(Untrusted) as caught:
        verify_nras_token(raw, KEYS, rule=rule, nonce=nonce, now=NOW - 500 * DAY)
    assert caught.value.code == "jwt-key"


def jwks(*entries: dict[str, Any]) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


def jwk(**changes: Any) -> dict[str, Any]:
    (entry,) = json.loads(json.dumps(KEY.jwks()))["keys"]
    return {k: v for k, v in (entry | changes).items() if v is not ...}


def other_x5c() -> list[str]:
    return [b64(OTHER.certificate.public_bytes(Encoding.DER))]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(jwks(), id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(jwks(jwk(), jwk()), id="same-id-twice"),
        pytest.param(jwks(jwk(kid=...)), id="no-id"),
        pytest.param(jwks(jwk(crv="P-256")), id="curve"),
        pytest.param(jwks(jwk(x=b64url(bytes(48)))), id="not-a-point"),
        pytest.param(jwks(jwk(x="AA")), id="short"),
        pytest.param(jwks(jwk(x5c=other_x5c())), id="x5c-of-another-key"),
        pytest.param(jwks(jwk(x5c=[])), id="x5c-empty"),
        pytest.param(jwks(jwk(x5c=["AAAA"])), id="x5c-not-a-certificate"),
        pytest.param(jwks(*[jwk(kid=str(i)) for i in range(65)]), id="too-many"),
    ],
)
def test_key_sets_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_jwks(raw)


def test_key_sets() -> None:
    expected = KEY.key.public_key()
    assert parse_jwks(jwks(jwk()))[KEY.kid] == expected
    assert parse_jwks(jwks(jwk(x=..., y=...)))[KEY.kid] == expected
    assert parse_jwks(jwks(jwk(x5c=...)))[KEY.kid] == expected
    with pytest.raises(Misconfigured):
        TokenRule(issuers=frozenset())


def test_eat_keys_are_p384_and_belong_together() -> None:
    pem = KEY.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    certificate = KEY.certificate.public_bytes(Encoding.PEM)
    assert EatKey.of(pem, certificate).kid == KEY.kid
    weak = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for bad in ((pem, OTHER.certificate.public_bytes(Encoding.PEM)), (weak, certificate), (b"", certificate)):
        with pytest.raises(Misconfigured):
            EatKey.of(*bad)
    assert timedelta(seconds=60) == RULE.leeway
