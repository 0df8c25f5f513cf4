"""Policies tried on evidence before they are in force, compared key by key, and never replaced by older ones."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attestation.cli.main import cli, run
from attestation.crypto.b64 import b64
from attestation.errors import Denied
from attestation.ops.administer import put_key, set_key_policy, set_release_policy
from attestation.simulate.amd import MEASUREMENT
from attestation.sources.policy_store import PolicyKind
from attestation.values import ResourcePath
from tests.attestation.broker.broker import ADMIN, GPU_POLICY, INIT_DATA, NOW, PATH, Broker, broker, ready_broker

AT = "2026-11-21T00:00:00Z"
NONCE = b64(bytes(range(32)))
TRUST = ("--unsafe-trust-simulated-roots", "builtin", "--at", AT)
EIGHT = GPU_POLICY.replace("count = 1", "count = 8")


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[Broker]:
    with ready_broker(tmp_path) as made:
        yield made


class Files:
    """Evidence as the commands write it, and a store to try policies on."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        with broker(folder) as made:
            made.references({"snp_launch_measurement": [MEASUREMENT.hex()]})
            made.put(policy=GPU_POLICY)
        self.init_data = self.write("initdata.toml", INIT_DATA)

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return str(self.folder / name)

    def run(self, *argv: str, code: int = 0) -> str:
        assert run(cli, list(argv)) == code, self._capsys.readouterr()
        return self._capsys.readouterr().out

    def policy(self, *argv: str, code: int = 0) -> Any:
        return json.loads(
            self.run("policy", *argv, "--store", str(self.folder / "store"), "--output", "json", code=code)
        )

    def body(self, name: str, *options: str) -> str:
        argv = ["simulate", "evidence", "--nonce", NONCE, "--init-data", self.init_data, *options]
        return self.write(name, self.run(*argv))


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Files:
    return Files(tmp_path, capsys)


def test_policies_on_attest_bodies(files: Files) -> None:
    """Both binding profiles; each with the findings that a release would have."""
    good = files.body("good.json")
    other = files.body("other.json", "--binding-profile", "trustee-rcar-0.4")
    eight = files.body("eight.json", "--gpus", "8")
    policy = files.write("policy.toml", GPU_POLICY)
    argv = [part for file in (good, other, eight) for part in ("--evidence", file)]
    results = files.policy("test", policy, *argv, *TRUST, code=1)["results"]
    assert [row["reasons"] for row in results] == [[], [], ["gpu-count-wrong"]]
    assert [row["jti"] for row in results] == [good, other, eight]
    assert files.policy("explain", str(PATH), "--evidence", good, *TRUST)["released"] is True
    found = files.policy("explain", str(PATH), "--evidence", eight, *TRUST, code=1)["findings"]
    assert "gpu-count-wrong" in {finding.get("code") for finding in found}


def test_policies_on_results_of_verify(files: Files) -> None:
    """The facts in the result are judged again; no collateral and no roots are needed then."""
    body = files.body("good.json")
    argv = ["verify", "evidence", "--body", body, "--nonce", NONCE, "--binding-profile", "cgpu-v1"]
    argv += ["--expect", "gpus=1", "--measurement", MEASUREMENT.hex(), "--output", "json", *TRUST]
    result = files.write("result.json", files.run(*argv))
    policy = files.write("policy.toml", GPU_POLICY)
    assert files.policy("test", policy, "--evidence", result, "--at", AT)["results"][0]["reasons"] == []
    eight = files.write("eight.toml", EIGHT)
    assert files.policy("test", eight, "--evidence", result, "--at", AT, code=1)["results"][0]["reasons"] == [
        "gpu-count-wrong"
    ]
    (change,) = files.policy("diff", str(PATH), eight, "--evidence", result, "--at", AT, code=1)["keys"]
    assert (len(change["lose"]), change["gain"]) == (1, [])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("{}", 2, id="neither"),
        pytest.param('{"claims":{"facts":{"cpu":{}}}}', 2, id="no-facts"),
        pytest.param('{"runtime-data":{"nonce":"x","tee-pubkey":{}},"tee-evidence":{}}', 2, id="no-key"),
        pytest.param("nonsense", 2, id="not-json"),
    ],
)
def test_files_that_are_neither(files: Files, text: str, code: int) -> None:
    """Refused with an error of ours."""
    policy = files.write("policy.toml", GPU_POLICY)
    argv = [
        "policy",
        "test",
        policy,
        "--evidence",
        files.write("odd.json", text),
        "--store",
        str(files.folder / "store"),
    ]
    files.run(*argv, code=code)


def test_tampered_evidence_is_no_platform(files: Files) -> None:
    """The gate comes first here too."""
    body = files.body("tampered.json", "--stale-nonce")
    policy = files.write("policy.toml", GPU_POLICY)
    argv = ["policy", "test", policy, "--evidence", body, *TRUST, "--store", str(files.folder / "store")]
    files.run(*argv, code=1)


def test_which_keys_a_policy_would_govern(kbs: Broker) -> None:
    """A key, the keys of a repository without policies of their own, or all that nothing else governs."""
    from attestation.ops.what_if import compare, recorded

    kbs.handshake().get()
    for name in ("default/a/1", "default/a/2", "other/a/1", "third/a/1"):
        kbs.put(ResourcePath.parse(name))
    set_release_policy(kbs.world, ADMIN, "other", EIGHT, now=NOW)

    def governed(target: str) -> dict[str, tuple[int, int]]:
        found = compare(kbs.world, recorded(kbs.world), target, GPU_POLICY, now=NOW)
        return {str(change.path): (len(change.gain), len(change.lose)) for change in found}

    assert governed(str(PATH)) == {str(PATH): (0, 0)}
    assert governed("other") == {"other/a/1": (1, 0)}
    assert governed("default") == {"default/a/1": (1, 0), "default/a/2": (1, 0), "third/a/1": (1, 0)}
    assert governed("nothing") == {}


def test_an_older_text_does_not_come_back_unnoticed(kbs: Broker) -> None:
    """The same text again changes nothing; an earlier one needs a word; history has all of them."""
    for text in (GPU_POLICY, EIGHT, EIGHT):
        set_release_policy(kbs.world, ADMIN, "default", text, now=NOW)
    with pytest.raises(Denied) as caught:
        set_release_policy(kbs.world, ADMIN, "default", GPU_POLICY, now=NOW)
    assert caught.value.code == "policy-rollback"
    assert set_release_policy(kbs.world, ADMIN, "default", GPU_POLICY, allow_rollback=True, now=NOW) == 4
    found = kbs.world.policies.history(PolicyKind.RELEASE, "default")
    assert [policy.text for policy in found] == [GPU_POLICY, EIGHT, EIGHT, GPU_POLICY]


def test_an_epoch_only_grows(kbs: Broker) -> None:
    """For repositories and for keys, whatever the text and whatever the flag."""

    def text(epoch: int) -> str:
        return GPU_POLICY.replace("version = 1", f"version = 1\nepoch = {epoch}")

    set_release_policy(kbs.world, ADMIN, "default", text(5), now=NOW)
    set_release_policy(kbs.world, ADMIN, "default", text(5), now=NOW)
    set_key_policy(kbs.world, ADMIN, PATH, text(5), now=NOW)
    for older in (text(4), text(5) + "# another\n", GPU_POLICY):
        with pytest.raises(Denied) as caught:
            set_release_policy(kbs.world, ADMIN, "default", older, allow_rollback=True, now=NOW)
        assert caught.value.code == "policy-rollback"
        with pytest.raises(Denied):
            set_key_policy(kbs.world, ADMIN, PATH, older, now=NOW)
        with pytest.raises(Denied):
            put_key(kbs.world, ADMIN, PATH, None, policy=older, now=NOW)
    assert set_release_policy(kbs.world, ADMIN, "default", text(6), now=NOW) == 3
    set_key_policy(kbs.world, ADMIN, PATH, text(6), now=NOW)
    assert kbs.handshake().get() == b"k" * 32


def test_history_on_the_command_line(files: Files) -> None:
    """Who changed what, when."""
    store = ["--store", str(files.folder / "store")]
    files.run("policy", "set", "default", files.write("a.toml", GPU_POLICY), *store)
    files.run("policy", "set", "default", files.write("b.toml", EIGHT), *store)
    files.run("policy", "set", "default", files.write("a.toml", GPU_POLICY), *store, code=1)
    files.run("policy", "set", "default", files.write("a.toml", GPU_POLICY), "--allow-rollback", *store)
    assert [row["version"] for row in files.policy("history", "default")["versions"]] == [1, 2, 3]
    assert "version 3" in files.run("policy", "history", "default", *store)
    assert files.run("policy", "history", "none", *store) == "no policy none\n"
