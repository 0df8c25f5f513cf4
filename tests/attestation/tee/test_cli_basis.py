"""What every result of `verify` says about its basis: the collateral bundle, its age, and the rules that were waived."""

import json
from pathlib import Path
from typing import Any

import pytest

from attestation.cli.main import cli, run
from attestation.errors import ExitCode
from attestation.simulate.amd import SimulatedChip
from attestation.simulate.intel import QuoteForm
from tests.attestation.gpu.support import FORGE, NONCE
from tests.attestation.tee.world import NONCE as SESSION
from tests.attestation.tee.world import Guest

AT = ["--at", "2026-11-21T00:00:00Z"]
BUNDLE = {"id": "sha256:" + "ab" * 32, "issued_at": "2026-11-01T00:00:00+00:00"}
OLD = b"version = 1\n[bundle]\nmax_age_days = 19\n"
RECENT = (
    b'version = 1\n[bundle]\nmax_age_days = 20\nrequired = true\n[snp]\nalias_check = { unchecked = "a lab machine" }\n'
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Evidence of every kind, policies, and a store that a bundle filled."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store/bundle.json").write_text(json.dumps(BUNDLE))
    (tmp_path / "old.toml").write_bytes(OLD)
    (tmp_path / "recent.toml").write_bytes(RECENT)
    (tmp_path / "snp.json").write_text(SimulatedChip().evidence_json())
    (tmp_path / "quote").write_bytes(QuoteForm().sign())
    device = FORGE.device(nonce=NONCE)
    (tmp_path / "report").write_bytes(device.report)
    (tmp_path / "chain").write_bytes(device.chain)
    for name, pem in FORGE.roots.items():
        (tmp_path / name).write_bytes(pem)
    sent = Guest().evidence()
    body = {
        "init-data": None,
        "runtime-data": {"nonce": sent.nonce, "tee-pubkey": dict(sent.tee_jwk)},
        "tee-evidence": {"primary_evidence": sent.primary, "additional_evidence": sent.additional},
    }
    (tmp_path / "body.json").write_text(json.dumps(body))
    return tmp_path


def arguments(kind: str, folder: Path) -> list[object]:
    given: dict[str, list[object]] = {
        "gpu": ["--report", folder / "report", "--chain", folder / "chain", "--unsafe-trust-simulated-roots", folder],
        "snp": ["--evidence", folder / "snp.json"],
        "tdx": ["--quote", folder / "quote"],
        "evidence": ["--body", folder / "body.json", "--nonce", SESSION, "--expect", "gpus=1"],
    }
    return [kind, *given[kind], "--collateral", folder / "store", *AT]


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = run(cli, ["verify", *map(str, words)])
    return code, capsys.readouterr().out


KINDS = pytest.mark.parametrize("kind", ["gpu", "snp", "tdx", "evidence"])


@KINDS
def test_results_name_the_bundle_and_its_age(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that refuse the evidence: here, the store holds no collateral for it."""
    _, out = call(capsys, *arguments(kind, folder), "--output", "json")
    bundle: dict[str, Any] = json.loads(out)["collateral"]["bundle"]
    assert bundle == {"id": BUNDLE["id"], "issued-at": BUNDLE["issued_at"], "age-seconds": 20 * 86400}
    _, out = call(capsys, *arguments(kind, folder))
    assert f"Collateral bundle {BUNDLE['id']}, issued 2026-11-01T00:00:00Z, 20 days old." in out


@KINDS
def test_an_old_bundle_is_not_used(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The rule is the policy file's; a day less and nothing is judged."""
    words = [*arguments(kind, folder), "--output", "json", "--verification-policy"]
    code, out = call(capsys, *words, folder / "old.toml")
    assert code == ExitCode.UNAVAILABLE
    assert [f["code"] for f in json.loads(out)["findings"]] == ["bundle-expired"]
    _, out = call(capsys, *words, folder / "recent.toml")
    result = json.loads(out)
    assert "bundle-expired" not in {f.get("code") for f in result["findings"]}
    assert result["waivers"] == ["snp.alias_check: a lab machine"]


@pytest.mark.parametrize(
    ("kind", "option"),
    [("gpu", ["--trailing-zeros", "1"]), ("snp", ["--allow-masked-chip"]), ("tdx", ["--min-evaluation", "1"])],
)
def test_rules_come_from_one_place(
    kind: str, option: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A policy file and options that set rules would be two truths."""
    code, _ = call(capsys, *arguments(kind, folder), *option, "--verification-policy", folder / "recent.toml")
    assert code == ExitCode.USAGE


def test_the_policy_file_decides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A floor that the simulated chip does not reach."""
    (folder / "floor.toml").write_bytes(b"version = 1\n[snp]\nmin_guest_svn = 9\n")
    words = ["snp", "--evidence", folder / "snp.json", "--unsafe-trust-simulated-roots", *AT, "--output", "json"]
    _, out = call(capsys, *words)
    assert "snp-guest-svn-low" not in out
    code, out = call(capsys, *words, "--verification-policy", folder / "floor.toml")
    assert code == ExitCode.NEGATIVE
    assert "snp-guest-svn-low" in out
