"""Our own tokens and those of administrators, as they come back: every claim, name, key and second that decides."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from joserfc import jws
from joserfc.jwk import ECKey, OctKey

from attestation.broker.admin import AdminIssuer, render_admin_token, verify_admin_token
from attestation.broker.endorsement import TokenTrust
from attestation.broker.external import verify_external
from attestation.broker.jose import sign_es256
from attestation.broker.roles import Principal, Role, Verb
from attestation.broker.session import challenge
from attestation.broker.token import TokenAuthority, TokenKey, verify_token
from attestation.crypto.b64 import b64url
from attestation.errors import AttestationError, Denied, Misconfigured, Untrusted
from attestation.values import BindingProfile, Tee
from tests.attestation.broker.broker import NOW
from tests.attestation.broker.issuer import Signer, foreign_claims, tee_jwk


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


KEYS = [ec.derive_private_key(number, ec.SECP256R1()) for number in (3, 5, 7)]
OURS, OLD, STRANGER = (TokenKey.of(pem_of(key)) for key in KEYS)
AUTHORITY = TokenAuthority(issuer="https://kbs.example", audience="keys", current=OURS, previous=(OLD,))
AT = int(NOW.timestamp())
CLAIMS = {"iss": "https://kbs.example", "aud": "keys", "jti": "j1", "nbf": AT, "exp": AT + 300}
SECOND = timedelta(seconds=1)
ABSENT = object()


def signed(key: TokenKey = OURS, *, kid: object = None, **changes: object) -> str:
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not ABSENT}
    header = {"alg": "ES256", "kid": key.kid if kid is None else kid}
    text = json.dumps(claims).encode()
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    registry.max_payload_length = 1 << 20
    return jws.serialize_compact(header, text, key.key, registry=registry)


@pytest.mark.parametrize(
    ("token", "code"),
    [
        pytest.param(signed(), None, id="good"),
        pytest.param(signed(OLD), None, id="of-the-previous-key"),
        pytest.param(signed(STRANGER), "token-key", id="of-a-stranger"),
        pytest.param(signed(STRANGER, kid=OURS.kid), "token-signature", id="of-a-stranger-who-takes-our-name"),
        pytest.param(signed(OLD, kid=OURS.kid), "token-signature", id="of-the-previous-key-under-the-current-name"),
        pytest.param(signed(iss="https://other.example"), "token-iss", id="issuer"),
        pytest.param(signed(iss=ABSENT), "token-iss", id="no-issuer"),
        pytest.param(signed(aud="others"), "token-aud", id="audience"),
        pytest.param(signed(aud=["keys"]), "token-aud", id="audience-in-a-list"),
        pytest.param(signed(exp=ABSENT), "token-expired", id="no-end"),
        pytest.param(signed(exp=str(AT + 300)), "token-expired", id="end-in-text"),
        pytest.param(signed(exp=True), "token-expired", id="end-true"),
        pytest.param(signed(exp=AT + 300.5), "token-expired", id="end-with-a-fraction"),
        pytest.param(signed(exp=AT - 5), None, id="ended-within-the-leeway"),
        pytest.param(signed(exp=AT - 6), "token-expired", id="ended"),
        pytest.param(signed(nbf=ABSENT), "token-early", id="no-start"),
        pytest.param(signed(nbf=False), "token-early", id="start-false"),
        pytest.param(signed(nbf=AT + 5), None, id="starts-within-the-leeway"),
        pytest.param(signed(nbf=AT + 6), "token-early", id="starts-later"),
        pytest.param(signed(jti=ABSENT), "token-id", id="no-id"),
        pytest.param(signed(jti=1), "token-id", id="id-a-number"),
        pytest.param("x" * 64 * 1024, "token-signature", id="largest"),
        pytest.param("x" * (64 * 1024 + 1), "token-size", id="too-large"),
        pytest.param(signed().rpartition(".")[0] + ".", "token-signature", id="no-signature"),
    ],
)
def test_our_own_tokens(token: str, code: str | None) -> None:
    if code is None:
        assert verify_token(token, AUTHORITY, now=NOW) == "j1"
        return
    with pytest.raises(Untrusted) as caught:
        verify_token(token, AUTHORITY, now=NOW)
    assert caught.value.code == code


@pytest.mark.parametrize("alg", ["none", "HS256"])
def test_no_header_chooses_the_algorithm(alg: str) -> None:
    """Not even with our public key as a secret."""
    header, payload, _ = signed().split(".")
    del header
    if alg == "none":
        head = {"alg": "none", "kid": OURS.kid}
        token = f"{b64url(json.dumps(head).encode())}.{payload}."
    else:
        public = KEYS[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        secret = OctKey.import_key(public.replace(b"-----", b"====="))
        token = jws.serialize_compact({"alg": "HS256", "kid": OURS.kid}, json.dumps(CLAIMS).encode(), secret)
    with pytest.raises(Untrusted) as caught:
        verify_token(token, AUTHORITY, now=NOW)
    assert caught.value.code == "token-signature"


def test_what_cannot_sign_tokens() -> None:
    """A public key, and a key on another curve."""
    public = ECKey.import_key(KEYS[0].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    other = ECKey.import_key(pem_of(ec.derive_private_key(3, ec.SECP384R1())))
    for key in (public, other):
        with pytest.raises(Misconfigured) as caught:
            TokenKey(key=key, kid="k")
        assert caught.value.code == "token-key"


ROOT = Signer(name="token root")
LEAF = Signer(name="token leaf", issuer=ROOT, authority=False, key=KEYS[0])


@pytest.mark.parametrize(
    ("chain", "length"),
    [
        pytest.param([LEAF], 1, id="leaf"),
        pytest.param([LEAF, ROOT, ROOT], 3, id="longest"),
        pytest.param([LEAF, ROOT, ROOT, ROOT], None, id="too-long"),
        pytest.param([ROOT], None, id="of-another-key"),
        pytest.param([], None, id="nothing"),
    ],
)
def test_the_certificates_of_our_tokens(chain: list[Signer], length: int | None) -> None:
    pem = b"".join(link.pem for link in chain)
    if length is not None:
        assert len(AUTHORITY.certified(pem).x5c) == length
        return
    with pytest.raises(Misconfigured) as caught:
        AUTHORITY.certified(pem)
    assert caught.value.code == "token-certificate"


ADMIN_KEY, PROVIDER_KEY = (ECKey.import_key(pem_of(key)) for key in KEYS[:2])
PROVIDER = AdminIssuer(key=PROVIDER_KEY, issuer="https://idp.example", audience="kbs", roles={"boss": Role.ADMIN})
OPEN = AdminIssuer(key=PROVIDER_KEY, issuer=None, audience=None, roles={})
THEIRS = {"iss": "https://idp.example", "aud": "kbs", "sub": "ann", "role": "boss", "exp": AT + 60}


def admin(key: ECKey = PROVIDER_KEY, **changes: object) -> str:
    claims = {name: value for name, value in (THEIRS | changes).items() if value is not ABSENT}
    return jws.serialize_compact({"alg": "ES256"}, json.dumps(claims).encode(), key, algorithms=["ES256"])


def own_admin(**changes: object) -> str:
    ours = {"iss": "kbs", "aud": "kata-gpu-kbs-admin", "sub": "root", "role": "admin", "epoch": 3}
    return admin(ADMIN_KEY, **(ours | changes))


def read(token: str, issuer: AdminIssuer = PROVIDER, now: datetime = NOW) -> tuple[str, str, int | None]:
    claims = verify_admin_token(token, own=ADMIN_KEY, own_issuer="kbs", issuers=(issuer,), now=now)
    return claims.subject, claims.role, claims.epoch


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        pytest.param(own_admin(), ("root", "admin", 3), id="ours"),
        pytest.param(own_admin(epoch=True), ("root", "admin", 0), id="epoch-true"),
        pytest.param(own_admin(epoch=ABSENT), ("root", "admin", 0), id="no-epoch"),
        pytest.param(own_admin(iss="https://idp.example"), "admin-token-issuer", id="ours-of-another-issuer"),
        pytest.param(own_admin(aud="kbs"), "admin-token-audience", id="ours-for-another-audience"),
        pytest.param(own_admin(sub=ABSENT), "admin-token-claims", id="ours-for-nobody"),
        pytest.param(own_admin(role=1), "admin-token-claims", id="ours-without-a-role"),
        pytest.param(admin(), ("https://idp.example/ann", "boss", None), id="theirs"),
        pytest.param(admin(sub=ABSENT), ("https://idp.example", "boss", None), id="theirs-for-nobody"),
        pytest.param(admin(role=ABSENT), "admin-token-claims", id="theirs-without-a-role"),
        pytest.param(admin(iss="https://other.example"), "admin-token-issuer", id="theirs-of-another-issuer"),
        pytest.param(admin(aud="others"), "admin-token-audience", id="theirs-for-others"),
        pytest.param(admin(aud=ABSENT), "admin-token-audience", id="theirs-for-no-one-named"),
        pytest.param(admin(aud=["others", "kbs"]), ("https://idp.example/ann", "boss", None), id="theirs-for-two"),
        pytest.param(admin(aud=["others"]), "admin-token-audience", id="theirs-for-a-list-of-others"),
        pytest.param(admin(exp=ABSENT), "admin-token-expired", id="no-end"),
        pytest.param(admin(exp=True), "admin-token-expired", id="end-true"),
        pytest.param(admin(exp="2099"), "admin-token-expired", id="end-in-text"),
        pytest.param(admin(exp=float("inf")), "admin-token-expired", id="end-infinite"),
        pytest.param(admin(exp=AT - 60), ("https://idp.example/ann", "boss", None), id="ended-within-the-leeway"),
        pytest.param(admin(exp=AT - 61), "admin-token-expired", id="ended"),
        pytest.param(admin(nbf=AT + 60), ("https://idp.example/ann", "boss", None), id="starts-within-the-leeway"),
        pytest.param(admin(nbf=AT + 61), "admin-token-early", id="starts-later"),
        pytest.param(admin(nbf="now"), "admin-token-early", id="start-in-text"),
        pytest.param(admin(ECKey.import_key(pem_of(KEYS[2]))), "admin-token", id="of-a-stranger"),
        pytest.param("x" * (16 * 1024 + 1), "admin-token", id="too-long"),
        pytest.param(admin(more="x" * 16 * 1024), "admin-token", id="signed-and-too-long"),
    ],
)
def test_tokens_of_administrators(token: str, expected: tuple[str, str, int | None] | str) -> None:
    if not isinstance(expected, str):
        assert read(token) == expected
        return
    with pytest.raises(Untrusted) as caught:
        read(token)
    assert caught.value.code == expected


def of_length(length: int) -> str:
    """A provider's token of exactly so many letters."""
    return next(
        token
        for kid in range(4)
        for more in range(11_800, 12_100)
        if len(
            token := jws.serialize_compact(
                {"alg": "ES256", "kid": "k" * kid},
                json.dumps(THEIRS | {"more": "x" * more}).encode(),
                PROVIDER_KEY,
                algorithms=["ES256"],
            )
        )
        == length
    )


def test_tokens_of_administrators_have_a_size() -> None:
    assert read(of_length(16 * 1024))[1] == "boss"
    with pytest.raises(Untrusted) as caught:
        read(of_length(16 * 1024 + 1))
    assert caught.value.code == "admin-token"


def test_a_provider_may_leave_issuer_and_audience_open() -> None:
    assert read(admin(iss=ABSENT, aud=ABSENT), OPEN)[1] == "boss"
    assert read(admin(), OPEN)[1] == "boss"


@pytest.mark.parametrize("kid", [7, None, [OURS.kid], {"a": 1}], ids=["number", "null", "list", "object"])
def test_the_name_of_a_key_is_text(kid: object) -> None:
    header = b64url(json.dumps({"alg": "ES256", "kid": kid}).encode())
    token = sign_es256(header, json.dumps(CLAIMS).encode(), KEYS[0])
    with pytest.raises(Untrusted) as caught:
        verify_token(token, AUTHORITY, now=NOW)
    assert caught.value.code in ("token-key", "token-signature")


def test_a_token_of_ours_lives_as_long_as_it_says() -> None:
    token = render_admin_token(
        ADMIN_KEY, issuer="kbs", name="root", role=Role.ADMIN, epoch=1, lifetime=timedelta(hours=1), now=NOW
    )
    last = NOW + timedelta(hours=1, seconds=60)
    assert read(token, now=last) == ("root", "admin", 1)
    with pytest.raises(Untrusted) as caught:
        read(token, now=last + SECOND)
    assert caught.value.code == "admin-token-expired"


MAY = {
    Role.ADMIN: set(Verb),
    Role.OPERATOR: {Verb.READ, Verb.WRITE_KEY, Verb.WRITE_POLICY},
    Role.AUDITOR: {Verb.READ},
}


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("verb", list(Verb))
@pytest.mark.parametrize(
    ("repositories", "asked", "inside"),
    [
        ((), None, True),
        ((), "a", True),
        (("a", "b"), "b", True),
        (("a", "b"), "c", False),
        (("a",), None, False),
    ],
    ids=["all-all", "all-one", "own", "another", "own-all"],
)
def test_who_may_do_what(
    role: Role, verb: Verb, repositories: tuple[str, ...], asked: str | None, inside: bool
) -> None:
    principal = Principal(name="ann", role=role, repositories=repositories)
    code = (
        ""
        if verb in MAY[role] and inside
        else "role-not-allowed"
        if verb not in MAY[role]
        else "repository-not-allowed"
    )
    if asked is not None:
        assert principal.sees(asked) == inside
    if not code:
        principal.require(verb, asked)
        return
    with pytest.raises(Denied) as caught:
        principal.require(verb, asked)
    assert caught.value.code == code


ALONE = Signer(name="alone")
OFFERS: list[tuple[str, object, BindingProfile]] = [
    ("ours", {"binding-profiles": ["x", "cgpu-v1"]}, BindingProfile.CGPU_V1),
    ("others", {"binding-profiles": ["x"]}, BindingProfile.TRUSTEE_RCAR),
    ("none", {}, BindingProfile.TRUSTEE_RCAR),
    ("text", {"binding-profiles": "cgpu-v1"}, BindingProfile.TRUSTEE_RCAR),
    ("null", {"binding-profiles": None}, BindingProfile.TRUSTEE_RCAR),
    ("list", ["cgpu-v1"], BindingProfile.TRUSTEE_RCAR),
    ("nothing", "", BindingProfile.TRUSTEE_RCAR),
]


@pytest.mark.parametrize(("offered", "profile"), [pytest.param(o, p, id=i) for i, o, p in OFFERS])
def test_what_a_session_is_bound_by(offered: object, profile: BindingProfile) -> None:
    """Our profile for whom names it in a list; anything else is upstream's guest."""
    made = challenge(
        version="0.4.0", tee="snp", offered=offered, enabled=frozenset({Tee.SNP}), random=lambda n: b"\1" * n, now=NOW
    )
    assert (made.profile, made.expires) == (profile, NOW + timedelta(minutes=5))


TEE = ec.derive_private_key(11, ec.SECP256R1())


def foreign(**changes: Any) -> str:
    claims: dict[str, Any] = {n: v for n, v in foreign_claims(TEE, **changes).items() if v is not ABSENT}
    return ALONE.token(claims, jwk=ALONE.jwk | {"x5c": [ALONE.x5c]})


@pytest.mark.parametrize(
    ("token", "code"),
    [
        pytest.param(foreign(), None, id="good"),
        pytest.param(foreign(exp=AT - 60), None, id="ended-within-the-leeway"),
        pytest.param(foreign(exp=AT - 61), "token-expired", id="ended"),
        pytest.param(foreign(exp=AT + 0.5), None, id="end-with-a-fraction"),
        pytest.param(foreign(nbf=AT + 60), None, id="starts-within-the-leeway"),
        pytest.param(foreign(nbf=AT + 61), "token-early", id="starts-later"),
        pytest.param(foreign(nbf="0"), "token-early", id="start-in-text"),
        pytest.param(foreign(nbf=True), "token-early", id="start-true"),
        pytest.param(foreign(nbf=ABSENT), None, id="no-start"),
    ],
)
def test_the_time_of_foreign_tokens(token: str, code: str | None) -> None:
    trust = TokenTrust.of(certificates=[ALONE.pem])
    if code is None:
        assert verify_external(token, trust, now=NOW).issuer == "CoCo-Attestation-Service"
        return
    with pytest.raises(AttestationError) as caught:
        verify_external(token, trust, now=NOW)
    assert caught.value.code == code


def test_submodules_of_any_shape_are_no_reason_to_fail() -> None:
    """Upstream's are objects; a claim that is none names no TEE."""
    token = foreign(submods={"cpu0": "affirming", "gpu0": None}, **{"tee-pubkey": tee_jwk(TEE)})
    assert not verify_external(token, TokenTrust.of(certificates=[ALONE.pem]), now=NOW).forgeable
