"""The owner's command line against a real broker: key, labels and policy stored together, models encrypted under them;
a refusal changes nothing, and a key that was there before is never replaced or deleted."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from attestation.broker.keys import KeyRecord
from attestation.cli.admin_client import AdminClient
from attestation.cli.main import cli, run
from attestation.errors import Denied, ExitCode, Misconfigured
from attestation.values import ResourcePath, Secret
from tests.attestation.broker.broker import GPU_POLICY
from tests.attestation.guest.decoder import decode_model
from tests.attestation.guest.fake_kbs import FakeKbs, problem, serving
from tests.conformance.target import Target, admin_token, local_target

KEY = "kbs:///models/llama/key"
PATH = ResourcePath.parse(KEY)
EARLIER = b"earlier models need it".ljust(32)
OWN_POLICY = GPU_POLICY.replace("count = 1", "count = 8")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with local_target(tmp_path_factory.mktemp("broker")) as kbs:
        yield kbs


@pytest.fixture
def kbs(broker: Target) -> Target:
    """The broker without our key."""
    assert broker.local
    broker.local.broker.drop(PATH)
    return broker


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"weights" * 1000)
    return folder


@pytest.fixture
def store(tmp_path: Path, kbs: Target) -> list[str]:
    """Options that name the broker."""
    (tmp_path / "token").write_text(f"{kbs.token}\n")
    (tmp_path / "policy.toml").write_text(GPU_POLICY)
    return ["--key", KEY, "--broker", kbs.admin_url, "--admin-token-file", str(tmp_path / "token"),
            "--policy", str(tmp_path / "policy.toml")]  # fmt: skip


def encrypt(*arguments: object) -> int:
    return run(cli, ["model", "encrypt", *map(str, arguments)])


def stored(kbs: Target) -> tuple[KeyRecord, bytes]:
    """What the broker has under the name: record with policy, labels and version, and the secret."""
    assert kbs.local
    keys = kbs.local.broker.world.keys
    record = keys.get(PATH)
    assert record is not None
    return record, keys.secret(PATH, record.current_version).expose()


def is_stored(kbs: Target) -> bool:
    assert kbs.local
    return kbs.local.broker.world.keys.get(PATH) is not None


def test_key_policy_and_model_in_one_step(
    model: Path, tmp_path: Path, kbs: Target, store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The broker's key opens what was written; no key lies on the disk."""
    assert encrypt(model, tmp_path / "out", *store, "--label", "test", "--output", "json") == ExitCode.OK
    record, key = stored(kbs)
    assert decode_model(tmp_path / "out", key) == {"weights.bin": b"weights" * 1000}
    assert (record.policy, record.labels, record.current_version) == (GPU_POLICY, ("test",), 1)
    assert json.loads(capsys.readouterr().out)["key"] == "models/llama/key"
    assert all(key not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "broker" not in p.parts)


@pytest.mark.parametrize(
    ("file", "content", "exists", "code", "says"),
    [
        pytest.param("token", "no token", True, ExitCode.NEGATIVE, "admin-denied", id="token-refused"),
        pytest.param("policy.toml", "version = 0\n", True, ExitCode.USAGE, "admin-refused", id="policy-refused"),
        pytest.param("label", "other", True, ExitCode.USAGE, "admin-refused", id="label-refused"),
        pytest.param("token", "no token", False, ExitCode.NEGATIVE, "admin-denied", id="token-refused-no-key"),
        pytest.param(
            "policy.toml", "version = 0\n", False, ExitCode.USAGE, "admin-refused", id="policy-refused-no-key"
        ),
    ],
)
def test_a_refusal_changes_no_key_and_makes_none(
    model: Path,
    tmp_path: Path,
    kbs: Target,
    store: list[str],
    file: str,
    content: str,
    exists: bool,
    code: ExitCode,
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Bytes, versions, labels and policy of a key that other models need; no key without its policy, and no model
    without its key.
    """
    assert kbs.local
    more = ["--label", content] if file == "label" else []
    (tmp_path / file).write_text(content)
    if exists:
        kbs.local.broker.put(PATH, EARLIER, policy=OWN_POLICY)
        (tmp_path / "key").write_bytes(EARLIER)
        more += ["--key-file", str(tmp_path / "key")]
    before = stored(kbs) if exists else None
    assert encrypt(model, tmp_path / "out", *store, *more) == code
    assert capsys.readouterr().err.startswith(f"error[{says}]")
    assert (stored(kbs) if is_stored(kbs) else None) == before
    assert not (tmp_path / "out").exists()


def test_another_key_is_not_replaced(
    model: Path, tmp_path: Path, kbs: Target, store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Guests get the newest version: a fresh key under a name in use would close every earlier model."""
    assert kbs.local
    kbs.local.broker.put(PATH, EARLIER)
    assert encrypt(model, tmp_path / "out", *store) == ExitCode.USAGE
    assert "another key has this name" in capsys.readouterr().err
    assert stored(kbs)[1] == EARLIER
    assert not (tmp_path / "out").exists()


def test_a_second_model_under_the_same_key(model: Path, tmp_path: Path, kbs: Target, store: list[str]) -> None:
    """The key file's bytes are in the broker already: no new version, the new policy holds."""
    assert kbs.local
    kbs.local.broker.put(PATH, EARLIER, policy=OWN_POLICY)
    (tmp_path / "key").write_bytes(EARLIER)
    assert encrypt(model, tmp_path / "out", *store, "--key-file", tmp_path / "key") == ExitCode.OK
    record, key = stored(kbs)
    assert (record.current_version, record.policy, key) == (1, GPU_POLICY, EARLIER)
    assert decode_model(tmp_path / "out", EARLIER) == {"weights.bin": b"weights" * 1000}


def test_two_at_once(kbs: Target) -> None:
    """Of two owners who both saw a free name, one is told; nobody's key becomes an older version unnoticed."""
    assert kbs.local
    kbs.local.broker.put(PATH, EARLIER, expected=0)
    with pytest.raises(Denied, match="somebody else stored this key"):
        kbs.local.broker.put(PATH, b"late", expected=0)
    record, key = stored(kbs)
    assert (record.current_version, key) == (1, EARLIER)


def test_labels_are_not_ignored(kbs: Target) -> None:
    """A key keeps the labels that it was made with; asking for others stores no version."""
    assert kbs.local
    kbs.local.broker.put(PATH, EARLIER, labels=("team-a",))
    with pytest.raises(Denied, match="a key keeps the labels"):
        kbs.local.broker.put(PATH, b"new", labels=("team-b",))
    assert kbs.local.broker.put(PATH, b"new", labels=("team-a",)) == 2


def test_readers_store_nothing(kbs: Target) -> None:
    """An auditor's token."""
    client = AdminClient(kbs.admin_url, certificate=None, token=admin_token(kbs.now(), role="reader"))
    with pytest.raises(Denied):
        client.keep_key(PATH, Secret(EARLIER))
    assert not is_stored(kbs)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param(problem(500, ""), ExitCode.UNAVAILABLE, id="failed"),
        pytest.param((200, {}, b"{}"), ExitCode.UNAVAILABLE, id="no-broker-of-ours"),
        pytest.param((200, {}, b"<html>"), ExitCode.USAGE, id="no-broker"),
    ],
)
def test_a_broker_that_fails(
    model: Path, tmp_path: Path, store: list[str], answer: tuple[int, dict[str, str], bytes], code: ExitCode
) -> None:
    """One request, and nothing is encrypted."""
    broken = FakeKbs(script={"/api/v1/keys": [answer]})
    with serving(broken):
        store[store.index("--broker") + 1] = broken.url
        assert encrypt(model, tmp_path / "out", *store) == code
    assert broken.calls == [("PUT", "/api/v1/keys/models/llama/key")]
    assert not (tmp_path / "out").exists()


def test_key_file_is_made_once_and_used_again(model: Path, tmp_path: Path) -> None:
    """Mode 0600; the second model has the same key and other salts."""
    key = tmp_path / "key"
    assert encrypt(model, tmp_path / "one", "--key-file", key) == ExitCode.OK
    first = key.read_bytes()
    assert (len(first), key.stat().st_mode & 0o777) == (32, 0o600)
    assert encrypt(model, tmp_path / "two", "--key-file", key, "--sha256") == ExitCode.OK
    assert key.read_bytes() == first
    assert decode_model(tmp_path / "one", first) == decode_model(tmp_path / "two", first)
    assert (tmp_path / "one" / "000000.kgf").read_bytes()[32:64] != (tmp_path / "two" / "000000.kgf").read_bytes()[
        32:64
    ]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("{model}", "{out}"), "error[model-key]: the key would be lost", id="no-key"),
        pytest.param(("{model}", "{out}", "--key", KEY), "error[broker]", id="key-without-broker"),
        pytest.param(("{model}", "{out}", "--key-file", "{model}/weights.bin"), "error[file-size]", id="no-key-file"),
        pytest.param(("{model}", "{model}/out", "--key-file", "{out}.key"), "error[out-inside]", id="inside"),
        pytest.param(
            ("{model}", "{out}", "--key-file", "{out}.key", "--broker", "x"), "error[model-key]", id="nameless"
        ),
        pytest.param(("{model}", "{out}", "--key-file", "/absent/key"), "error[key-file]", id="no-folder-for-the-key"),
    ],
)
def test_command_lines_that_make_no_sense(
    model: Path, tmp_path: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told before anything is written."""
    assert encrypt(*(a.format(model=model, out=tmp_path / "out") for a in arguments)) == ExitCode.USAGE
    assert capsys.readouterr().err.startswith(says)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("token", ["", "two\nlines", "not ascii \u00e9"])
def test_tokens_that_are_none(token: str) -> None:
    """A token is one line of text."""
    with pytest.raises(Misconfigured):
        AdminClient("http://127.0.0.1:1", certificate=None, token=token)
