"""Items 38 to 58 of keybroker.md 4.2: getting a resource."""

import base64
import json
import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from attestation.service.app import ServiceLimits
from tests.conformance.rust_client import Reply, RustClient, error_of, random_cookie, unb64u
from tests.conformance.target import Target, local_target

SECRET = "resource/default/test/secret"
MEMBERS = {"protected", "encrypted_key", "iv", "ciphertext", "tag"}


def attested(kbs: Target, kind: str = "P-256") -> RustClient:
    client = kbs.client(kind)
    client.handshake()
    return client


def kind_of(reply: Reply) -> str:
    return error_of(reply)["type"].rpartition("/")[2]


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-038"), pytest.param(None, id="kbs-058-401")])
def test_first_get_is_401(kbs: Target, _case: None) -> None:
    """No cookie, no token: TokenNotFound, as JSON, without challenge or redirect."""
    reply = kbs.client().get(SECRET)
    assert (reply.status, kind_of(reply)) == (401, "TokenNotFound")
    assert reply.header("content-type") == "application/json"
    assert reply.header("www-authenticate") is None


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-039")])
def test_get_with_cookie(kbs: Target, _case: None) -> None:
    """Background check, from nothing to the secret."""
    client = kbs.client()
    assert client.get_resource(SECRET) == b"shhhhhhh"
    assert client.handshakes == 1


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-040")])
def test_get_with_bearer(kbs: Target, _case: None) -> None:
    """Passport: only the token, and a JWE for the key in it."""
    client = attested(kbs)
    client.cookie = None
    reply = client.get(SECRET, bearer=True)
    assert reply.status == 200
    assert client.key.decrypt(reply.json()) == b"shhhhhhh"


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-041")])
def test_stale_cookie_and_good_bearer(kbs: Target, _case: None) -> None:
    """The bearer token is used."""
    client = attested(kbs)
    headers = {"cookie": f"kbs-session-id={random_cookie()}", "authorization": f"Bearer {client.token}"}
    reply = client.wire.call("GET", f"/kbs/v0/{SECRET}", headers=headers)
    assert client.key.decrypt(reply.json()) == b"shhhhhhh"


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("bearer", [pytest.param(True, id="kbs-042"), pytest.param(False, id="kbs-042-cookie")])
def test_expired(kbs: Target, bearer: bool) -> None:
    """401, so that the client renews."""
    assert kbs.local
    client, clock = attested(kbs), kbs.local.broker.clock
    clock.now += timedelta(minutes=6)
    try:
        reply = client.get(SECRET, bearer=bearer)
    finally:
        clock.now -= timedelta(minutes=6)
    assert reply.status == 401
    error_of(reply)


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-042-bad-token")])
def test_bad_tokens(kbs: Target, _case: None) -> None:
    """Changed, unsigned, empty: 401 each time."""
    client = attested(kbs)
    assert client.token
    head, body, signature = client.token.split(".")
    for token in (f"{head}.{body}.AAAA", f"eyJhbGciOiJub25lIn0.{body}.", "", "a.b.c", f"{head}.{body}x.{signature}"):
        reply = client.wire.call("GET", f"/kbs/v0/{SECRET}", headers={"authorization": f"Bearer {token}"})
        assert reply.status == 401
        error_of(reply)


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-043")])
def test_missing_resource(kbs: Target, _case: None) -> None:
    """404 to callers whom the path would allow; the client does not retry."""
    reply = attested(kbs).get("resource/default/no/such")
    assert (reply.status, kind_of(reply)) == (404, "ResourceNotFound")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("resource/default/denied/secret", id="kbs-044"),
        pytest.param("resource/default/denied/no-such", id="kbs-044-absent-looks-the-same"),
    ],
)
def test_denied(kbs: Target, path: str) -> None:
    """403 and no retry storm; whether the resource exists does not show."""
    kbs.put("default/denied/secret", b"x")
    client = attested(kbs)
    reply = client.get(path)
    assert (reply.status, kind_of(reply)) == (403, "PolicyDeny")
    assert client.handshakes == 1


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("limits", "status"),
    [
        pytest.param(ServiceLimits(threads=1, queue=-1), 503, id="kbs-045-overload"),
        pytest.param(ServiceLimits(rate_per_s=0.0, burst=0), 429, id="kbs-045-rate"),
    ],
)
def test_overload(tmp_path: Path, limits: ServiceLimits, status: int) -> None:
    """JSON and Retry-After, on every endpoint of the guests."""
    with local_target(tmp_path, limits=limits, options={"deny_all_admins": True}) as busy:
        wire = busy.wire()
        for method, path in (("POST", "auth"), ("POST", "attest"), ("GET", SECRET)):
            reply = wire.call(method, f"/kbs/v0/{path}", {"version": "0.4.0", "tee": "snp", "extra-params": ""})
            assert reply.status == status
            assert reply.header("retry-after") == "2"
            error_of(reply)


@pytest.mark.parametrize(
    ("kind", "wrapped", "curve"),
    [
        pytest.param("P-256", 40, "P-256", id="kbs-046-p256"),
        pytest.param("P-521", 40, "P-521", id="kbs-049-p521"),
        pytest.param("RSA", 256, None, id="kbs-051-rsa"),
        pytest.param("P-256", 40, "P-256", id="kbs-047"),
        pytest.param("P-256", 40, "P-256", id="kbs-048"),
        pytest.param("P-521", 40, "P-521", id="kbs-050"),
    ],
)
def test_jwe(kbs: Target, kind: str, wrapped: int, curve: str | None) -> None:
    """Exactly five members, serde's header bytes, the right lengths, the client's curve."""
    client = attested(kbs, kind)
    body: dict[str, Any] = client.get(SECRET).json()
    assert set(body) == MEMBERS
    assert [len(unb64u(body[name])) for name in ("encrypted_key", "iv", "tag")] == [wrapped, 12, 16]
    text = unb64u(body["protected"]).decode("ascii")
    header = json.loads(text)
    assert list(header) == (["alg", "enc", "epk"] if curve else ["alg", "enc"])
    assert "\\" not in text
    assert " " not in text
    if curve:
        assert list(header["epk"]) == ["crv", "kty", "x", "y"]
        assert header["epk"]["crv"] == curve
    assert client.key.decrypt(body) == b"shhhhhhh"


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(b"", id="kbs-052-empty"),
        pytest.param(bytes(range(256)), id="kbs-052-binary"),
        pytest.param(os.urandom(1024) * 2048, id="kbs-053-2MiB"),
    ],
)
def test_secrets_round_trip(kbs: Target, secret: bytes) -> None:
    """Byte for byte."""
    kbs.put("default/test/bytes", secret)
    client = attested(kbs)
    body = client.get("resource/default/test/bytes").json()
    assert client.key.decrypt(body) == secret
    assert (body["ciphertext"] == "") == (secret == b"")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        pytest.param("resource/a.b/c-d_e/f.g-1", 404, id="kbs-054-punctuation"),
        pytest.param("resource/default/test/secret/", 404, id="kbs-054-trailing-slash"),
        pytest.param("resource/default/test", 404, id="kbs-054-two"),
        pytest.param("resource/default/test/secret/more", 404, id="kbs-054-four"),
        pytest.param("resource/default/.test/secret", 404, id="kbs-054-leading-dot"),
        pytest.param("resource/default%2Ftest/secret", 404, id="kbs-054-encoded-slash"),
        pytest.param("resource/default/test/%73ecret", 404, id="kbs-054-encoded-letter"),
        pytest.param("resource/default/../test/secret", 404, id="kbs-054-dot-dot"),
        pytest.param("resource//default/test/secret", 404, id="kbs-054-empty-part"),
    ],
)
def test_paths(kbs: Target, path: str, status: int) -> None:
    """Three parts, spelled one way; everything else is an error body, never a page of the framework."""
    reply = attested(kbs).get(path)
    assert reply.status == status
    error_of(reply)
    assert reply.header("content-type") == "application/json"


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-055")])
def test_query(kbs: Target, _case: None) -> None:
    """An unknown query changes nothing; a policy may look at it."""
    client = attested(kbs)
    assert client.get(SECRET + "?x=1&y=%2F").status == 200
    kbs.policy('package policy\nimport rego.v1\ndefault allow := false\nallow if data.query.pass == "yes"\n')
    try:
        assert client.get(SECRET).status == 403
        assert client.get(SECRET + "?pass=yes").status == 200
    finally:
        from tests.conformance.target import DENY_SOME

        kbs.policy(DENY_SOME)


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-056")])
def test_large_authorization_header(kbs: Target, _case: None) -> None:
    """170 KiB arrive and are judged; our own tokens are under 4 KB."""
    client = attested(kbs)
    reply = client.wire.call("GET", f"/kbs/v0/{SECRET}", headers={"authorization": "Bearer " + "x" * 170 * 1024})
    assert reply.status == 401
    error_of(reply)
    assert len(client.token or "") < 4096


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("size", "status"),
    [
        pytest.param(255 * 1024, 401, id="kbs-056-under-the-cap"),
        pytest.param(600 * 1024, 431, id="kbs-056-over-the-cap"),
    ],
)
def test_header_cap(kbs: Target, size: int, status: int) -> None:
    """256 KiB of head; more is answered 431 and the connection ends, without its being read to the end."""
    parts = urlsplit(kbs.url)
    assert parts.hostname
    with socket.create_connection((parts.hostname, parts.port or 0), timeout=20) as raw:
        head = f"GET /kbs/v0/{SECRET} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer "
        try:
            raw.sendall(head.encode() + b"x" * size + b"\r\n\r\n")
        except OSError:
            assert status == 431
        answer = raw.recv(65536)
    assert answer.split(b" ")[1] == str(status).encode()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("HEAD", SECRET, id="kbs-057-head"),
        pytest.param("OPTIONS", SECRET, id="kbs-057-options"),
        pytest.param("GET", "auth", id="kbs-057-get-auth"),
        pytest.param("PUT", "attest", id="kbs-057-put-attest"),
    ],
)
def test_other_methods(kbs: Target, method: str, path: str) -> None:
    """No redirect, no compression, no page of the framework."""
    reply = kbs.wire().call(method, f"/kbs/v0/{path}", headers={"accept-encoding": "identity"})
    assert 400 <= reply.status < 500
    assert reply.header("content-encoding") is None
    assert reply.header("location") is None
    if method != "HEAD":
        error_of(reply)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        pytest.param("POST", "auth", b"{", id="kbs-058-auth"),
        pytest.param("POST", "attest", b"{", id="kbs-058-attest"),
        pytest.param("GET", "nosuch/x", None, id="kbs-058-plugin"),
        pytest.param("GET", "", None, id="kbs-058-root"),
        pytest.param("PATCH", SECRET, None, id="kbs-058-patch"),
    ],
)
def test_errors_are_json(kbs: Target, method: str, path: str, body: bytes | None) -> None:
    """On every status."""
    reply = kbs.wire().call(method, f"/kbs/v0/{path}", body)
    assert reply.status >= 400
    assert reply.header("content-type") == "application/json"
    error_of(reply)


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-057-no-gzip")])
def test_no_compression_unasked(kbs: Target, _case: None) -> None:
    """A plain client gets plain bytes."""
    reply = attested(kbs).get(SECRET)
    assert reply.header("content-encoding") is None
    assert base64.urlsafe_b64decode(reply.json()["iv"])
