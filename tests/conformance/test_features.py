"""Items 67 to 76 and 78 of keybroker.md 4.2: what guests do on top, and how the broker behaves around them."""

import json
import logging
import threading
from pathlib import Path

import pytest

from attestation.service.app import Compat
from tests.conformance.rust_client import Aborted, RustClient, error_of
from tests.conformance.target import Target, local_target


@pytest.mark.parametrize(
    ("path", "secret"),
    [
        pytest.param("default/test-key/1", bytes(range(32)), id="kbs-067"),
        pytest.param("default/security-policy/test", b'{"default":[{"type":"reject"}]}', id="kbs-068-policy"),
        pytest.param("default/sigstore-config/test", b"docker:\n  x: y\n", id="kbs-068-sigstore"),
        pytest.param("default/credential/test", b'{"auths":{}}', id="kbs-068-credential"),
        pytest.param("default/signing/jwk", b'{ "kty":"EC", "crv":"P-256" }\n', id="kbs-069"),
    ],
)
def test_guest_resources(kbs: Target, path: str, secret: bytes) -> None:
    """Byte-exact, whatever they are."""
    kbs.put(path, secret)
    assert kbs.client().get_resource(f"resource/{path}") == secret


@pytest.mark.parametrize(
    "path", [pytest.param("nosuch/a/b?x=1", id="kbs-070"), pytest.param("pkcs11/resource/a/b/c", id="kbs-070-pkcs11")]
)
def test_unknown_plugin(kbs: Target, path: str) -> None:
    """404 and JSON."""
    client = kbs.client()
    client.handshake()
    reply = client.get(path)
    assert reply.status == 404
    assert error_of(reply)["detail"].startswith("Plugin ")


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-071")])
def test_every_200_to_a_guest_is_a_jwe(kbs: Target, _case: None) -> None:
    """Clients decrypt whatever comes with 200: nothing is served in clear under a guest's credentials."""
    client = kbs.client()
    client.handshake()
    for path in ("resource/default/test/secret", "resource-policy", "reference-value/x", "sample", "metrics"):
        reply = client.get(path)
        assert reply.status != 200 or set(reply.json()) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-072")])
def test_external_tokens_are_refused_unless_configured(kbs: Target, _case: None) -> None:
    """A token of another attestation service finds no attestation of ours."""
    client = kbs.client()
    client.handshake()
    external = "eyJhbGciOiJFUzI1NiIsImtpZCI6Im90aGVyIn0.e30.AAAA"
    reply = client.wire.call(
        "GET", "/kbs/v0/resource/default/test/secret", headers={"authorization": f"Bearer {external}"}
    )
    assert reply.status == 401


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-073")])
def test_interleaved_handshakes(kbs: Target, _case: None) -> None:
    """Two clients in one guest do not disturb each other."""
    first, second = kbs.client(), kbs.client("P-521")
    first.auth()
    second.auth()
    assert second.attest().status == first.attest().status == 200
    assert first.get_resource("resource/default/test/secret") == second.get_resource("resource/default/test/secret")


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-073-parallel")])
def test_parallel_handshakes(kbs: Target, _case: None) -> None:
    """Eight guests at once."""
    got: list[bytes] = []

    def run(client: RustClient) -> None:
        got.append(client.get_resource("resource/default/test/secret"))

    threads = [threading.Thread(target=run, args=(kbs.client(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"shhhhhhh"] * 8


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-074")])
def test_restart_between_auth_and_attest(tmp_path: Path, _case: None) -> None:
    """Sessions, token keys and results outlive the process."""
    with local_target(tmp_path) as before:
        client = before.client()
        client.auth()
    with local_target(tmp_path) as after:
        client.wire = after.wire()
        assert client.attest().status == 200
        token = client.token
    with local_target(tmp_path) as later:
        client.wire = later.wire()
        assert client.token == token
        assert client.key.decrypt(client.get("resource/default/test/secret", bearer=True).json()) == b"shhhhhhh"


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-075-keep-alive")])
def test_keep_alive(kbs: Target, _case: None) -> None:
    """A whole handshake and more on one connection."""
    client = kbs.client()
    for _ in range(3):
        client.handshake()
        assert client.get("resource/default/test/secret").status == 200


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-075-chunked")])
def test_chunked_body(kbs: Target, _case: None) -> None:
    """Chunks of seven bytes."""
    client = kbs.client()
    client.auth()
    body = json.dumps(client.attest_body()).encode()
    pieces = (body[start : start + 7] for start in range(0, len(body), 7))
    headers = {"cookie": f"kbs-session-id={client.cookie}", "transfer-encoding": "chunked"}
    assert client.wire.call("POST", "/kbs/v0/attest", pieces, headers).status == 200


@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-075-chunked-too-large")])
def test_chunked_body_is_bounded(kbs: Target, _case: None) -> None:
    """Without a length the limit holds too."""
    pieces = (b"x" * 65536 for _ in range(33))
    reply = kbs.wire().call("POST", "/kbs/v0/auth", pieces, {"transfer-encoding": "chunked"})
    assert reply.status == 413


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-076")])
def test_nothing_secret_in_logs_and_metrics(
    kbs: Target, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, _case: None
) -> None:
    """Nonce, cookie, token, secret and admin token appear nowhere; resource paths not in metrics."""
    caplog.set_level(logging.DEBUG)
    kbs.put("default/test/logged", b"a-very-secret-value")
    client = kbs.client()
    client.get_resource("resource/default/test/logged")
    client.get("resource/default/denied/x")
    client.get("resource/default/test/secret", bearer=True)
    metrics = kbs.admin("GET", "/metrics").body.decode()
    out = capfd.readouterr()
    everything = out.out + out.err + caplog.text + metrics
    assert "kbs_auth_requests_total" in metrics
    for secret in (client.nonce, client.cookie, client.token, "a-very-secret-value", kbs.token):
        assert secret
        assert secret not in everything
    assert "default/test/logged" not in metrics


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("_case", [pytest.param(None, id="kbs-078")])
def test_compat_deny_status(tmp_path: Path, _case: None) -> None:
    """With the switch, denial and absence are 401 and the client ends in upstream's words."""
    with local_target(tmp_path, compat=Compat(deny_status=401)) as compat:
        client = compat.client()
        client.handshake()
        for path in ("resource/default/denied/x", "resource/default/no/such"):
            reply = client.get(path)
            assert reply.status == 401
            error_of(reply)
        with pytest.raises(Aborted, match="request unauthorized"):
            client.get_resource("resource/default/denied/x")
        assert client.handshakes == 4


@pytest.mark.usefixtures("own")
def test_default_denial_does_not_start_a_storm(kbs: Target) -> None:
    """One handshake, one answer."""
    client = kbs.client()
    with pytest.raises(Aborted, match="403"):
        client.get_resource("resource/default/denied/x")
    assert client.handshakes == 1


@pytest.mark.usefixtures("own")
def test_admin_calls_on_the_guests_listener_where_configured(tmp_path: Path) -> None:
    """For kbs-client installations that know one address."""
    with local_target(tmp_path, compat=Compat(admin_on_guest_listener=True)) as target:
        wire = target.wire()
        headers = {"authorization": f"Bearer {target.token}"}
        assert wire.call("POST", "/kbs/v0/resource/default/a/b", b"x", headers).status == 200
        assert wire.call("GET", "/kbs/v0/resource-policy", None, headers).status == 200
        assert target.client().get_resource("resource/default/a/b") == b"x"
        assert wire.call("GET", "/api/v1/keys", None, headers).status == 404
