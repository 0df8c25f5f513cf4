"""The owner's command line: keys made, stored with their policy, models encrypted, and everything taken back on failure."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestation.cli.main import cli, run
from attestation.errors import ExitCode
from attestation.values import ResourcePath, Secret
from tests.attestation.guest.decoder import decode_model
from tests.attestation.guest.fake_kbs import FakeKbs, problem, reply, serving

KEY = "kbs:///models/llama/key"
RESOURCE, POLICY = "/kbs/v0/resource/models/llama/key", "/api/v1/policies/models/llama/key"


class FakeAdmin(FakeKbs):
    """The admin listener: remembers keys and policies."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: dict[str, bytes] = {}
        self.policies: dict[str, bytes] = {}

    def answer(self, method: str, path: str, cookie: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.calls.append((method, path))
        for prefix, answers in self.script.items():
            if path.startswith(prefix) and answers:
                return answers.pop(0)
        name = path.partition("?")[0]
        if method == "POST":
            self.keys[name] = body
        elif method == "PUT":
            self.policies[name] = body
        elif method == "DELETE":
            del self.keys[name]
        else:
            return reply(200, {"labels": ["test"]})
        return 200, {}, b""


@pytest.fixture
def admin() -> Iterator[FakeAdmin]:
    kbs = FakeAdmin()
    with serving(kbs):
        yield kbs


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"weights" * 1000)
    return folder


@pytest.fixture
def store(tmp_path: Path, admin: FakeAdmin) -> list[str]:
    """Options that name the broker."""
    (tmp_path / "token").write_text("admin.token\n")
    (tmp_path / "policy.toml").write_text("version = 1\n")
    return ["--key", KEY, "--broker", admin.url, "--admin-token-file", str(tmp_path / "token"),
            "--policy", str(tmp_path / "policy.toml")]  # fmt: skip


def encrypt(*arguments: object) -> int:
    return run(cli, ["model", "encrypt", *map(str, arguments)])


def test_key_policy_and_model_in_one_step(
    model: Path, tmp_path: Path, admin: FakeAdmin, store: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The broker's key opens what was written; no key lies on the disk."""
    assert encrypt(model, tmp_path / "out", *store, "--label", "test", "--output", "json") == ExitCode.OK
    key = admin.keys[RESOURCE]
    assert decode_model(tmp_path / "out", key) == {"weights.bin": b"weights" * 1000}
    assert admin.policies == {POLICY: b"version = 1\n"}
    assert json.loads(capsys.readouterr().out)["key"] == "models/llama/key"
    assert admin.calls[0] == ("POST", f"{RESOURCE}?label=test")
    assert all(key not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("script", "code", "left"),
    [
        pytest.param({RESOURCE: [problem(401, "who?")]}, ExitCode.NEGATIVE, 0, id="token-refused"),
        pytest.param({POLICY: [problem(400, "bad policy")]}, ExitCode.USAGE, 0, id="policy-refused"),
        pytest.param({POLICY: [problem(500, "")]}, ExitCode.UNAVAILABLE, 0, id="policy-failed"),
        pytest.param({"/api/v1/keys": [reply(200, {"labels": []})]}, ExitCode.USAGE, 0, id="label-ignored"),
    ],
)
def test_a_refusal_takes_the_key_back(
    model: Path, tmp_path: Path, admin: FakeAdmin, store: list[str], script: Any, code: ExitCode, left: int
) -> None:
    """No key without its policy, no model without its key."""
    admin.script.update(script)
    assert encrypt(model, tmp_path / "out", *store, "--label", "test") == code
    assert len(admin.keys) == left
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
    from attestation.cli.admin_client import AdminClient
    from attestation.errors import Misconfigured

    with pytest.raises(Misconfigured):
        AdminClient("http://127.0.0.1:1", certificate=None, token=token)


def test_admin_client_sends_the_token(admin: FakeAdmin) -> None:
    """And nothing else of ours."""
    from attestation.cli.admin_client import AdminClient

    client = AdminClient(admin.url, certificate=None, token="t.o.k")
    client.put_key(ResourcePath.parse(KEY), Secret(b"x"))
    assert admin.keys == {RESOURCE: b"x"}
    client.delete_key(ResourcePath.parse(KEY))
    assert admin.keys == {}
