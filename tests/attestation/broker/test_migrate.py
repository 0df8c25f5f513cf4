"""Moving from upstream's key broker: every option is accounted for, unsafe ones are refused, resources are imported."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from attestation.broker.trustee_config import Outcome, plan_migration
from attestation.cli.main import cli, run
from attestation.errors import Misconfigured
from attestation.values import ResourcePath
from tests.attestation.broker.broker import NOW, broker

# Written from the table of options (keybroker.md 2.7), not taken from upstream.
FULL = """
session_storage_type = "Memory"

[http_server]
sockets = ["0.0.0.0:8080", "[::]:8080"]
insecure_http = false
private_key = "/etc/kbs/key.pem"
certificate = "/etc/kbs/cert.pem"
payload_request_size = 8
worker_count = 4
tls_profile = "modern"
tls_min_version = "1.3"

[attestation_token]
trusted_certs_paths = ["/etc/kbs/as.pem", "/etc/kbs/as2.pem"]
trusted_jwk_sets = ["file:///etc/kbs/jwks.json", "https://as.example/jwks"]
extra_teekey_paths = ["/mine"]
insecure_header_jwk = false

[attestation_service]
type = "coco_as_builtin"
timeout = 5

[attestation_service.attestation_token_broker]
duration_min = 5
issuer_name = "our-as"
verbose_token = true

[attestation_service.attestation_token_broker.signer]
key_path = "/etc/kbs/token.key"
cert_path = "/etc/kbs/token.pem"

[attestation_service.rvps_config]
type = "BuiltIn"

[attestation_service.verifier_config.nvidia_verifier]
type = "Remote"
verifier_url = "https://nras.example"

[admin]
authorization_mode = "AuthenticatedAuthorization"

[admin.authentication.bearer_jwt]
identity_providers = [{ issuer = "idp", audience = "kbs", public_key_uri = "/etc/kbs/idp.pem" }]

[admin.authorization.regex_acl]
acls = [{ role = "admin", allowed_endpoints = "^/kbs/.+$" }]

[storage_backend]
storage_type = "LocalFs"

[storage_backend.backends.local_fs]
dir_path = "/var/lib/trustee"

[[plugins]]
name = "resource"
storage_backend_type = "kvstorage"

[[plugins]]
name = "nebula-ca"
"""


def outcomes(text: str) -> dict[str, Outcome]:
    return {row.option: row.outcome for row in plan_migration(text).rows}


def test_every_option_has_an_outcome() -> None:
    """None is dropped, none is unknown; what `serve` can do is an option of `serve`."""
    plan = plan_migration(FULL)
    found = {row.option: row.outcome for row in plan.rows}
    assert Outcome.UNKNOWN not in found.values()
    assert len(plan.rows) == 34
    assert found["http_server.payload_request_size"] is Outcome.NONE
    assert found["attestation_service.attestation_token_broker.signer.key_path"] is Outcome.NONE
    assert plan.serve == (
        "--listen", "0.0.0.0:8080", "--tls-key", "/etc/kbs/key.pem", "--tls-cert", "/etc/kbs/cert.pem",
        "--trusted-token-certs", "/etc/kbs/as.pem", "--trusted-token-certs", "/etc/kbs/as2.pem",
        "--trusted-token-jwks", "/etc/kbs/jwks.json", "--trusted-token-key-path", "/mine", "--issuer", "our-as",
    )  # fmt: skip
    assert plan.resources is not None
    assert (plan.resources.kind, plan.resources.path) == ("LocalFs", "/var/lib/trustee/repository")


def test_options_that_serve_are_options_of_serve() -> None:
    """The command line that is printed is one that exists."""
    from attestation.cli.serve import serve

    known = {name for parameter in serve.params for name in parameter.opts}
    assert {part for part in plan_migration(FULL).serve if part.startswith("--")} <= known
    assert "--deny-all-admins" in known


@pytest.mark.parametrize(
    ("text", "option"),
    [
        pytest.param("[http_server]\ninsecure_http = true\n", "http_server.insecure_http", id="plain-http"),
        pytest.param(
            '[admin]\nauthorization_mode = "InsecureAllowAll"\n', "admin.authorization_mode", id="anybody-administers"
        ),
        pytest.param(
            "[attestation_token]\ninsecure_header_jwk = true\n",
            "attestation_token.insecure_header_jwk",
            id="anybody-signs",
        ),
        pytest.param('[[plugins]]\nname = "resource"\nverify_ssl = false\n', "plugins[].verify_ssl", id="no-tls-check"),
        pytest.param('[admin]\nauth_public_key = "k"\n', "admin.auth_public_key", id="self-signed-admin"),
    ],
)
def test_unsafe_options_are_refused(text: str, option: str) -> None:
    """With what to do instead."""
    (row,) = [row for row in plan_migration(text).rows if row.option == option]
    assert (row.outcome, row.serve) == (Outcome.UNSAFE, ())
    assert len(row.note) > 20


@pytest.mark.parametrize(
    ("text", "option", "outcome"),
    [
        ('[admin]\nauthorization_mode = "DenyAll"\n', "admin.authorization_mode", Outcome.SAME),
        ('[attestation_service]\ntype = "coco_as_grpc"\n', "attestation_service.type", Outcome.CHANGED),
        ('[attestation_service]\ntype = "intel_ta"\n', "attestation_service.type", Outcome.CHANGED),
        ('[storage_backend]\nstorage_type = "Postgres"\n', "storage_backend.storage_type", Outcome.NONE),
        ('[storage_backend]\nstorage_type = "Memory"\n', "storage_backend.storage_type", Outcome.CHANGED),
        ('[[plugins]]\nname = "resource"\nstorage_backend_type = "Vault"\n', "plugins[].storage_backend_type", Outcome.NONE),
        ("[http_server]\npayload_request_size = 2\n", "http_server.payload_request_size", Outcome.SAME),
        ("[new]\nthing = 1\n", "new.thing", Outcome.UNKNOWN),
    ],
)  # fmt: skip
def test_other_values(text: str, option: str, outcome: Outcome) -> None:
    """The value decides, where there is a choice."""
    assert outcomes(text)[option] is outcome


def test_secrets_are_not_shown() -> None:
    """The report may go into a ticket."""
    text = '[[plugins]]\nname = "resource"\ntoken = "hvs.secret"\n[attestation_service]\napi_key = "hvs.secret"\n'
    assert "hvs" not in str(plan_migration(text))


def test_not_toml() -> None:
    """An error of ours."""
    with pytest.raises(Misconfigured):
        plan_migration("][")


class Migration:
    """A configuration in a folder, and the command on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.config = folder / "kbs-config.toml"

    def configure(self, kind: str, member: str) -> Path:
        backend = "local_fs" if kind == "LocalFs" else "local_json"
        self.config.write_text(
            f'[storage_backend]\nstorage_type = "{kind}"\n[storage_backend.backends.{backend}]\n{member} = "{self.folder}"\n'
        )
        return self.folder / "repository"

    def run(self, *argv: str, code: int = 0) -> Any:
        argv = ("migrate", "trustee", "--config", str(self.config), "--output", "json", *argv)
        assert run(cli, list(argv)) == code
        return json.loads(self._capsys.readouterr().out)

    def moved(self, *argv: str) -> dict[str, str]:
        return {row["name"]: row["outcome"] for row in self.run(*argv)["resources"]}


@pytest.fixture
def trustee(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Migration:
    return Migration(tmp_path, capsys)


def secret(folder: Path, path: str) -> bytes:
    with broker(folder) as made:
        at = ResourcePath.parse(path)
        record = made.world.keys.get(at)
        assert record is not None
        assert not record.policy
        return made.world.keys.secret(at, record.current_version).expose()


def test_a_folder_of_files(trustee: Migration) -> None:
    """Binary secrets byte for byte; odd names, links and long files are named and left."""
    folder = trustee.configure("LocalFs", "dir_path")
    folder.mkdir()
    (folder / "default\\x2Fkey\\x2F1").write_bytes(bytes(range(256)))
    (folder / "default\\x2Fempty\\x2F1").write_bytes(b"")
    (folder / "two\\x2Fparts").write_bytes(b"x")
    (folder / "a\\x2F..\\x2Fb").write_bytes(b"x")
    (folder / "default\\x2Fbig\\x2F1").write_bytes(bytes(2 * 1024 * 1024 + 1))
    os.symlink("/etc/hostname", folder / "default\\x2Flink\\x2F1")
    os.mkfifo(folder / "default\\x2Fpipe\\x2F1")
    seen = trustee.moved("--dry-run")
    assert seen["default/key/1"] == "would be imported"
    assert not (trustee.folder / "store").exists()
    store = ("--store", str(trustee.folder / "store"))
    assert trustee.moved(*store) == {
        "default/key/1": "imported",
        "default/empty/1": "imported",
        "two/parts": "not a resource name",
        "a/../b": "not a resource name",
        "default/big/1": "no regular file, or too long",
        "default/link/1": "no regular file, or too long",
        "default/pipe/1": "no regular file, or too long",
    }
    assert secret(trustee.folder, "default/key/1") == bytes(range(256))
    assert trustee.moved(*store)["default/key/1"] == "there already"
    assert run(cli, ["store", "verify", *store]) == 0


def test_one_json_file(trustee: Migration) -> None:
    """Values are base64url with padding."""
    file = trustee.configure("LocalJson", "file_dir_path")
    raw = bytes(range(255, 0, -1))
    file.write_text(json.dumps({"default/key/1": base64.urlsafe_b64encode(raw).decode()}))
    assert trustee.moved("--store", str(trustee.folder / "store")) == {"default/key/1": "imported"}
    assert secret(trustee.folder, "default/key/1") == raw
    file.write_text('{"default/key/2": "%%"}')
    assert run(cli, ["migrate", "trustee", "--config", str(trustee.config), "--dry-run"]) == 2


def test_on_the_command_line(trustee: Migration, capsys: pytest.CaptureFixture[str]) -> None:
    """Text for people; exit code 1 for unsafe options; a store or a dry run, not both."""
    trustee.config.write_text('[admin]\nauthorization_mode = "InsecureAllowAll"\n')
    base = ["migrate", "trustee", "--config", str(trustee.config)]
    assert run(cli, [*base, "--dry-run"]) == 1
    out = capsys.readouterr().out
    assert "unsafe  admin.authorization_mode = InsecureAllowAll" in out
    assert "kata-gpu-kbs serve --store STORE" in out
    assert run(cli, base) == 2
    assert run(cli, [*base, "--dry-run", "--store", str(trustee.folder / "s")]) == 2
    assert run(cli, [*base, "--dry-run", "--resources", str(trustee.folder / "absent")]) == 2
    assert NOW.year == 2026
