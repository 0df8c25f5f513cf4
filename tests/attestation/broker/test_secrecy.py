"""Nothing secret in logs, errors, listings or responses: the test looks for every secret in every spelling."""

import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from attestation.broker.keys import KeyKind
from attestation.broker.roles import Role
from attestation.cli.main import cli, run
from attestation.errors import AttestationError
from attestation.ops.administer import add_user, issue_admin_token
from attestation.sources.envelope import FileRootKey
from attestation.values import ResourcePath, Secret
from tests.attestation.broker.broker import ADMIN, GPU_POLICY, NOW, PATH, ready_broker, served
from tests.attestation.tee.world import Guest
from tests.conformance.rust_client import RustClient, TeeKey, Wire
from tests.conformance.transcripts import snp_attester

SECRET = b"\xfe\xdc\xba\x98 hunter2 is not it \x76\x54\x32"


def spellings(secret: bytes) -> list[str]:
    """Raw, hexadecimal, base64 and Python's own."""
    return [
        secret.decode("latin-1"),
        secret.hex(),
        b64encode(secret).decode().rstrip("="),
        urlsafe_b64encode(secret).decode().rstrip("="),
        repr(secret)[2:-1],
    ]


def test_nothing_secret_is_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A broker over real sockets: a release, denials, bad requests and admin calls; then its whole output."""
    with ready_broker(tmp_path, simulated=True) as made:
        made.put(secret=SECRET, policy=GPU_POLICY)
        root = made.world.vault.ring.root
        assert isinstance(root, FileRootKey)
        add_user(made.world, ADMIN, "root", Role.ADMIN, (), now=NOW)
        token = issue_admin_token(made.world, "root", now=NOW)
        with served(made) as there:
            client = RustClient(wire=Wire(there.url), tee="snp", attester=snp_attester, key=TeeKey.make())
            assert client.get_resource(f"resource/{PATH}") == SECRET
            client.get("resource/default/no/such")
            client.wire.call("POST", "/kbs/v0/attest", b"{", {"cookie": f"kbs-session-id={client.cookie}"})
            admin = Wire(there.admin_url)
            headers = {"authorization": f"Bearer {token}"}
            shown = [admin.call("GET", path, headers=headers).body for path in _LISTINGS]
            admin.call("POST", "/kbs/v0/resource/default/../x", SECRET, headers)
            admin.call("GET", "/api/v1/keys", headers={"authorization": f"Bearer {token}x"})
            metrics = admin.call("GET", "/metrics").body
            admin.close()
            client.wire.close()
        signing = made.world.signing.load("token", NOW)[0]
        log = json.dumps([entry.to_json() for entry in made.world.audit.entries()])
        assert client.token is not None
        assert client.cookie is not None
        # The listings show what an administrator may see; the token's id is such a thing, the token is not.
        text = "\n".join([*capfd.readouterr(), log, metrics.decode(), *(body.decode() for body in shown)])
        secrets = {"key": SECRET, "root key": root.key.expose(), "signing key": signing}
        found = {name for name, secret in secrets.items() if any(s in text for s in spellings(secret))}
        found |= {
            name
            for name, bearer in (("token", client.token), ("cookie", client.cookie), ("admin", token))
            if bearer in text
        }
        assert found == set()
        assert "release.granted" in text


_LISTINGS = ("/api/v1/keys", f"/api/v1/keys/{PATH}", "/api/v1/audit", "/api/v1/attestations")


def test_nothing_secret_in_errors(tmp_path: Path) -> None:
    """Whatever the stores raise about a secret does not hold it, in text, arguments or causes."""
    with ready_broker(tmp_path) as made:
        calls: list[Callable[[], object]] = [
            lambda: made.put(ResourcePath.parse("default/a/big"), SECRET * 100_000),
            lambda: made.put(ResourcePath.parse("default/a/bundle"), SECRET, kind=KeyKind.BUNDLE),
            lambda: made.put(ResourcePath.parse("default/a/policy"), SECRET, policy="nonsense"),
            lambda: made.world.keys.secret(PATH, 99),
            lambda: made.handshake(Guest().with_(gpus=0)).get(),
        ]
        for call in calls:
            with pytest.raises(AttestationError) as caught:
                call()
            chain = [caught.value, caught.value.__cause__, caught.value.__context__]
            text = " ".join(str(exc) for exc in chain if exc is not None) + repr(caught.value.args)
            assert not any(spelling in text for spelling in spellings(SECRET))


def test_secret_values_show_nothing() -> None:
    """Neither printed, formatted nor in a dataclass or traceback."""
    secret = Secret(SECRET)
    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]}"):
        assert text in ("Secret(***)", "[Secret(***)]")


def test_commands_print_no_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Store, show, list, export, back up."""
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "pass").write_text("correct horse battery")
    store = ["--store", str(tmp_path / "store")]
    for argv in (
        ["key", "add", str(PATH), str(tmp_path / "secret"), *store],
        ["key", "show", str(PATH), *store],
        ["key", "list", *store, "--output", "json"],
        ["root-key", "show", *store],
        ["audit", "export", *store],
        ["backup", "create", str(tmp_path / "b"), *store, "--passphrase-file", str(tmp_path / "pass")],
        ["backup", "verify", str(tmp_path / "b"), "--passphrase-file", str(tmp_path / "pass")],
    ):
        assert run(cli, argv) == 0
    text = "".join(capfd.readouterr())
    root = (tmp_path / "store" / "root.key").read_bytes()
    for secret in (SECRET, root, b"correct horse battery"):
        assert not any(spelling in text for spelling in spellings(secret))
