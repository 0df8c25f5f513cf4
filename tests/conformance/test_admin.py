"""Items 59 to 66 and 77 of keybroker.md 4.2: what `kbs-client` does as an administrator."""

import json
from pathlib import Path
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from attestation.broker.admin import AdminIssuer
from attestation.broker.roles import Role
from attestation.ops.administer import add_user, issue_admin_token, revoke_user
from tests.attestation.broker.broker import ADMIN
from tests.conformance.rust_client import b64u, error_of
from tests.conformance.target import ALLOW_ALL, DENY_SOME, Target, admin_token, local_target, std_b64

PATH = "/kbs/v0/resource/default/admin/key"


def reference(values: Any) -> dict[str, str]:
    return {"version": "0.1.0", "type": "sample", "payload": std_b64(json.dumps(values).encode())}


@pytest.mark.parametrize(
    "secret",
    [pytest.param(b"\x00\xff\r\n", id="kbs-059-binary"), pytest.param(b"", id="kbs-059-empty")],
)
def test_put_resource(kbs: Target, secret: bytes) -> None:
    """Exactly 200, stored byte for byte."""
    assert kbs.admin("POST", PATH, secret).status == 200
    assert kbs.client().get_resource("resource/default/admin/key") == secret


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-060")])
def test_delete_resource(kbs: Target, _case: None) -> None:
    """Exactly 200, and then it is gone."""
    kbs.put("default/admin/gone", b"x")
    assert kbs.admin("DELETE", "/kbs/v0/resource/default/admin/gone").status == 200
    client = kbs.client()
    client.handshake()
    assert client.get("resource/default/admin/gone").status == 404


@pytest.mark.parametrize(
    ("endpoint", "body", "status"),
    [
        pytest.param("resource-policy", {"policy": b64u(DENY_SOME.encode())}, 200, id="kbs-061-resource"),
        pytest.param("resource-policy", {"policy": b64u(b"package policy\nallow := {")}, 400, id="kbs-061-invalid"),
        pytest.param("resource-policy", {"policy": "%%%"}, 400, id="kbs-061-not-base64"),
        pytest.param("resource-policy", {}, 400, id="kbs-061-empty"),
        pytest.param(
            "attestation-policy",
            {"type": "rego", "policy_id": "default_unused", "policy": b64u(ALLOW_ALL.encode())},
            200,
            id="kbs-062-any-id",
        ),
        pytest.param(
            "attestation-policy",
            {"type": "rego", "policy_id": "default_ppcie", "policy": b64u(ALLOW_ALL.encode())},
            200,
            id="kbs-062-reserved-id",
        ),
        pytest.param("attestation-policy", {"policy": b64u(b"package policy\n)")}, 400, id="kbs-061-attestation"),
    ],
)
def test_policies(kbs: Target, endpoint: str, body: dict[str, str], status: int) -> None:
    """Base64url without padding; what does not compile is refused with a reason for the user."""
    reply = kbs.admin("POST", f"/kbs/v0/{endpoint}", body)
    assert reply.status == status
    if status != 200:
        assert error_of(reply)["detail"]


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-063")])
def test_reference_values(kbs: Target, _case: None) -> None:
    """Stored from an RVPS message, read back as JSON; `null` for what is not there; ids may contain slashes."""
    values = {"svn": ["1"], "kbs/ref": {"a": 1}, "major_version": 1}
    assert kbs.admin("POST", "/kbs/v0/reference-value", reference(values)).status == 200
    for name, value in values.items():
        reply = kbs.admin("GET", f"/kbs/v0/reference-value/{name}")
        assert (reply.status, reply.json()) == (200, value)
    missing = kbs.admin("GET", "/kbs/v0/reference-value/nosuch")
    assert (missing.status, missing.json()) == (200, None)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({**reference({}), "version": "9"}, id="kbs-063-version"),
        pytest.param({**reference({}), "payload": "!"}, id="kbs-063-payload"),
        pytest.param(reference([1]), id="kbs-063-list"),
        pytest.param({**reference({}), "type": "nosuch"}, id="kbs-063-type"),
    ],
)
def test_bad_reference_values(kbs: Target, body: dict[str, str]) -> None:
    """400 and a reason."""
    reply = kbs.admin("POST", "/kbs/v0/reference-value", body)
    assert reply.status == 400
    error_of(reply)


ENDPOINTS = (
    ("POST", PATH),
    ("DELETE", PATH),
    ("POST", "/kbs/v0/resource-policy"),
    ("GET", "/kbs/v0/resource-policy"),
    ("POST", "/kbs/v0/attestation-policy"),
    ("POST", "/kbs/v0/reference-value"),
    ("GET", "/kbs/v0/reference-value/x"),
)


@pytest.mark.parametrize(
    ("method", "path"), [pytest.param(m, p, id=f"kbs-064-{m}-{p.split('/')[3]}") for m, p in ENDPOINTS]
)
def test_anonymous_and_wrong_role(kbs: Target, method: str, path: str) -> None:
    """Anonymous 401, wrong role 403, both with a JSON reason."""
    anonymous = kbs.admin(method, path, b"{}", token="")
    assert anonymous.status == 401
    error_of(anonymous)
    if kbs.local:
        wrong = kbs.admin(method, path, b"{}", token=admin_token(kbs.now(), role="nobody"))
        assert wrong.status == 403
        assert "Role nobody not allowed" in error_of(wrong)["detail"]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        pytest.param(OKPKey.generate_key("Ed25519"), "Ed25519", id="kbs-065-ed25519"),
        pytest.param(OKPKey.generate_key("Ed25519"), "EdDSA", id="kbs-065-eddsa"),
        pytest.param(ECKey.generate_key("P-256"), "ES256", id="kbs-065-es256"),
        pytest.param(RSAKey.generate_key(2048), "RS256", id="kbs-065-rs256"),
    ],
)
@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
def test_admin_algorithms(tmp_path: Path, key: Any, algorithm: str) -> None:
    """Tokens of identity providers, by any of the three algorithms."""
    issuer = AdminIssuer(key=key, issuer="issuer", audience="audience", roles={"tester": Role.ADMIN})
    with local_target(tmp_path, more_issuers=(issuer,)) as target:
        now = int(target.now())
        claims = {"iss": "issuer", "role": "tester", "aud": ["audience"], "iat": now, "exp": now + 7200}
        token = jws.serialize_compact({"alg": algorithm}, json.dumps(claims).encode(), key, algorithms=[algorithm])
        assert target.admin("GET", "/kbs/v0/resource-policy", token=token).status == 200


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"iss": "other"}, id="kbs-065-issuer"),
        pytest.param({"aud": ["other"]}, id="kbs-065-audience"),
        pytest.param({"exp": 1}, id="kbs-065-expired"),
        pytest.param({"exp": None}, id="kbs-065-no-expiry"),
        pytest.param({"role": 7}, id="kbs-065-role-type"),
        pytest.param({"nbf": 1 << 40}, id="kbs-065-early"),
    ],
)
def test_bad_admin_claims(kbs: Target, changes: dict[str, Any]) -> None:
    """401 for each."""
    reply = kbs.admin("GET", "/kbs/v0/resource-policy", token=admin_token(kbs.now(), **{"role": "tester"} | changes))
    assert reply.status == 401
    error_of(reply)


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-066")])
def test_policy_names(kbs: Target, _case: None) -> None:
    """A JSON array with upstream's one name."""
    assert "resource-policy" in kbs.admin("GET", "/kbs/v0/resource-policy").json()


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-077")])
def test_phrases_that_upstream_tests_look_for(kbs: Target, tmp_path: Path, _case: None) -> None:
    """Word for word."""
    bad = kbs.admin("GET", "/kbs/v0/resource-policy", token="a.b.c")
    assert "Cannot verify token with any of the issuers" in error_of(bad)["detail"]
    role = kbs.admin("GET", "/kbs/v0/resource-policy", token=admin_token(kbs.now(), role="guest"))
    assert "Role guest not allowed" in error_of(role)["detail"]
    with local_target(tmp_path, options={"deny_all_admins": True}) as closed:
        reply = closed.admin("GET", "/kbs/v0/resource-policy")
        assert "DenyAll authorization_mode is enabled" in error_of(reply)["detail"]


@pytest.mark.usefixtures("own")
def test_own_users_are_confined_to_their_repositories(kbs: Target) -> None:
    """An operator of one repository writes there, reads there, and nothing global."""
    assert kbs.local
    world, now = kbs.local.broker.world, kbs.local.broker.clock()
    add_user(world, ADMIN, "alice", Role.OPERATOR, ("alpha",), now=now)
    token = issue_admin_token(world, "alice", now=now)
    assert kbs.admin("POST", "/kbs/v0/resource/alpha/a/b", b"x", token=token).status == 200
    assert kbs.admin("POST", "/kbs/v0/resource/beta/a/b", b"x", token=token).status == 403
    assert kbs.admin("POST", "/kbs/v0/resource-policy", {"policy": ""}, token=token).status == 403
    assert kbs.admin("DELETE", "/kbs/v0/resource/default/test/secret", token=token).status == 403
    listed = kbs.admin("GET", "/api/v1/keys", token=token).json()["keys"]
    assert [key["path"] for key in listed] == ["alpha/a/b"]
    revoke_user(world, ADMIN, "alice", now=now)
    assert kbs.admin("GET", "/api/v1/keys", token=token).status == 401


@pytest.mark.usefixtures("own")
def test_guests_listener_has_no_admin_api(kbs: Target) -> None:
    """The admin API, metrics and /api are elsewhere, unless configured."""
    wire = kbs.wire()
    headers = {"authorization": f"Bearer {kbs.token}"}
    for method, path in (*ENDPOINTS, ("GET", "/metrics"), ("GET", "/api/v1/keys")):
        if (method, path) != ("GET", PATH):
            assert wire.call(method, path, b"{}", headers).status in (404, 405), path
