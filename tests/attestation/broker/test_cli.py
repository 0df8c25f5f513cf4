"""The operator's commands on a store: what they print, what they refuse, and what they leave in the log."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestation.cli.main import cli, run
from attestation.simulate.amd import MEASUREMENT
from tests.attestation.broker.broker import GPU_POLICY, NOW, PATH, Broker, broker, ready_broker
from tests.attestation.tee.world import Guest

AT = "2026-11-21T00:00:00Z"


class Cli:
    """Runs one command on one store."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys

    def __call__(self, *argv: str, store: bool = True, code: int = 0) -> str:
        where = ["--store", str(self.folder / "store")] if store else []
        assert run(cli, [*argv, *where]) == code
        captured = self._capsys.readouterr()
        self.err = captured.err
        return captured.out

    def json(self, *argv: str, code: int = 0) -> Any:
        return json.loads(self(*argv, "--output", "json", code=code))


@pytest.fixture
def kbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Cli:
    return Cli(tmp_path, capsys)


@pytest.fixture
def policy(tmp_path: Path) -> str:
    file = tmp_path / "gpu.toml"
    file.write_text(GPU_POLICY)
    return str(file)


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Broker]:
    """A store that has seen one guest with a GPU and one without."""
    with ready_broker(tmp_path) as made:
        made.handshake().get()
        made.handshake(Guest(init_data=None).with_(gpus=0))
        yield made


def test_a_new_store_from_the_first_key(kbs: Cli, policy: str) -> None:
    """The directory and its root key come into being, readable by their owner only."""
    assert kbs("key", "add", "default/model/llama", "--policy", policy, "--label", "test") == (
        "stored default/model/llama version 1 (model-key)\n"
    )
    root = kbs.folder / "store" / "root.key"
    assert root.stat().st_mode & 0o777 == 0o600
    assert kbs("key", "rotate", "default/model/llama") == "default/model/llama is now version 2\n"
    assert kbs.json("key", "list")["keys"][0] | {"created": ""} == {
        "path": "default/model/llama",
        "kind": "model-key",
        "labels": ["test"],
        "version": 2,
        "releases": 0,
        "created": "",
        "has_policy": True,
    }
    shown = kbs.json("key", "show", "default/model/llama")
    assert shown["versions"] == [1, 2]
    assert shown["policy"] == GPU_POLICY
    assert "default/model/llama" in kbs("key", "list")
    assert "[gpus]" in kbs("key", "show", "default/model/llama")
    assert kbs.json("key", "rewrap") == {"rewrapped": 0}
    assert kbs("key", "delete", "default/model/llama", "--yes") == "shredded default/model/llama\n"
    assert kbs("key", "list") == "no keys\n"
    assert kbs("audit", "verify") == "intact: 3 entries\n"


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        pytest.param(["key", "add", "only/two"], 2, "not a resource path", id="path"),
        pytest.param(["key", "show", "a/b/c"], 2, "no such key", id="unknown-key"),
        pytest.param(["key", "rotate", "a/b/c"], 2, "no such resource", id="rotate-unknown"),
        pytest.param(["key", "delete", "a/b/c", "--yes"], 2, "no such resource", id="delete-unknown"),
        pytest.param(["key", "derive", "a/b/c", "shard", "--out", "-"], 2, "no such resource", id="derive-unknown"),
        pytest.param(["audit", "proof", "99"], 2, "no such entry", id="audit-entry"),
        pytest.param(["key", "add", "a/b/c", "/no/such/file"], 2, "", id="no-file"),
        pytest.param(["key", "add", "a/b/c", "--bundle"], 2, "a bundle needs a file", id="bundle"),
        pytest.param(["user", "token", "nobody"], 2, "no such user", id="user"),
        pytest.param(["reference", "import", "/dev/null"], 2, "not JSON", id="reference"),
        pytest.param(["policy", "explain", "a/b/c", "x"], 2, "no such attestation", id="explain"),
    ],
)
def test_bad_use_is_one_clear_line(kbs: Cli, argv: list[str], code: int, says: str) -> None:
    """No traceback, the right exit code."""
    kbs("user", "add", "somebody", "--role", "auditor")  # makes the store
    kbs(*argv, code=code)
    assert says in kbs.err
    assert "Traceback" not in kbs.err


def test_loose_root_key_is_refused(kbs: Cli, tmp_path: Path) -> None:
    """Permissions, symlinks and lengths are checked every time."""
    kbs("key", "add", "a/b/c")
    root = tmp_path / "store" / "root.key"
    root.chmod(0o640)
    kbs("key", "list", code=2)
    assert "others can read the root key" in kbs.err
    root.chmod(0o600)
    real = tmp_path / "elsewhere.key"
    root.rename(real)
    root.symlink_to(real)
    kbs("key", "list", code=2)
    assert "root-key-file" in kbs.err
    root.unlink()
    kbs("key", "list", code=2)
    assert "root-key-file" in kbs.err


def test_policy_check_names_waivers(kbs: Cli, policy: str, tmp_path: Path) -> None:
    """What is not checked is said in the words of whoever waived it."""
    assert "WAIVED: the reference documents name the versions" in kbs("policy", "check", policy, store=False)
    bad = tmp_path / "bad.toml"
    bad.write_text(GPU_POLICY.replace("count = 1", "cuont = 1"))
    kbs("policy", "check", str(bad), store=False, code=2)
    assert "gpus.count" in kbs.err


@pytest.mark.usefixtures("seen")
def test_policy_test_explain_and_diff(kbs: Cli, policy: str, tmp_path: Path) -> None:
    """The same judgement as at release time, on what was recorded."""
    results = kbs.json("policy", "test", policy, "--at", AT, code=1)["results"]
    assert sorted(len(row["reasons"]) == 0 for row in results) == [False, True]
    (good,) = [row for row in results if not row["reasons"]]
    (bad,) = [row for row in results if row["reasons"]]
    assert "gpu-count-wrong" in bad["reasons"]
    assert "would be released" in kbs("policy", "explain", str(PATH), good["jti"], "--at", AT)
    assert "gpu-count-wrong" not in kbs("policy", "explain", str(PATH), bad["jti"], "--at", AT, code=1).split("\n")[0]
    new = tmp_path / "new.toml"
    new.write_text(GPU_POLICY.replace("count = 1", "count = 8"))
    (changes,) = kbs.json("policy", "diff", str(PATH), str(new), "--at", AT, code=1)["keys"]
    assert (changes["path"], len(changes["lose"]), changes["gain"], changes["same"]) == (str(PATH), 1, [], 1)
    assert kbs.json("policy", "diff", str(PATH), policy, "--at", AT)["keys"][0]["same"] == 2


def test_policy_versions_refuse_lost_updates(kbs: Cli, policy: str) -> None:
    """Append-only, with a version that the author saw."""
    assert kbs("policy", "set", "default", policy) == "policy default is now version 1\n"
    assert kbs("policy", "set", "default", policy, "--expected-version", "1") == "policy default is now version 2\n"
    kbs("policy", "set", "default", policy, "--expected-version", "1", code=1)
    assert "somebody else changed this policy" in kbs.err


def test_references_users_and_audit(kbs: Cli, tmp_path: Path) -> None:
    """Set, listed with expiry and provenance; users get tokens that can be taken back."""
    kbs("reference", "set", "snp_launch_measurement", MEASUREMENT.hex(), "--provenance", "build 1")
    assert "build 1" in kbs("reference", "list")
    values = tmp_path / "values.json"
    values.write_text('{"svn": ["1"]}')
    assert kbs("reference", "import", str(values)) == "imported 1 names\n"
    kbs("user", "add", "alice", "--role", "operator", "--repository", "alpha")
    assert kbs("user", "list") == "alice  operator  alpha\n"
    assert kbs("user", "token", "alice").count(".") == 2
    kbs("user", "revoke", "alice")
    assert "user-revoked" in kbs("audit", "tail")
    assert [json.loads(line)["seq"] for line in kbs("audit", "export").splitlines()] == [1, 2, 3, 4]
    assert kbs("audit", "who", "a/b/c") == "nobody asked for a/b/c\n"


@pytest.mark.usefixtures("seen")
def test_audit_answers_who_got_the_key(kbs: Cli) -> None:
    """Chip, devices, version, policy."""
    (released,) = kbs.json("audit", "who", str(PATH))["released"]
    assert released["body"]["version"] == 1
    assert len(released["body"]["devices"]) == 1
    assert released["body"]["policy"].startswith("sha256:")
    assert released["at"] == NOW.isoformat()


def test_a_store_is_kept_by_its_root_key(tmp_path: Path) -> None:
    """Another root key opens nothing."""
    with broker(tmp_path) as made:
        made.put()
    root = tmp_path / "store" / "root.key"
    root.write_bytes(b"\1" * 32)
    from attestation.errors import Misconfigured

    with pytest.raises(Misconfigured) as caught, broker(tmp_path):
        pass
    assert caught.value.code == "root-key-unknown"
