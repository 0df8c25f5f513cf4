"""Tokens of other attestation services: whom we believe, what for, and that GPU keys are never for them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from joserfc import jws
from joserfc.jwk import RSAKey

from attestation.broker.endorsement import TokenTrust, endorsed_key
from attestation.broker.external import ExternalToken, verify_external
from attestation.broker.revocation import RevocationKind
from attestation.broker.token import render_token
from attestation.crypto.b64 import b64url
from attestation.crypto.jwe import unseal
from attestation.crypto.jwk import thumbprint
from attestation.errors import AttestationError, Denied, Malformed, Misconfigured, Untrusted
from attestation.ops.administer import set_rego_policy
from attestation.ops.external import external_token
from attestation.ops.release import RESOURCE_POLICY, Credentials, authenticate
from attestation.ops.revocations import revoke
from attestation.sources.policy_store import PolicyKind
from attestation.values import ResourcePath
from tests.attestation.broker.broker import ADMIN, GPU_POLICY, NOW, PATH, Broker, broker, ready_broker
from tests.attestation.broker.drive import release_external
from tests.attestation.broker.issuer import CLAIMS, Signer, foreign_claims, tee_jwk

ROOT = Signer(name="root")
MIDDLE = Signer(name="middle", issuer=ROOT)
LOWER = Signer(name="lower", issuer=MIDDLE)
LEAF = Signer(name="leaf", issuer=LOWER, authority=False)
ALONE = Signer(name="alone")
OTHER = Signer(name="other")
OLD = Signer(name="old", issuer=ROOT, authority=False, days=-1)
NOT_CA = Signer(name="not a CA", issuer=ROOT, authority=False)
BELOW_NOT_CA = Signer(name="below", issuer=NOT_CA, authority=False)
PLAIN = ResourcePath.parse("default/plain/secret")
ALLOW = """package policy
import rego.v1
default allow := false
allow if input.submods.cpu0["ear.status"] == "affirming"
"""


def jwk(signer: Signer, *chain: Signer, **changes: Any) -> dict[str, Any]:
    return signer.jwk | {"x5c": [link.x5c for link in chain]} | changes


# Upstream's seven scenarios for keys in headers (keybroker.md 3.2), with certificates of our own.
@pytest.mark.parametrize(
    ("key", "trusted", "code"),
    [
        pytest.param(jwk(ALONE, ALONE), [ALONE], None, id="kbs-072-scenario-1-self-signed"),
        pytest.param(jwk(OTHER, ALONE), [ALONE], "token-jwk-mismatch", id="kbs-072-scenario-2-key-mismatch"),
        pytest.param(ALONE.jwk, [ALONE], "token-x5c", id="kbs-072-scenario-3-no-x5c"),
        pytest.param(jwk(ALONE, ALONE), [OTHER], "token-chain", id="kbs-072-scenario-4-wrong-anchor"),
        pytest.param(jwk(LEAF, LEAF, LOWER, MIDDLE), [ROOT], None, id="kbs-072-scenario-5-intermediates"),
        pytest.param(jwk(LEAF, LEAF, MIDDLE, LOWER), [ROOT], None, id="kbs-072-scenario-6-permuted"),
        pytest.param(jwk(LEAF, LEAF, LOWER), [ROOT, MIDDLE], None, id="kbs-072-scenario-7-part-in-trust-file"),
        pytest.param(jwk(LEAF, LEAF, MIDDLE), [ROOT], "token-chain", id="kbs-072-missing-link"),
        pytest.param(jwk(OLD, OLD), [ROOT], "token-chain", id="kbs-072-expired-certificate"),
        pytest.param(jwk(BELOW_NOT_CA, BELOW_NOT_CA, NOT_CA), [ROOT], "token-chain", id="kbs-072-issuer-is-no-ca"),
        pytest.param(jwk(ALONE, ALONE), [], "token-anchor", id="kbs-072-nobody-trusted"),
        pytest.param(jwk(ALONE, *[ALONE] * 8), [ALONE], None, id="kbs-072-longest-chain"),
        pytest.param(jwk(ALONE, *[ALONE] * 9), [ALONE], "token-x5c", id="kbs-072-long-chain"),
        pytest.param(jwk(ALONE), [ALONE], "token-x5c", id="kbs-072-empty-chain"),
        pytest.param(jwk(ALONE, x5c=[1]), [ALONE], "json-type", id="kbs-072-chain-of-numbers"),
        pytest.param(jwk(ALONE, ALONE, alg="ES384"), [ALONE], "token-jwk-alg", id="kbs-072-algorithm-of-another-curve"),
        pytest.param(jwk(ALONE, x5c=["%%"]), [ALONE], "token-x5c", id="kbs-072-garbage-chain"),
        pytest.param(jwk(ALONE, ALONE, alg="HS256"), [ALONE], "token-jwk-alg", id="kbs-072-symmetric"),
        pytest.param(jwk(ALONE, ALONE, alg=None), [ALONE], "token-jwk-alg", id="kbs-072-no-alg"),
        pytest.param(jwk(ALONE, ALONE, x="AA"), [ALONE], "token-jwk", id="kbs-072-no-point"),
        pytest.param({"kty": "oct", "k": "AA", "alg": "HS256"}, [ALONE], "token-jwk", id="kbs-072-secret-key"),
    ],
)
def test_keys_in_headers(key: dict[str, Any], trusted: list[Signer], code: str | None) -> None:
    """A key is believed through its certificate alone; line breaks and base64url in x5c as upstream takes them."""
    trust = TokenTrust.of(certificates=[signer.pem for signer in trusted])
    variants = [key]
    if code is None:
        wrapped = [text[:64] + "\n" + text[64:] for text in key["x5c"]]
        urlsafe = [text.replace("+", "-").replace("/", "_").rstrip("=") for text in key["x5c"]]
        variants += [key | {"x5c": wrapped}, key | {"x5c": urlsafe}]
    for variant in variants:
        if code is None:
            assert endorsed_key({"jwk": variant}, trust, now=NOW).alg == "ES256"
        else:
            with pytest.raises(AttestationError) as caught:
                endorsed_key({"jwk": variant}, trust, now=NOW)
            assert caught.value.code == code


def key_set(*entries: dict[str, Any]) -> bytes:
    import json

    return json.dumps({"keys": entries}).encode()


def test_certificates_in_headers_have_a_size() -> None:
    trust = TokenTrust.of(certificates=[ALONE.pem])
    for size, what in ((16 * 1024, "not a certificate"), (16 * 1024 + 1, "certificate is too long")):
        with pytest.raises(Malformed) as caught:
            endorsed_key({"jwk": jwk(ALONE, x5c=["A" * size])}, trust, now=NOW)
        assert (caught.value.code, caught.value.what) == ("token-x5c", what)


def rsa_jwk(bits: int, alg: str = "RS256") -> dict[str, Any]:
    """A modulus of this size: nobody has to sign with it."""
    modulus = ((1 << bits - 1) + 1).to_bytes((bits + 7) // 8, "big")
    return {"kid": str(bits), "kty": "RSA", "alg": alg, "n": b64url(modulus), "e": "AQAB"}


@pytest.mark.parametrize(
    ("entry", "usable"),
    [
        pytest.param(rsa_jwk(2047), False, id="rsa-2047"),
        pytest.param(rsa_jwk(2048), True, id="rsa-2048"),
        pytest.param(rsa_jwk(4096), True, id="rsa-4096"),
        pytest.param(rsa_jwk(4097), False, id="rsa-4097"),
        pytest.param(rsa_jwk(2048, "ES256"), False, id="rsa-es256"),
        pytest.param(rsa_jwk(2048, "HS256"), False, id="rsa-hs256"),
        pytest.param(ALONE.jwk | {"kid": "k", "alg": "RS256"}, False, id="ec-rs256"),
    ],
)
@pytest.mark.filterwarnings("ignore:Key size should be:joserfc.errors.SecurityWarning")
def test_which_keys_may_sign(entry: dict[str, Any], usable: bool) -> None:
    if usable:
        assert TokenTrust.of(jwks=[key_set(entry)]).keys[entry["kid"]].alg == entry["alg"]
        return
    with pytest.raises(Misconfigured):
        TokenTrust.of(jwks=[key_set(entry)])


def test_key_sets_have_a_size() -> None:
    entries = [ALONE.jwk | {"kid": f"k{number}"} for number in range(65)]
    assert len(TokenTrust.of(jwks=[key_set(*entries[:64])]).keys) == 64
    for document in (key_set(*entries), key_set()):
        with pytest.raises(Misconfigured) as caught:
            TokenTrust.of(jwks=[document])
        assert caught.value.code == "token-jwks"


BY_KID = key_set(ALONE.jwk | {"kid": "k1"})


@pytest.mark.parametrize(
    "documents",
    [
        pytest.param([b"{}"], id="no-keys"),
        pytest.param([b"nonsense"], id="not-json"),
        pytest.param([key_set(ALONE.jwk)], id="no-kid"),
        pytest.param([BY_KID, BY_KID], id="kid-twice"),
        pytest.param([key_set({"kid": "a", "kty": "RSA", "alg": "RS256", "n": "AQAB", "e": "AQAB"})], id="short-rsa"),
    ],
)
def test_unusable_key_sets_are_refused_at_start(documents: list[bytes]) -> None:
    """The operator's mistake, found before the first token."""
    with pytest.raises(Misconfigured) as caught:
        TokenTrust.of(jwks=documents)
    assert caught.value.code == "token-jwks"
    with pytest.raises(Misconfigured):
        TokenTrust.of(certificates=[b"no pem"])


def test_rsa_keys_of_a_set() -> None:
    """As Intel Trust Authority signs: PS384, by key id; another algorithm with the same key is refused."""
    pair = RSAKey.import_key(rsa.generate_private_key(65537, 3072))
    public = pair.as_dict(private=False)
    trust = TokenTrust.of(jwks=[key_set({**public, "kid": "ita", "alg": "PS384"})])
    tee = ec.generate_private_key(ec.SECP256R1())
    claims = {"exp": int(NOW.timestamp()) + 60, "tdx": {"attester_user_data": {"tee-pubkey": tee_jwk(tee)}}}

    def token(alg: str) -> str:
        import json

        return jws.serialize_compact({"alg": alg, "kid": "ita"}, json.dumps(claims).encode(), pair, algorithms=[alg])

    assert verify_external(token("PS384"), trust, now=NOW).tee_key == tee_jwk(tee)
    with pytest.raises(Untrusted) as caught:
        verify_external(token("RS256"), trust, now=NOW)
    assert caught.value.code == "token-signature"


TEE = ec.generate_private_key(ec.SECP256R1())
TRUST = TokenTrust.of(certificates=[ALONE.pem], jwks=[key_set(OTHER.jwk | {"kid": "k1"})])


def signed(claims: dict[str, Any], **header: Any) -> str:
    return ALONE.token(claims, jwk=jwk(ALONE, ALONE), **header)


@pytest.mark.parametrize(
    ("token", "code"),
    [
        pytest.param(lambda: signed(foreign_claims(TEE, exp=int(NOW.timestamp()) - 61)), "token-expired", id="expired"),
        pytest.param(lambda: signed(foreign_claims(TEE, exp=None)), "token-expired", id="no-exp"),
        pytest.param(lambda: signed(foreign_claims(TEE, exp=True)), "token-expired", id="exp-true"),
        pytest.param(lambda: signed(foreign_claims(TEE, exp=float("inf"))), "json", id="exp-infinite"),
        pytest.param(lambda: signed(foreign_claims(TEE, nbf=int(NOW.timestamp()) + 61)), "token-early", id="early"),
        pytest.param(lambda: signed({"exp": 2**40}), "token-tee-key", id="no-tee-key"),
        pytest.param(lambda: signed({"exp": 2**40, "tee-pubkey": {"kty": "EC"}}), "tee-key-members", id="bad-tee-key"),
        pytest.param(lambda: OTHER.token(foreign_claims(TEE)), "token-key", id="no-kid"),
        pytest.param(lambda: OTHER.token(foreign_claims(TEE), kid="k2"), "token-key", id="unknown-kid"),
        pytest.param(lambda: ALONE.token(foreign_claims(TEE), kid="k1"), "token-signature", id="another-signer"),
        pytest.param(
            lambda: OTHER.token(foreign_claims(TEE), jwk=jwk(ALONE, ALONE)), "token-signature", id="another-jwk"
        ),
        pytest.param(
            lambda: signed(foreign_claims(TEE) | {"x-nvidia-overall-att-result": True}), "token-nras", id="nras-shaped"
        ),
        pytest.param(lambda: "x" * 200_000, "token-signature", id="long"),
        pytest.param(lambda: "a.b", "token-signature", id="garbage"),
    ],
)
def test_tokens_that_are_refused(token: Callable[[], str], code: str) -> None:
    """In time, signed by whom the operator named, and with a TEE key."""
    with pytest.raises((Untrusted, Malformed)) as caught:
        verify_external(token(), TRUST, now=NOW)
    assert caught.value.code == code


def test_pointers_go_in_order() -> None:
    """The operator's own first, then upstream's five; the first hit decides."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(6)]
    claims: dict[str, Any] = {"exp": 2**40, "tee-pubkey": tee_jwk(keys[0])}
    steps: list[Callable[[], Any]] = [
        lambda: claims.update(submods={"cpu0": {CLAIMS: {"runtime_data_claims": {"tee-pubkey": tee_jwk(keys[1])}}}}),
        lambda: claims.update(customized_claims={"runtime_data": {"tee-pubkey": tee_jwk(keys[2])}}),
        lambda: claims.update(tdx={"attester_user_data": {"tee-pubkey": tee_jwk(keys[3])}}),
        lambda: claims["tdx"].update(attester_runtime_data={"tee-pubkey": tee_jwk(keys[4])}),
        lambda: claims.update(mine={"key": tee_jwk(keys[5])}),
    ]
    for index, key in enumerate(keys):
        if index:
            steps[index - 1]()
        token = verify_external(signed(claims), replace(TRUST, tee_key_paths=("/mine/key",)), now=NOW)
        assert token.tee_key == tee_jwk(key)


@pytest.mark.parametrize("path", ["", "mine", "/a~1b"], ids=["empty", "relative", "escaped"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    """At start, and not at the first token."""
    with pytest.raises(Misconfigured) as caught:
        TokenTrust.of(tee_key_paths=[path])
    assert caught.value.code == "token-key-path"


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[Broker]:
    """A broker that takes tokens of `ALONE`, with a GPU key and a secret that only the resource policy guards."""
    with ready_broker(tmp_path) as made:
        made.world = replace(made.world, external=TRUST)
        made.put(PLAIN, b"shhhhhhh")
        set_rego_policy(made.world, ADMIN, PolicyKind.REGO_RESOURCE, RESOURCE_POLICY, ALLOW, now=NOW)
        yield made


def arrive(made: Broker, token: str, cookie: str | None = None) -> ExternalToken | None:
    return external_token(made.world, Credentials(cookie=cookie, bearer=token), now=NOW)


def get(made: Broker, token: str, path: ResourcePath = PLAIN) -> bytes:
    """What the holder of `TEE` gets."""
    known = arrive(made, token)
    assert known is not None
    return unseal(release_external(made.world, known, path, query={}, now=NOW), TEE).expose()


def denial(made: Broker, token: str, path: ResourcePath) -> str:
    with pytest.raises(Denied):
        get(made, token, path)
    return str(made.world.audit.about(str(path), "release-denied")[-1].body["findings"])


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-072-released")])
def test_a_foreign_token_reaches_the_resource_policy(kbs: Broker, _case: None) -> None:
    """By x5c and by kid; sealed to the TEE key in the claims, counted and audited with the issuer."""
    assert get(kbs, signed(foreign_claims(TEE))) == b"shhhhhhh"
    assert get(kbs, OTHER.token(foreign_claims(TEE), kid="k1")) == b"shhhhhhh"
    entry = kbs.world.audit.about(str(PLAIN), "released")[-1]
    assert entry.body["issuer"] == "CoCo-Attestation-Service"
    assert entry.body["tee_key"] == thumbprint(tee_jwk(TEE))
    warning = foreign_claims(TEE)
    warning["submods"]["cpu0"]["ear.status"] = "warning"
    assert "resource-policy-denies" in denial(kbs, signed(warning), PLAIN)


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-072-gpu-keys")])
def test_no_gpu_key_for_a_foreign_token(kbs: Broker, _case: None) -> None:
    """However affirming it is, whoever signed it: no evidence came here, for no nonce of ours."""
    token = signed(foreign_claims(TEE))
    assert "external-token-for-gpu-key" in denial(kbs, token, PATH)
    cpu_only = GPU_POLICY[: GPU_POLICY.index("[gpus]")] + GPU_POLICY[GPU_POLICY.index("[init_data]") :]
    kbs.put(PLAIN, policy=cpu_only)
    assert "external-token-for-conditions" in denial(kbs, token, PLAIN)
    from attestation.broker.keys import KeyKind

    bundle = ResourcePath.parse("default/model/all")
    kbs.put(bundle, b'["default/model/llama"]', kind=KeyKind.BUNDLE)
    assert "external-token-for-conditions" in denial(kbs, token, bundle)


def test_no_key_without_a_resource_policy(tmp_path: Path) -> None:
    """Trusting an issuer releases nothing by itself; what is not there is told only to whom the policy allows."""
    with broker(tmp_path) as made:
        made.world = replace(made.world, external=TRUST)
        made.put(PLAIN, b"s")
        token = signed(foreign_claims(TEE))
        assert "no-release-policy" in denial(made, token, PLAIN)
        set_rego_policy(made.world, ADMIN, PolicyKind.REGO_RESOURCE, RESOURCE_POLICY, ALLOW, now=NOW)
        with pytest.raises(Denied) as caught:
            get(made, token, ResourcePath.parse("default/no/such"))
        assert caught.value.code == "resource-not-found"


def test_a_sample_tee_elsewhere_is_forgeable_here(kbs: Broker) -> None:
    """Keys labelled test, and no others."""
    token = signed(foreign_claims(TEE, tee="sample"))
    assert "forgeable-evidence" in denial(kbs, token, PLAIN)
    test = ResourcePath.parse("default/plain/test")
    kbs.put(test, b"t", labels=("test",))
    assert get(kbs, token, test) == b"t"


def test_who_comes_with_a_session_or_a_token_of_ours(kbs: Broker) -> None:
    """Our own session or token decides before any other; without configured trust nothing else is looked at."""
    visit = kbs.handshake()
    assert arrive(kbs, visit.token) is None
    assert arrive(kbs, signed(foreign_claims(TEE)), cookie=visit.cookie) is None
    assert arrive(kbs, signed(foreign_claims(TEE)), cookie="00" * 32) is not None
    kbs.world = replace(kbs.world, external=None)
    assert arrive(kbs, signed(foreign_claims(TEE))) is None
    with pytest.raises(Untrusted):
        authenticate(kbs.world, Credentials(cookie=None, bearer=signed(foreign_claims(TEE))), now=NOW)


def test_a_revoked_tee_key_stays_out(kbs: Broker) -> None:
    """Revocation knows the key, whoever vouches for it."""
    revoke(kbs.world, ADMIN, RevocationKind.TEE_KEY, thumbprint(tee_jwk(TEE)), "stolen", now=NOW)
    with pytest.raises(Untrusted) as caught:
        arrive(kbs, signed(foreign_claims(TEE)))
    assert caught.value.code == "revoked"


def test_our_own_tokens_carry_a_chain_where_one_is_configured(kbs: Broker) -> None:
    """Upstream's rules accept them: key in the header, chain to a trusted certificate, key at a known pointer."""
    visit = kbs.handshake()
    attested = authenticate(kbs.world, Credentials(cookie=None, bearer=visit.token), now=NOW)
    current = kbs.world.authority.current
    private = current.key.private_key
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    leaf = Signer(name="broker", issuer=ROOT, authority=False, key=private)
    authority = kbs.world.authority.certified(leaf.pem + ROOT.pem)
    token = render_token(attested, authority)
    trust = TokenTrust.of(certificates=[ROOT.pem])
    assert verify_external(token, trust, now=NOW + timedelta(seconds=1)).tee_key == attested.tee_key
    kbs.world = replace(kbs.world, authority=authority)
    assert kbs.handshake().get() == b"k" * 32
    assert len(token) - len(visit.token) < 2048  # what two small certificates cost
    for wrong in (OTHER.pem, b"", leaf.pem + ROOT.pem * 3):
        with pytest.raises(Misconfigured) as caught:
            kbs.world.authority.certified(wrong)
        assert caught.value.code == "token-certificate"
