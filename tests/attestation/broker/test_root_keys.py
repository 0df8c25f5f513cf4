"""Root keys: files, Transit over HTTP, a PKCS#11 token, installed providers; tenants' own; rotation under readers."""

import gc
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from secrets import token_bytes
from typing import Any

import pytest

from attestation.cli.main import cli, run
from attestation.errors import AttestationError, Misconfigured, Unavailable, Untrusted
from attestation.ops.open_world import WorldOptions, close_world, open_world
from attestation.ops.root_keys import root_uses, rotate_root
from attestation.sources.envelope import FileRootKey, RootKey
from attestation.sources.roots import config
from attestation.sources.roots.config import load_root_keys
from attestation.sources.roots.hsm import HsmKey, HsmRootKey
from attestation.sources.roots.transit import TransitRootKey
from attestation.values import ResourcePath, Secret
from tests.attestation.broker.broker import ADMIN, NOW, PATH, Broker
from tests.attestation.broker.transit import FakeTransit, transit

SOFTHSM = next((p for p in map(Path, ("/usr/lib/softhsm/libsofthsm2.so",)) if p.exists()), None)
NO_SOFTHSM = "softhsm2: not installed (make test-deps)"
DATA_KEY = Secret(bytes(range(32)))


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[tuple[FakeTransit, TransitRootKey]]:
    with transit() as fake:
        (tmp_path / "token").write_text(fake.token + "\n")
        yield fake, TransitRootKey(url=fake.url, key="root", token_file=tmp_path / "token")
        gc.collect()


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> HsmKey:
    """A fresh SoftHSM token. The library reads its configuration once per process."""
    if SOFTHSM is None or shutil.which("softhsm2-util") is None:
        pytest.skip(NO_SOFTHSM)
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(folder / "softhsm2.conf")
    pins = ["--so-pin", "so-secret", "--pin", "user-secret"]
    subprocess.run(
        ["softhsm2-util", "--init-token", "--free", "--label", "kbs", *pins], check=True, capture_output=True
    )
    (folder / "pin").write_text("user-secret\n")
    return HsmKey(module=SOFTHSM, token="kbs", label="root", pin_file=folder / "pin")


@pytest.fixture(scope="session")
def hsm(token: HsmKey) -> HsmRootKey:
    token.generate()
    return HsmRootKey(token, token_bytes)


def _binds(root: RootKey) -> None:
    """Wraps to something else, unwraps in the same context only, and refuses any change."""
    wrapped = root.wrap(DATA_KEY, b"a/b/c\x001")
    assert DATA_KEY.expose() not in wrapped
    assert root.wrap(DATA_KEY, b"a/b/c\x001") != wrapped
    assert root.unwrap(wrapped, b"a/b/c\x001") == DATA_KEY
    for boxed, context in ((wrapped, b"a/b/c\x002"), (wrapped[:-1] + bytes([wrapped[-1] ^ 1]), b"a/b/c\x001")):
        with pytest.raises(AttestationError):
            root.unwrap(boxed, context)


def test_transit_binds_the_context(vault: tuple[FakeTransit, TransitRootKey]) -> None:
    """As associated data."""
    _binds(vault[1])


def test_transit_versions_and_renewed_tokens(vault: tuple[FakeTransit, TransitRootKey], tmp_path: Path) -> None:
    """Old ciphertexts open after a rotation; a token that was renewed on disk is read again."""
    fake, root = vault
    old = root.wrap(DATA_KEY, b"x")
    fake.rotate("root")
    assert root.wrap(DATA_KEY, b"x").startswith(b"vault:v2:")
    assert root.unwrap(old, b"x") == DATA_KEY
    fake.token = "s.second"
    (tmp_path / "token").write_text(fake.token)
    assert root.unwrap(old, b"x") == DATA_KEY


@pytest.mark.parametrize(
    ("change", "kind", "code"),
    [
        pytest.param({"broken": True}, Unavailable, "transit", id="sealed"),
        pytest.param({"token": "s.other"}, Unavailable, "transit-refused", id="token"),
        pytest.param({"keys": {}}, Unavailable, "transit-refused", id="no-key"),
        pytest.param({"garbage": b"{}"}, Unavailable, "transit-answer", id="empty-answer"),
        pytest.param({"garbage": b'{"data":{"ciphertext":"x"}}'}, Unavailable, "transit-answer", id="no-ciphertext"),
        pytest.param({"garbage": b"not json"}, Unavailable, "transit-answer", id="not-json"),
    ],
)
def test_transit_failures(
    vault: tuple[FakeTransit, TransitRootKey], change: dict[str, Any], kind: type[AttestationError], code: str
) -> None:
    """Each has a code; no text of ours holds the data key that was in the request."""
    fake, root = vault
    for name, value in change.items():
        setattr(fake, name, value)
    with pytest.raises(kind) as caught:
        root.wrap(DATA_KEY, b"x")
    assert caught.value.code == code
    assert "AAECAwQF" not in f"{caught.value} {caught.value.args!r} {caught.value.__cause__!r}"


def test_transit_only_over_tls(tmp_path: Path) -> None:
    """Plain HTTP is for loopback."""
    (tmp_path / "token").write_text("t")
    with pytest.raises(Misconfigured) as caught:
        TransitRootKey(url="http://vault.example:8200", key="root", token_file=tmp_path / "token")
    assert caught.value.code == "transit-url"


def test_hsm_binds_the_context(hsm: HsmRootKey) -> None:
    """AES-GCM inside the token, context as additional data."""
    _binds(hsm)


def test_hsm_key_does_not_leave(hsm: HsmRootKey) -> None:
    """Sensitive, not extractable: the token refuses to give its value, to us as to anybody."""
    import pkcs11
    from pkcs11 import Attribute

    assert hsm._key[Attribute.SENSITIVE] is True
    assert hsm._key[Attribute.EXTRACTABLE] is False
    with pytest.raises(pkcs11.AttributeSensitive):
        hsm._key[Attribute.VALUE]


def test_hsm_lost_session_is_opened_again(hsm: HsmRootKey) -> None:
    """A token that was reset."""
    wrapped = hsm.wrap(DATA_KEY, b"x")
    hsm._session.close()
    assert hsm.unwrap(wrapped, b"x") == DATA_KEY


def test_hsm_from_many_threads(hsm: HsmRootKey) -> None:
    """One session behind one lock."""
    wrapped = hsm.wrap(DATA_KEY, b"x")
    good: list[bool] = []

    def work() -> None:
        good.extend(hsm.unwrap(wrapped, b"x") == DATA_KEY for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert good == [True] * 120


@pytest.mark.parametrize(
    ("label", "code"),
    [
        pytest.param({"label": "other"}, "root-key-missing", id="key"),
        pytest.param({"token": "other"}, "pkcs11-token", id="token"),
        pytest.param({"module": Path("/no/such.so")}, "pkcs11", id="module"),
        pytest.param({"pin_file": Path("/no/such")}, "unreadable-file", id="pin-file"),
    ],
)
def test_hsm_configuration_errors(token: HsmKey, label: dict[str, Any], code: str) -> None:
    """One clear error each."""
    from dataclasses import replace

    with pytest.raises(AttestationError) as caught:
        HsmRootKey(replace(token, **label), token_bytes)
    assert caught.value.code == code


def test_hsm_key_is_made_once(token: HsmKey, hsm: HsmRootKey, capsys: pytest.CaptureFixture[str]) -> None:
    """A second key of one label would make it a matter of luck which one wraps."""
    argv = ["root-key", "create", "--pkcs11-module", str(token.module), "--token", "kbs", "--key", "root"]
    assert run(cli, [*argv, "--pin-file", str(token.pin_file)]) == 2
    assert "root-key-exists" in capsys.readouterr().err
    argv[-1] = "second"
    assert run(cli, [*argv, "--pin-file", str(token.pin_file)]) == 0
    assert capsys.readouterr().out == "created pkcs11:kbs/second\n"


def test_every_tenant_has_its_own_root(tmp_path: Path, token: HsmKey, hsm: HsmRootKey) -> None:
    """File for the broker, Transit for one repository, HSM for another: each wraps its own and nothing else."""
    with transit() as fake:
        (tmp_path / "token").write_text(fake.token)
        FileRootKey.create(tmp_path / "root.key", token_bytes)
        made = _world(
            tmp_path,
            '[root]\nprovider = "file"\npath = "root.key"\n'
            f'[tenants.acme]\nprovider = "transit"\nurl = "{fake.url}"\nkey = "root"\ntoken_file = "token"\n'
            f'[tenants.bank]\nprovider = "pkcs11"\nmodule = "{token.module}"\ntoken = "kbs"\nkey = "root"\n'
            f'pin_file = "{token.pin_file}"\n',
        )
        for repository in ("default", "acme", "bank"):
            path = ResourcePath.parse(f"{repository}/model/llama")
            made.put(path, repository.encode())
            assert made.world.keys.secret(path, 1) == Secret(repository.encode())
        counts = made.world.keys.roots()
        assert sorted((name.partition(":")[0], count) for name, count in counts.items()) == [
            ("file", 1),
            ("pkcs11", 1),
            ("transit", 1),
        ]
        fake.broken = True
        with pytest.raises(Unavailable):
            made.world.keys.secret(ResourcePath.parse("acme/model/llama"), 1)
        assert made.world.keys.secret(ResourcePath.parse("bank/model/llama"), 1) == Secret(b"bank")
        close_world(made.world)
        gc.collect()


def _world(folder: Path, document: str, store: str = "store") -> Broker:
    (folder / "roots.toml").write_text("version = 1\n" + document)
    options = WorldOptions(store=str(folder / store), root_key=folder / "roots.toml")
    return Broker(world=open_world(options, None, now=NOW))  # type: ignore[arg-type]


ONE = '[root]\nprovider = "file"\npath = "one.key"\n'
TWO = '[root]\nprovider = "file"\npath = "two.key"\n'
RETIRED = '[[retired]]\nprovider = "file"\npath = "one.key"\n'


def test_rotation_disturbs_no_reader(tmp_path: Path) -> None:
    """A replica with the old configuration reads during and after; what the old root wrapped shrinks to nothing."""
    for name in ("one.key", "two.key"):
        FileRootKey.create(tmp_path / name, token_bytes)
    first = _world(tmp_path, ONE)
    paths = [ResourcePath.parse(f"default/model/{n}") for n in range(20)]
    for path in paths:
        first.put(path, str(path).encode())
    stop, errors, reads = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            for path in paths:
                try:
                    reads.append(first.world.keys.secret(path, 1) == Secret(str(path).encode()))
                except AttestationError as exc:
                    errors.append(exc.code)

    thread = threading.Thread(target=read)
    thread.start()
    second = _world(tmp_path, TWO + RETIRED)
    done = rotate_root(second.world, ADMIN, now=NOW)
    seen = len(reads)
    while len(reads) < seen + 40:
        pass
    stop.set()
    thread.join()
    assert done == len(paths) + 5
    assert (errors, set(reads)) == ([], {True})
    uses = {use.name: use.wraps for use in root_uses(second.world)}
    assert list(uses.values()) == [len(paths) + 5, 0]
    assert [e.event for e in second.world.audit.tail(1)] == ["root-rotated"]
    for made in (first, second):
        close_world(made.world)
    third = _world(tmp_path, TWO)
    assert third.world.keys.secret(paths[0], 1) == Secret(str(paths[0]).encode())
    close_world(third.world)


def test_a_root_that_is_still_needed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Signing keys cannot be opened without it, so nothing starts; `show` needs the configuration that opens them."""
    for name in ("one.key", "two.key"):
        FileRootKey.create(tmp_path / name, token_bytes)
    close_world(_world(tmp_path, ONE).world)
    with pytest.raises(Misconfigured) as caught:
        _world(tmp_path, TWO)
    assert caught.value.code == "root-key-unknown"
    (tmp_path / "roots.toml").write_text("version = 1\n" + TWO + RETIRED)
    where = ["--store", str(tmp_path / "store"), "--root-key", str(tmp_path / "roots.toml")]
    assert run(cli, ["root-key", "show", *where]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in shown] == ["wraps 0", "wraps 5"]
    assert run(cli, ["root-key", "rotate", *where]) == 0
    assert "5 secrets rewrapped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("document", "code"),
    [
        pytest.param("", "root-key-config", id="empty"),
        pytest.param('[root]\nprovider = "kms"\n', "root-key-provider", id="provider"),
        pytest.param('[root]\nprovider = "file"\n', "root-key-config", id="field"),
        pytest.param('[root]\nprovider = "file"\npath = "one.key"\nmode = "0644"\n', "root-key-config", id="extra"),
        pytest.param('[root]\nprovider = "transit"\nport = "1"\n', "root-key-config", id="transit-field"),
        pytest.param(ONE + "[other]\n", "root-key-config", id="table"),
        pytest.param(ONE + '[tenants."a/b"]\nprovider = "file"\npath = "one.key"\n', "root-key-config", id="tenant"),
        pytest.param("[root\n", "root-key-config", id="toml"),
    ],
)
def test_configuration_errors(tmp_path: Path, document: str, code: str) -> None:
    """Misconfigured, with the table."""
    FileRootKey.create(tmp_path / "one.key", token_bytes)
    file = tmp_path / "roots.toml"
    file.write_text("version = 1\n" + document)
    with pytest.raises(Misconfigured) as caught:
        load_root_keys(file, token_bytes)
    assert caught.value.code == code


class _CloudKms:
    """What a cloud provider's package supplies."""

    def __init__(self, *, key_id: str) -> None:
        self.name, self._inner = f"cloud:{key_id}", FileRootKey(Secret(bytes(32)), token_bytes)
        self.wrap, self.unwrap = self._inner.wrap, self._inner.unwrap


def test_an_installed_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by its entry point, used through the same interface; what is no root key is refused."""

    class Found:
        def __init__(self, made: Any) -> None:
            self._made = made

        def load(self) -> Any:
            return self._made

    made: dict[str, Any] = {"cloud": _CloudKms, "broken": lambda **_: object()}
    monkeypatch.setattr(config, "entry_points", lambda *, group, name: [Found(made[name])] if name in made else [])
    file = tmp_path / "roots.toml"
    file.write_text('version = 1\n[root]\nprovider = "cloud"\nkey_id = "k1"\n')
    root = load_root_keys(file, token_bytes).root
    assert root.name == "cloud:k1"
    _binds(root)
    file.write_text('version = 1\n[root]\nprovider = "broken"\n')
    with pytest.raises(Misconfigured) as caught:
        load_root_keys(file, token_bytes)
    assert caught.value.code == "root-key-provider"


def test_a_moved_envelope_is_refused_by_every_provider(tmp_path: Path, hsm: HsmRootKey) -> None:
    """The vault turns a refusal of the provider into the same code."""
    from attestation.sources.envelope import OneRoot, Vault

    sealed = Vault(OneRoot(hsm), token_bytes).seal(Secret(b"s"), path=str(PATH), version=1)
    with pytest.raises(Untrusted) as caught:
        Vault(OneRoot(hsm), token_bytes).open(sealed, path=str(PATH), version=2)
    assert caught.value.code == "envelope"
