"""`kata-gpu-kbs verify snp|tdx|evidence`: exit codes, levels, findings and claims, as `verify gpu` has them."""

import json
from pathlib import Path
from typing import Any

import pytest

from attestation.cli.main import cli, run
from attestation.errors import ExitCode
from attestation.simulate.amd import SimulatedChip
from attestation.simulate.intel import QuoteForm
from attestation.values import BindingProfile
from tests.attestation.tee.world import INIT_DATA, NONCE, OTHER_NONCE, Guest

AT = ["--at", "2026-11-21T00:00:00Z"]
SIMULATED = ["--unsafe-trust-simulated-roots"]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run(cli, ["verify", *map(str, arguments)])
    out = capsys.readouterr()
    return code, out.out, out.err


def result(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code, out, _ = call(capsys, *arguments, "--output", "json")
    return code, json.loads(out)


def codes(document: dict[str, Any]) -> set[str]:
    return {finding["code"] for finding in document["findings"] if finding["result"] == "fail"}


def _genuine(vectors: Path, product: str) -> list[object]:
    folder = vectors / "snp"
    return [
        "snp", "--report", folder / f"{product}_attestation_report.bin", "--leaf", folder / f"{product}_vcek.pem",
        "--chain", folder / f"{product}_ask_ark_asvk.pem", *AT,
    ]  # fmt: skip


@pytest.mark.parametrize("product", ["genoa", "turin"])
def test_genuine_snp_is_authentic(vectors: Path, capsys: pytest.CaptureFixture[str], product: str) -> None:
    arguments = _genuine(vectors, product)
    code, document = result(capsys, *arguments, "--require", "authentic")
    assert (code, document["level"]) == (ExitCode.OK, "authentic")
    assert document["claims"]["product"].lower() == product
    code, text, _ = call(capsys, *arguments)
    assert code == ExitCode.NEGATIVE
    assert "report-data-unchecked" in text
    assert "measurement-unchecked" in text
    assert "does NOT reach" in text


def test_genuine_snp_is_trusted_with_its_measurement(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _genuine(vectors, "genoa")
    _, document = result(capsys, *arguments)
    claims = document["claims"]
    known = ["--measurement", claims["measurement"], "--report-data", claims["report_data"]]
    code, document = result(capsys, *arguments, *known)
    assert (code, document["level"]) == (ExitCode.OK, "trusted")
    code, document = result(capsys, *arguments, *known[:2], "--report-data", "00" * 63 + "01")
    assert (code, codes(document)) == (ExitCode.NEGATIVE, {"report-data-mismatch"})
    code, document = result(capsys, *arguments, "--measurement", "00" * 48, *known[2:])
    assert (code, codes(document)) == (ExitCode.NEGATIVE, {"measurement-unknown"})


def test_milan_is_opted_in_by_chip(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _genuine(vectors, "milan")
    code, document = result(capsys, *arguments)
    assert (code, codes(document)) == (ExitCode.NEGATIVE, {"snp-product"})
    chip = document["claims"]["chip_id"]
    code, document = result(capsys, *arguments, "--product", "milan", "--chip", chip, "--require", "authentic")
    assert (code, codes(document)) == (ExitCode.OK, set())
    code, _, error = call(capsys, *arguments, "--product", "milan")
    assert code == ExitCode.USAGE
    assert "snp-milan-allow-list" in error


@pytest.mark.parametrize(
    ("floor", "failed"),
    [
        pytest.param("turin:fmc=1,bootloader=1,tee=1,snp=4,microcode=81", set(), id="met"),
        pytest.param("turin:snp=5", {"snp-reported-tcb-low", "snp-committed-tcb-low"}, id="not-met"),
    ],
)
def test_tcb_floors(vectors: Path, capsys: pytest.CaptureFixture[str], floor: str, failed: set[str]) -> None:
    _, document = result(capsys, *_genuine(vectors, "turin"), "--min-tcb", floor)
    assert codes(document) == failed


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["snp"], id="snp-nothing"),
        pytest.param(["tdx"], id="tdx-nothing"),
        pytest.param(["snp", "--evidence", "a", "--report", "b"], id="both"),
        pytest.param(["snp", "--report", "/nonexistent"], id="absent-file"),
        pytest.param(["snp", "--report", "x", "--min-tcb", "rome:snp=1"], id="floor-product"),
        pytest.param(["snp", "--report", "x", "--min-tcb", "genoa:fmc=1"], id="floor-component"),
        pytest.param(["snp", "--report", "x", "--report-data", "zz"], id="not-hex"),
        pytest.param(["snp", "--report", "x", "--report-data", "00" * 65], id="too-long"),
        pytest.param(["tdx", "--quote", "x", "--at", "yesterday"], id="time"),
        pytest.param(["evidence", "--body", "x", "--nonce", "n", "--expect", "gpus=many"], id="expect"),
        pytest.param(["evidence", "--body", "/nonexistent", "--nonce", "n", "--expect", "gpus=1"], id="absent-body"),
    ],
)
def test_bad_command_lines(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    code, out, error = call(capsys, *arguments)
    assert code == ExitCode.USAGE
    assert "Traceback" not in out + error


def test_malformed_evidence_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.bin"
    report.write_bytes(bytes(100))
    code, document = result(capsys, "snp", "--report", report, *AT)
    assert (code, document["level"], codes(document)) == (ExitCode.USAGE, "none", {"snp-length"})


def test_missing_chain_is_unavailable(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = result(capsys, *_genuine(vectors, "genoa")[:5], *AT)
    assert (code, codes(document)) == (ExitCode.UNAVAILABLE, {"snp-authority-missing"})


def test_forged_snp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chip = SimulatedChip()
    evidence = tmp_path / "evidence.json"
    evidence.write_text(chip.evidence_json())
    arguments = ["snp", "--evidence", evidence, *AT]
    code, document = result(capsys, *arguments)
    assert (code, codes(document)) == (ExitCode.UNAVAILABLE, {"snp-authority-missing"})
    known = ["--measurement", chip.fields().measurement.hex(), "--report-data", "00"]
    code, document = result(capsys, *arguments, *SIMULATED, *known)
    assert (code, document["level"]) == (ExitCode.OK, "trusted")
    _, _, error = call(capsys, *arguments, *SIMULATED)
    assert "WARNING: simulated roots" in error


@pytest.mark.parametrize(
    ("at", "code", "level"),
    [("2025-06-19T11:32:00Z", ExitCode.OK, "authentic"), ("2026-11-21T00:00:00Z", ExitCode.NEGATIVE, "none")],
)
def test_genuine_tdx(vectors: Path, capsys: pytest.CaptureFixture[str], at: str, code: int, level: str) -> None:
    folder = vectors / "tdx"
    got, document = result(
        capsys, "tdx", "--quote", folder / "dcap_tdx_quote",
        "--collateral-file", folder / "dcap_tdx_quote_collateral.json", "--at", at, "--require", "authentic",
    )  # fmt: skip
    assert (got, document["level"]) == (code, level)


def test_forged_tdx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form = QuoteForm()
    evidence, quote = tmp_path / "evidence.json", tmp_path / "quote.dat"
    evidence.write_text(form.evidence_json())
    quote.write_bytes(form.sign())
    known = ["--measurement", form.mr_td.hex(), "--report-data", "00"]
    for source in (["--evidence", evidence], ["--quote", quote]):
        code, document = result(capsys, "tdx", *source, *AT, *SIMULATED, *known)
        assert (code, document["level"]) == (ExitCode.OK, "trusted")


def _body(guest: Guest) -> str:
    evidence = guest.evidence()
    body: dict[str, Any] = {
        "runtime-data": {"nonce": evidence.nonce, "tee-pubkey": dict(evidence.tee_jwk)},
        "tee-evidence": {"primary_evidence": evidence.primary, "additional_evidence": evidence.additional},
    }
    if evidence.init_data is not None:
        body["init-data"] = {"format": "toml", "body": evidence.init_data}
    return json.dumps(body)


@pytest.mark.parametrize("profile", list(BindingProfile))
def test_composite(tmp_path: Path, capsys: pytest.CaptureFixture[str], profile: BindingProfile) -> None:
    guest = Guest(gpus=2, init_data=INIT_DATA, profile=profile)
    body = tmp_path / "attest.json"
    body.write_text(_body(guest))
    measurement = guest.chip.fields().measurement.hex()
    arguments: list[object] = [
        "evidence", "--body", body, "--nonce", NONCE, "--binding-profile", profile.value, *AT,
        "--unsafe-trust-simulated-roots", "--measurement", measurement,
    ]  # fmt: skip
    code, document = result(capsys, *arguments, "--expect", "gpus=2")
    assert (code, document["level"], codes(document)) == (ExitCode.OK, "trusted", set())
    binding = document["claims"]["binding"]
    assert (binding["colocation"], binding["guest_measured"]) == ("not-proven", True)
    unmeasured = result(capsys, *arguments[:-2], "--expect", "gpus=2")[1]
    assert unmeasured["claims"]["binding"]["guest_measured"] is False
    assert [device["level"] for device in document["devices"]] == ["trusted", "trusted"]
    code, document = result(capsys, *arguments, "--expect", "gpus=8,switches=4")
    assert (code, codes(document)) == (ExitCode.NEGATIVE, {"gpu-count-wrong", "switch-count-wrong"})
    code, document = result(capsys, *arguments[:4], OTHER_NONCE, *arguments[5:], "--expect", "gpus=2")
    assert (code, codes(document)) == (ExitCode.NEGATIVE, {"session-nonce"})


def test_composite_needs_real_roots_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = tmp_path / "attest.json"
    body.write_text(_body(Guest()))
    code, document = result(capsys, "evidence", "--body", body, "--nonce", NONCE, "--expect", "gpus=1", *AT)
    assert (code, document["level"]) == (ExitCode.UNAVAILABLE, "none")


def test_broken_body(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = tmp_path / "attest.json"
    for text in ("{", "{}", "[]"):
        body.write_text(text)
        code, document = result(capsys, "evidence", "--body", body, "--nonce", NONCE, "--expect", "gpus=1", *AT)
        assert (code, codes(document)) == (ExitCode.USAGE, {"attest-body"})
