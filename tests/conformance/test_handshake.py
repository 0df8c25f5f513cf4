"""Items 1 to 37 of keybroker.md 4.2: `/auth` and `/attest` on the wire."""

import base64
import hashlib
import json
import re
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from attestation.crypto import binding
from tests.conformance.rust_client import (
    HASHES,
    RustClient,
    TeeKey,
    Wire,
    b64u,
    claims_of,
    error_of,
    jcs,
    random_cookie,
    sample_attester,
)
from tests.conformance.target import Target, std_b64

AUTH: dict[str, Any] = {"version": "0.4.0", "tee": "sample", "extra-params": {"supported-hash-algorithms": HASHES}}
MISMATCH = "KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.1"
KNOWN_NONCE = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
KNOWN_KEY = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ECDH-ES+A256KW",
    "x": "G8fAud93NgCg8C_0bY1YqVZ5zNlkb-cNsGTQia7m0is",
    "y": "RK1gonvUKKQOCSHDwz3SiN9EijCqmXS4sDeRbc8RnL0",
}


def auth(kbs: Target, body: Any = None, headers: dict[str, str] | None = None) -> Any:
    return kbs.wire().call("POST", "/kbs/v0/auth", AUTH if body is None else body, headers)


@pytest.mark.parametrize("_case", [pytest.param(None, id=f"kbs-{n:03}") for n in (1, 2, 3, 4, 5)])
def test_challenge(kbs: Target, _case: None) -> None:
    """200, JSON, 44 characters of standard base64 for 32 bytes, `extra-params` present, no other hash chosen."""
    reply = auth(kbs)
    assert (reply.status, reply.header("content-type")) == (200, "application/json")
    challenge = reply.json()
    assert set(challenge) == {"nonce", "extra-params"}
    assert len(challenge["nonce"]) == 44
    assert len(base64.b64decode(challenge["nonce"], validate=True)) == 32
    assert challenge["extra-params"] == "" or challenge["extra-params"]["selected-hash-algorithm"] in HASHES


@pytest.mark.parametrize("_case", [pytest.param(None, id=f"kbs-{n:03}") for n in (6, 7)])
def test_cookie(kbs: Target, _case: None) -> None:
    """Hexadecimal value, expiry ahead, a path that covers the protocol, not Secure on http, no foreign domain."""
    reply = auth(kbs)
    name, _, rest = (reply.header("set-cookie") or "").partition("=")
    value, *attributes = [part.strip() for part in rest.split(";")]
    attribute = {k.lower(): v for k, _, v in (part.partition("=") for part in attributes)}
    assert name == "kbs-session-id"
    assert re.fullmatch("[0-9a-f]+", value)
    assert parsedate_to_datetime(attribute["expires"]).timestamp() > kbs.now()
    assert attribute.get("path", "/kbs/v0") in ("/kbs/v0", "/kbs", "/")
    assert "secure" not in attribute
    assert "domain" not in attribute


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-008")])
def test_two_challenges_differ(kbs: Target, _case: None) -> None:
    """Nonce and cookie are fresh."""
    first, second = auth(kbs), auth(kbs)
    assert first.json()["nonce"] != second.json()["nonce"]
    assert first.header("set-cookie") != second.header("set-cookie")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param({**AUTH, "unknown": [1, {}]}, 200, id="kbs-009-unknown-member"),
        pytest.param({k: v for k, v in AUTH.items() if k != "version"}, 401, id="kbs-009-no-version"),
        pytest.param({k: v for k, v in AUTH.items() if k != "tee"}, 401, id="kbs-009-no-tee"),
        pytest.param({k: v for k, v in AUTH.items() if k != "extra-params"}, 401, id="kbs-009-no-extra-params"),
        pytest.param({**AUTH, "extra-params": ""}, 200, id="kbs-010-string"),
        pytest.param({**AUTH, "extra-params": {"a": [None, 1.5]}}, 200, id="kbs-010-object"),
        pytest.param({**AUTH, "extra-params": None}, 200, id="kbs-010-null"),
        pytest.param({**AUTH, "version": "0.1.1"}, 401, id="kbs-011"),
        pytest.param({**AUTH, "tee": "nosuch"}, 401, id="kbs-012-unknown-tee"),
        pytest.param({**AUTH, "tee": "sgx"}, 401, id="kbs-012-disabled-tee"),
        pytest.param({**AUTH, "tee": "nvidia"}, 401, id="kbs-012-device-as-primary"),
        pytest.param([], 401, id="kbs-014-array"),
        pytest.param(b"\xff\x00", 401, id="kbs-014-not-json"),
        pytest.param({**AUTH, "version": 4}, 401, id="kbs-014-number"),
    ],
)
def test_auth_bodies(kbs: Target, body: Any, status: int) -> None:
    """What is accepted, and a parseable error body for everything else."""
    reply = auth(kbs, body)
    assert reply.status == status
    if status != 200:
        detail = error_of(reply)["detail"]
        assert reply.header("content-type") == "application/json"
        if isinstance(body, dict) and body.get("version") == "0.1.1":
            assert MISMATCH in detail


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-013")])
def test_auth_with_an_old_cookie(kbs: Target, _case: None) -> None:
    """A fresh session, whatever the jar holds."""
    client = kbs.client()
    client.handshake()
    before = client.cookie
    client.handshake()
    assert client.cookie != before
    assert client.get("resource/default/test/secret").status == 200


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-015")])
def test_cookie_among_others(kbs: Target, _case: None) -> None:
    """The name is matched exactly."""
    client = kbs.client()
    client.auth()
    jar = f"a=b; xkbs-session-id={random_cookie()}; kbs-session-id={client.cookie}; kbs-session-idx=1"
    assert client.wire.call("POST", "/kbs/v0/attest", client.attest_body(), {"cookie": jar}).status == 200


@pytest.mark.parametrize(
    "cookie",
    [
        pytest.param(None, id="kbs-016-none"),
        pytest.param(random_cookie(), id="kbs-016-unknown"),
        pytest.param("", id="kbs-016-empty"),
        pytest.param("x" * 5000, id="kbs-016-long"),
    ],
)
def test_attest_without_session(kbs: Target, cookie: str | None) -> None:
    """401 and ErrorInformation."""
    client = kbs.client()
    client.auth()
    headers = {} if cookie is None else {"cookie": f"kbs-session-id={cookie}"}
    reply = client.wire.call("POST", "/kbs/v0/attest", client.attest_body(), headers)
    assert reply.status == 401
    error_of(reply)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-016-expired")])
def test_attest_on_an_expired_session(kbs: Target, _case: None) -> None:
    """Five minutes after the challenge."""
    from datetime import timedelta

    assert kbs.local
    client, clock = kbs.client(), kbs.local.broker.clock
    client.auth()
    clock.now += timedelta(minutes=6)
    try:
        assert client.attest().status == 401
    finally:
        clock.now -= timedelta(minutes=6)


def changed(client: RustClient, *path: str, to: Any) -> dict[str, Any]:
    """The honest body with one member replaced, or removed where `to` is `...`."""
    body: Any = json.loads(json.dumps(client.attest_body()))
    inner = body
    for name in path[:-1]:
        inner = inner[name]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to(inner[path[-1]]) if callable(to) else to
    assert isinstance(body, dict)
    return body


TOML = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"a.toml" = ""\n'


def with_init_data(nonce: str, jwk: dict[str, str]) -> Any:
    primary, additional, _ = sample_attester(nonce, jwk)
    field = std_b64(hashlib.sha384(TOML.encode()).digest())
    return primary | {"init_data": field}, additional, TOML


@pytest.mark.parametrize(
    ("path", "to", "status"),
    [
        pytest.param(("init-data",), None, 200, id="kbs-017-null"),
        pytest.param(("init-data",), ..., 200, id="kbs-017-absent"),
        pytest.param(("init-data",), {"format": "json", "body": "{}"}, 401, id="kbs-018-other-format"),
        pytest.param(("runtime-data", "nonce"), lambda n: n.rstrip("="), 401, id="kbs-019-unpadded"),
        pytest.param(("runtime-data", "nonce"), lambda n: n + "\n", 401, id="kbs-019-newline"),
        pytest.param(("runtime-data", "nonce"), lambda n: std_b64(bytes(32)), 401, id="kbs-019-other"),
        pytest.param(("runtime-data", "tee-pubkey", "x"), lambda x: x[:-4], 401, id="kbs-021-short-coordinate"),
        pytest.param(("runtime-data", "tee-pubkey", "crv"), "P-384", 401, id="kbs-020-p384"),
        pytest.param(("tee-evidence", "additional_evidence"), "[]", 401, id="kbs-022-not-an-object"),
        pytest.param(("tee-evidence", "additional_evidence"), "{", 401, id="kbs-022-not-json"),
        pytest.param(("tee-evidence", "additional_evidence"), "{}", 401, id="kbs-023-other-string"),
        pytest.param(("tee-evidence", "primary_evidence", "report_data"), std_b64(bytes(48)), 401, id="kbs-037"),
        pytest.param(("tee-evidence", "primary_evidence", "report_data"), 7, 401, id="kbs-037-number"),
        pytest.param(("tee-evidence",), ..., 400, id="kbs-037-no-evidence"),
    ],
)
def test_attest_bodies(kbs: Target, path: tuple[str, ...], to: Any, status: int) -> None:
    """One member of an honest body changed."""
    client = kbs.client()
    client.auth()
    reply = client.attest(changed(client, *path, to=to))
    assert reply.status == status
    if status != 200:
        error_of(reply)
        assert reply.header("content-type") == "application/json"


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-018-toml")])
def test_init_data_document(kbs: Target, _case: None) -> None:
    """`{format: toml, body}` whose digest is the TEE's field."""
    kbs.client(attester=with_init_data).handshake()


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("P-256", id="kbs-020-p256"),
        pytest.param("P-521", id="kbs-020-p521"),
        pytest.param("RSA", id="kbs-020-rsa"),
    ],
)
def test_tee_key_kinds(kbs: Target, kind: str) -> None:
    """Every kind that clients have, through to a decrypted secret."""
    assert kbs.client(kind).get_resource("resource/default/test/secret") == b"shhhhhhh"


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-021-leading-zero")])
def test_leading_zeros_are_kept(kbs: Target, _case: None) -> None:
    """A coordinate that starts with a zero byte travels at full width."""
    key = next(k for k in iter(TeeKey.make, None) if k.jwk["x"].startswith("AA") or k.jwk["x"] < "AQ")
    client = RustClient(wire=kbs.wire(), key=key)
    assert client.get_resource("resource/default/test/secret") == b"shhhhhhh"


@pytest.mark.parametrize("_case", [pytest.param(None, id=f"kbs-{n:03}") for n in (24, 25, 26)])
def test_binding_digests(_case: None) -> None:
    """Device digest without, primary digest with `additional-evidence` even when empty; SHA-384 over RFC 8785."""
    device = "d3a274c8bba9e73bbc28ef45ec5f4e6cb1bf51a9542792d94c94d8a34dd3accb2304d26c60dbe86cdde846adcc30655b"
    primary = "230357accf6cf80f20d7006702c5fc43e12e55eae51b064d42c42be62e29c18243916ffc340689de3fe21879c373db52"
    assert binding.trustee_device_digest(KNOWN_NONCE, KNOWN_KEY).hex() == device
    assert binding.trustee_primary_digest(KNOWN_NONCE, KNOWN_KEY, "").hex() == primary
    document = {"additional-evidence": "", "nonce": KNOWN_NONCE, "tee-pubkey": KNOWN_KEY}
    assert hashlib.sha384(jcs(document)).hexdigest() == primary


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-027")])
def test_report_data_is_padded_right(_case: None) -> None:
    """48 bytes of digest, 16 zeros."""
    data = binding.trustee_report_data(KNOWN_NONCE, KNOWN_KEY, "")
    assert (len(data), data[48:]) == (64, bytes(16))


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-028")])
def test_gpu_nonce_is_the_first_half(_case: None) -> None:
    """32 bytes of the device digest."""
    nonce = binding.trustee_device_nonce(KNOWN_NONCE, KNOWN_KEY).hex()
    assert nonce == "d3a274c8bba9e73bbc28ef45ec5f4e6cb1bf51a9542792d94c94d8a34dd3accb"


@pytest.mark.parametrize(
    ("size", "status"),
    [pytest.param(2 * 1024 * 1024, 401, id="kbs-029-2MiB"), pytest.param(2 * 1024 * 1024 + 1, 413, id="kbs-029-413")],
)
def test_body_size(kbs: Target, size: int, status: int) -> None:
    """2 MiB are read and judged, one byte more is not."""
    client = kbs.client()
    client.auth()
    body = client.attest_body()
    body["tee-evidence"]["additional_evidence"] = ""
    empty = len(json.dumps(body, separators=(",", ":")))
    body["tee-evidence"]["additional_evidence"] = "x" * (size - empty)
    reply = client.attest(body)
    assert reply.status == status
    error_of(reply)


@pytest.mark.parametrize("_case", [pytest.param(None, id=f"kbs-{n:03}") for n in (30, 31, 32, 33, 34, 35)])
def test_token_shape(kbs: Target, _case: None) -> None:
    """Three parts without padding, integer times, string ids, at least a minute to live, ES256."""
    token = kbs.client().handshake()
    claims = claims_of(token)
    assert claims["exp"] >= kbs.now() + 60
    assert isinstance(claims.get("aud", ""), str) or all(isinstance(a, str) for a in claims["aud"])
    assert not isinstance(claims.get("nonce", ""), dict)
    head = token.split(".")[0]
    header = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    assert header["alg"] == "ES256"


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-036")])
def test_attest_is_idempotent_for_one_body(kbs: Target, _case: None) -> None:
    """A lost response can be asked for again with the same bytes; with others it is a replay."""
    client = kbs.client()
    client.auth()
    body = client.attest_body()
    first, second = client.attest(body), client.attest(body)
    assert (first.status, second.status) == (200, 200)
    assert first.json()["token"] == second.json()["token"]
    third = client.attest({**body, "more": 1})
    assert third.status == 401
    error_of(third)


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-037-new-challenge")])
def test_after_a_refusal_a_new_challenge_works(kbs: Target, _case: None) -> None:
    """The client always starts again at `/auth`."""
    client = kbs.client()
    client.auth()
    assert client.attest(changed(client, "runtime-data", "nonce", to=b64u(bytes(32)))).status == 401
    assert client.get_resource("resource/default/test/secret") == b"shhhhhhh"


def test_wires_close(kbs: Target) -> None:
    """The emulation leaves a usable connection behind each exchange."""
    wire: Wire = kbs.wire()
    assert wire.call("GET", "/healthz").status == 200
    wire.close()
