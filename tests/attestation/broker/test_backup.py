"""Backup and restore: one file, opened by whom it is meant for, whole or refused, on either engine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_bytes
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from attestation.broker.revocation import RevocationKind
from attestation.cli.main import cli, run
from attestation.crypto.backup import by_passphrase, by_recipient, open_backup, seal_backup, to_passphrase, to_recipient
from attestation.crypto.jwk import tee_key_of
from attestation.errors import AttestationError, Malformed, Misconfigured, Untrusted
from attestation.ops.backup import create_backup, restore_backup, verify_backup
from attestation.ops.open_world import WorldOptions, close_world, open_world
from attestation.ops.revocations import revoke
from attestation.sources.envelope import FileRootKey
from attestation.values import ResourcePath, Secret
from tests.attestation.broker.broker import ADMIN, NOW, PATH, Broker, ready_broker
from tests.attestation.broker.postgres import ABSENT, FOUND, postgres

EC = ec.generate_private_key(ec.SECP256R1())
CHIP = "aa" * 64
PASSPHRASE = Secret(b"correct horse battery")
TO_EC, BY_EC = to_recipient(tee_key_of(EC.public_key()), token_bytes), by_recipient(EC)


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[Broker]:
    with ready_broker(tmp_path / "first") as made:
        made.handshake().get()
        revoke(made.world, ADMIN, RevocationKind.CHIP, CHIP, "stolen", now=NOW)
        yield made


def _again(store: str, root_key: Path | None = None) -> Broker:
    return Broker(world=open_world(WorldOptions(store=store, root_key=root_key), None, now=NOW))  # type: ignore[arg-type]


def test_restore_on_another_machine(kbs: Broker, tmp_path: Path) -> None:
    """Secrets, policies, references, users, revocations, the audit log and the signing keys."""
    file = create_backup(kbs.world, TO_EC, now=NOW)
    report = restore_backup(file, BY_EC, str(tmp_path / "new"), None, keys=tmp_path / "new", now=NOW)
    assert (report.secrets, report.root_key) == (1, tmp_path / "new" / "root.key")
    assert (tmp_path / "new" / "root.key").stat().st_mode & 0o777 == 0o600
    made = _again(str(tmp_path / "new"))
    assert made.world.keys.secret(PATH, 1) == Secret(b"k" * 32)
    assert made.world.authority.jwks() == kbs.world.authority.jwks()
    assert made.world.audit.verify() == report.audit_entries == kbs.world.audit.verify() - 1
    assert made.world.revocations.revoked((("chip", CHIP),)) == f"chip {CHIP}"
    close_world(made.world)


def test_nothing_is_readable_in_the_file(kbs: Broker) -> None:
    """Not the secret, not a path, not the root key."""
    file = create_backup(kbs.world, TO_EC, now=NOW)
    root = kbs.world.vault.ring.root
    assert isinstance(root, FileRootKey)
    for text in (b"k" * 32, str(PATH).encode(), root.key.expose(), root.key.expose().hex().encode(), b"released"):
        assert text not in file


@pytest.mark.parametrize("key", [EC, ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 2048)])
def test_recipients(key: Any) -> None:
    """EC and RSA; nobody else."""
    file = seal_backup(b"content", to_recipient(tee_key_of(key.public_key()), token_bytes), token_bytes)
    assert open_backup(file, by_recipient(key)) == b"content"
    with pytest.raises(AttestationError):
        open_backup(file, by_recipient(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(Malformed):
        open_backup(file, by_passphrase(PASSPHRASE))


def test_passphrase() -> None:
    """Stretched, and not too short."""
    file = seal_backup(b"content", to_passphrase(PASSPHRASE, token_bytes), token_bytes)
    assert open_backup(file, by_passphrase(PASSPHRASE)) == b"content"
    with pytest.raises(Untrusted) as caught:
        open_backup(file, by_passphrase(Secret(b"correct horse batterz")))
    assert caught.value.code == "backup-key"
    with pytest.raises(Malformed):
        to_passphrase(Secret(b"short"), token_bytes)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f: f[:-1], id="cut"),
        pytest.param(lambda f: f + b"\0", id="longer"),
        pytest.param(lambda f: f[:-1] + bytes([f[-1] ^ 1]), id="last-bit"),
        pytest.param(lambda f: f.replace(b'"version":1', b'"version":1 ', 1), id="header"),
        pytest.param(lambda f: f.replace(b"kata-gpu-kbs-backup", b"kata-gpu-kbs-backuq", 1), id="format"),
        pytest.param(lambda _: b"", id="empty"),
        pytest.param(lambda f: f.partition(b"\n")[0] + b"\n", id="only-header"),
        pytest.param(lambda f: f.replace(b"\n", b"", 1), id="no-line"),
    ],
)
def test_changed_files_open_nothing(change: Callable[[bytes], bytes]) -> None:
    """Every byte is authenticated, the header too."""
    file = seal_backup(b"content" * 100, TO_EC, token_bytes)
    with pytest.raises(AttestationError):
        open_backup(change(file), BY_EC)


def test_only_into_an_empty_store(kbs: Broker, tmp_path: Path) -> None:
    """An existing store is never mixed with a backup, and no root key is overwritten."""
    file = create_backup(kbs.world, TO_EC, now=NOW)
    with pytest.raises(Misconfigured) as caught:
        restore_backup(file, BY_EC, str(tmp_path / "first" / "store"), None, keys=tmp_path, now=NOW)
    assert caught.value.code == "store-not-empty"
    (tmp_path / "root.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Misconfigured) as caught:
        restore_backup(file, BY_EC, str(tmp_path / "other"), None, keys=tmp_path, now=NOW)
    assert caught.value.code == "root-key-exists"


def _content(change: Callable[[list[str]], list[str]], kbs: Broker) -> bytes:
    lines = open_backup(create_backup(kbs.world, TO_EC, now=NOW), BY_EC).decode().split("\n")
    return seal_backup("\n".join(change(lines)).encode(), TO_EC, token_bytes)


def _without_entry(lines: list[str]) -> list[str]:
    at = next(i for i, line in enumerate(lines) if line.startswith('["audit",'))
    return lines[:at] + lines[at + 1 :]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param(_without_entry, "audit-chain", id="audit-entry-missing"),
        pytest.param(lambda ls: [ls[0], '{"revision":"9999"}', *ls[2:]], "store-newer", id="newer"),
        pytest.param(lambda ls: [ls[0], "{}", *ls[2:]], "backup", id="no-revision"),
        pytest.param(lambda ls: [*ls, '["nothing",{}]'], "backup", id="table"),
        pytest.param(lambda ls: [*ls, '["users",{"name":"x"}]'], "backup", id="columns"),
        pytest.param(lambda ls: [*ls, ls[2]], "backup", id="twice"),
        pytest.param(lambda ls: ["{}", *ls[1:]], "json-type", id="header"),
        pytest.param(lambda ls: [ls[0].replace('"file:', '"file:0'), *ls[1:]], "backup", id="root-name"),
    ],
)
def test_wrong_contents(kbs: Broker, change: Callable[[list[str]], list[str]], code: str) -> None:
    """A backup that its recipient can open is still verified."""
    with pytest.raises(AttestationError) as caught:
        verify_backup(_content(change, kbs), BY_EC, None, now=NOW)
    assert caught.value.code == code


def test_a_backup_of_another_broker_is_refused(kbs: Broker, tmp_path: Path) -> None:
    """Whoever has the recipient's public key can make one; its signature is by another audit key, or over other rows."""
    ours = kbs.world.audit.public_key
    assert verify_backup(create_backup(kbs.world, TO_EC, now=NOW), BY_EC, None, origin=ours, now=NOW).secrets == 1
    with ready_broker(tmp_path / "another") as other:
        foreign = create_backup(other.world, TO_EC, now=NOW)
    verify_backup(foreign, BY_EC, None, now=NOW)
    policy = "an allowing one"
    for file in (
        foreign,
        _content(lambda ls: [ls[0], *(line.replace("version = 1", policy) for line in ls[1:])], kbs),
        _content(lambda ls: [ls[0].replace('"made": "2026', '"made": "2027'), *ls[1:]], kbs),
        _content(lambda ls: [json.dumps({**json.loads(ls[0]), "signature": "00" * 64}), *ls[1:]], kbs),
        _content(lambda ls: [json.dumps({**json.loads(ls[0]), "signature": "no hex"}), *ls[1:]], kbs),
        _content(
            lambda ls: [json.dumps({k: v for k, v in json.loads(ls[0]).items() if k != "signature"}), *ls[1:]], kbs
        ),
    ):
        store = tmp_path / "refused"
        with pytest.raises(Untrusted) as caught:
            restore_backup(file, BY_EC, str(store), None, keys=store, origin=ours, now=NOW)
        assert caught.value.code == "backup-origin"
        assert not store.exists()


def test_from_sqlite_to_postgresql_and_back(kbs: Broker, tmp_path: Path) -> None:
    """The way from one replica to several."""
    if not FOUND:
        pytest.skip(ABSENT)
    first = create_backup(kbs.world, TO_EC, now=NOW)
    with postgres() as url:
        restore_backup(first, BY_EC, url, None, keys=tmp_path, now=NOW)
        made = _again(url, tmp_path / "root.key")
        assert made.world.keys.secret(PATH, 1) == Secret(b"k" * 32)
        made.put(ResourcePath.parse("default/new/key"), b"n")
        second = create_backup(made.world, TO_EC, now=NOW)
        close_world(made.world)
    assert verify_backup(second, BY_EC, None, now=NOW).secrets == 2


def test_roots_of_tenants_come_back(tmp_path: Path) -> None:
    """Several root key files become a configuration again."""
    for name in ("root.key", "acme.key", "old.key"):
        FileRootKey.create(tmp_path / name, token_bytes)
    (tmp_path / "roots.toml").write_text(
        'version = 1\n[root]\nprovider = "file"\npath = "root.key"\n'
        '[tenants.acme]\nprovider = "file"\npath = "acme.key"\n[[retired]]\nprovider = "file"\npath = "old.key"\n'
    )
    made = _again(str(tmp_path / "first"), tmp_path / "roots.toml")
    path = ResourcePath.parse("acme/model/llama")
    made.put(path, b"a")
    file = create_backup(made.world, TO_EC, now=NOW)
    close_world(made.world)
    report = restore_backup(file, BY_EC, str(tmp_path / "new"), None, keys=tmp_path / "new", now=NOW)
    assert report.root_key == tmp_path / "new" / "roots.toml"
    again = _again(str(tmp_path / "new"), report.root_key)
    assert again.world.keys.secret(path, 1) == Secret(b"a")
    assert again.world.vault.root_for(str(path)).name == made.world.vault.root_for(str(path)).name
    assert len(again.world.vault.root_names) == 3
    close_world(again.world)


def test_commands(kbs: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Create to a recipient or under a passphrase, verify, restore."""
    (tmp_path / "pass").write_text("correct horse battery\n")
    (tmp_path / "key.pem").write_bytes(EC.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = EC.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "pub.pem").write_bytes(public)
    store, file = ["--store", str(tmp_path / "first" / "store")], str(tmp_path / "b")
    assert run(cli, ["backup", "create", file, *store, "--recipient", str(tmp_path / "pub.pem")]) == 0
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o600
    assert run(cli, ["backup", "verify", file, "--recipient-key", str(tmp_path / "key.pem")]) == 0
    assert {"origin: not-proven"} < set(capsys.readouterr().out.splitlines())
    assert run(cli, ["audit", "public-key", *store]) == 0
    (tmp_path / "audit.pem").write_text(capsys.readouterr().out)
    mine = ["--recipient-key", str(tmp_path / "key.pem"), "--audit-key"]
    assert run(cli, ["backup", "verify", file, *mine, str(tmp_path / "audit.pem")]) == 0
    assert {"origin: audit-key"} < set(out := capsys.readouterr().out.splitlines())
    assert out[0].startswith("good: made 20")
    assert run(cli, ["backup", "verify", file, *mine, str(tmp_path / "pub.pem")]) == 2
    assert run(cli, ["backup", "verify", file, "--passphrase-file", str(tmp_path / "pass")]) == 2
    assert run(cli, ["backup", "create", file, *store, "--passphrase-file", str(tmp_path / "pass")]) == 0
    to = ["--passphrase-file", str(tmp_path / "pass"), "--store", str(tmp_path / "new"), "--output", "json"]
    capsys.readouterr()
    assert run(cli, ["backup", "restore", file, *to]) == 0
    restored = json.loads(capsys.readouterr().out)
    assert (restored["secrets"], restored["origin"], restored["sealed"]) == (1, "passphrase", True)
    assert run(cli, ["audit", "verify", "--store", str(tmp_path / "new")]) == 0
    assert run(cli, ["backup", "create", file, *store]) == 2
