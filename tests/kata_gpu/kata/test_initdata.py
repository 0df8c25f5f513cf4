"""Init-data: digests equal independently computed ones, wrong documents are refused each for its own reason."""

import base64
import gzip
import hashlib
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kata_gpu.cli.main import cli, run
from kata_gpu.core.kata.initdata import (
    MAX_TOML_BYTES,
    Algorithm,
    Contents,
    InitData,
    appraise_initdata,
    build_initdata,
    parse_any,
    parse_initdata,
)
from kata_gpu.errors import Malformed

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
POLICY = "package agent_policy\ndefault ExecProcessRequest := false\n"
GOOD = Contents(kbs_url="https://kbs.example:8080", kbs_cert_pem=PEM, policy_rego=POLICY, extra={})


def build(algorithm: Algorithm = Algorithm.SHA256) -> InitData:
    return build_initdata(GOOD, algorithm)


@pytest.mark.parametrize("algorithm", [*Algorithm])
def test_digest_and_fields_follow_the_specification(algorithm: Algorithm, tmp_path: Path) -> None:
    document = build(algorithm)
    path = tmp_path / "i.toml"
    path.write_bytes(document.raw)
    # coreutils is the independent computation
    independent = subprocess.run(
        [f"{algorithm}sum", str(path)], capture_output=True, check=True, text=True
    ).stdout.split()[0]
    assert document.digest.hex() == independent
    padded = bytes.fromhex(independent) + bytes(64)
    assert document.host_data == padded[:32]
    assert document.mr_config_id == padded[:48]


def test_gzip_header_does_not_matter() -> None:
    document = build()
    for mtime in (0, 1, 2**31):
        text = base64.b64encode(gzip.compress(document.raw, mtime=mtime))
        assert parse_any(text, where="t").digest == document.digest
    assert parse_any(document.annotation.encode(), where="t") == document


def test_known_answer() -> None:
    raw = b'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"policy.rego" = "package p"\n'
    document = parse_initdata(raw, where="t")
    assert document.digest == hashlib.sha384(raw).digest()
    assert document.mr_config_id == document.digest
    assert document.host_data == document.digest[:32]


def test_good_document_has_no_problem() -> None:
    assert appraise_initdata(build()) == ()


def _replace(old: str, new: str) -> InitData:
    raw = build().raw
    assert old.encode() in raw
    return parse_initdata(raw.replace(old.encode(), new.encode()), where="t")


@pytest.mark.parametrize(("old", "new", "code"), [
    pytest.param("[kbc]", "[kbx]", "missing-file", id="no-kbc"),
    pytest.param("[token_configs.kbs]", "[token_configs.x]", "missing-file", id="no-token-config"),
    pytest.param("https://kbs.example", "ftp://kbs.example", "bad-url", id="bad-url"),
    pytest.param("https://kbs.example", "http://kbs.example", "plain-http", id="http"),
    pytest.param("kbs_cert =", "cert =", "cert-key", id="cert-key"),
    pytest.param("default ExecProcessRequest := false", "default ExecProcessRequest := true", "permissive-policy", id="exec"),
    pytest.param("default ExecProcessRequest := false", "default SetPolicyRequest = true", "permissive-policy", id="set-policy"),
    pytest.param("default ExecProcessRequest := false", "default AllowRequestsFailingPolicy := true", "permissive-policy",
                 id="allow-failing"),
    pytest.param("default ExecProcessRequest := false", "ExecProcessRequest := true", "permissive-policy", id="fact"),
    pytest.param("default ExecProcessRequest := false", "ExecProcessRequest if { true }", "permissive-policy", id="body"),
    pytest.param("default ExecProcessRequest := false", "ExecProcessRequest { true }", "permissive-policy", id="old-body"),
    pytest.param("default ExecProcessRequest := false", "ReadStreamRequest if true", "permissive-policy", id="if-true"),
    pytest.param("default ExecProcessRequest := false", "WriteStreamRequest", "permissive-policy", id="bare"),
    pytest.param('"policy.rego"', '"other.rego"', "no-policy", id="no-policy"),
    pytest.param("package agent_policy", "package policy", "policy-package", id="other-package"),
    pytest.param("package agent_policy", "# package agent_policy", "policy-package", id="no-package"),
])  # fmt: skip
def test_problems_are_named(old: str, new: str, code: str) -> None:
    assert code in {p.code for p in appraise_initdata(_replace(old, new))}


RULES = "package agent_policy\ndefault ExecProcessRequest := false\n"
# What genpolicy writes where nobody changed its settings.
DEFAULTS: dict[str, object] = {
    "CloseStdinRequest": False, "ReadStreamRequest": False, "UpdateEphemeralMountsRequest": False,
    "WriteStreamRequest": False, "CopyFileRequest": ["$(sfprefix)"],
    "ExecProcessRequest": {"allowed_commands": [], "regex": []},
    "UpdateInterfaceRequest": {"allow_raw_flags": 128, "forbidden_names": ["lo"]},
}  # fmt: skip


def _problems(policy: str) -> list[str]:
    contents = Contents(kbs_url="https://kbs.example:8080", kbs_cert_pem=PEM, policy_rego=policy, extra={})
    return [f"{p.code} {p.what}" for p in appraise_initdata(build_initdata(contents, Algorithm.SHA256))]


@pytest.mark.parametrize(("change", "named"), [
    pytest.param({}, None, id="genpolicys-own"),
    pytest.param({"ReadStreamRequest": True}, "ReadStreamRequest", id="read-stream"),
    pytest.param({"WriteStreamRequest": True}, "WriteStreamRequest", id="write-stream"),
    pytest.param({"GetDiagnosticDataRequest": True}, "GetDiagnosticDataRequest", id="a-request-of-tomorrow"),
    pytest.param({"ExecProcessRequest": True}, "ExecProcessRequest", id="exec-true"),
    pytest.param({"ExecProcessRequest": {"allowed_commands": [["sh"]]}}, "ExecProcessRequest", id="exec-command"),
    pytest.param({"ExecProcessRequest": {"regex": [".*"]}}, "ExecProcessRequest", id="exec-expression"),
    pytest.param({"ExecProcessRequest": {"commands": ["sh"]}}, "ExecProcessRequest", id="exec-old-name"),
    pytest.param({"ExecProcessRequest": ["sh"]}, "ExecProcessRequest", id="exec-other-shape"),
    pytest.param({"CopyFileRequest": ["$(sfprefix)", ".*"]}, "CopyFileRequest", id="copy-anywhere"),
    pytest.param({"CopyFileRequest": [1]}, "CopyFileRequest", id="copy-other-shape"),
])  # fmt: skip
def test_requests_that_the_data_allows_are_named(change: dict[str, object], named: str | None) -> None:
    """The rules say `false`, and ask `request_defaults` before they do."""
    data = {"containers": [], "request_defaults": {**DEFAULTS, **change}}
    found = _problems(f"{RULES}policy_data := {json.dumps(data)}")
    assert found == ([f"permissive-policy policy.rego: policy_data.request_defaults allows {named}"] if named else [])


@pytest.mark.parametrize("text", [
    pytest.param('policy_data := {"containers": [], "request_defaults": []}', id="no-table"),
    pytest.param('policy_data := {"containers": [], "request_defaults": {"A": true, "A": false}}', id="key-twice"),
    pytest.param('policy_data := {"containers": []}\nextra := 1', id="rules-behind-it"),
    pytest.param('policy_data = {"containers": [], "request_defaults": {"A": true}}', id="another-assignment"),
    pytest.param('policy_data:={"containers": [], "request_defaults": {"A": true}}', id="without-blanks"),
])  # fmt: skip
def test_data_that_cannot_be_read_is_not_taken_for_harmless(text: str) -> None:
    assert [found.split()[0] for found in _problems(RULES + text)] == ["permissive-policy"]


def test_unpinned_certificate_and_two_brokers_are_named() -> None:
    bare = build_initdata(
        Contents(kbs_url="https://a", kbs_cert_pem="", policy_rego=POLICY, extra={}), Algorithm.SHA256
    )
    assert {p.code for p in appraise_initdata(bare)} == {"no-pin"}
    raw = build().raw.replace(b"https://kbs.example", b"https://other.example", 1)
    assert {p.code for p in appraise_initdata(parse_initdata(raw, where="t"))} == {"two-brokers"}


@pytest.mark.parametrize(("raw", "code"), [
    pytest.param(b"\xff", "initdata-toml", id="not-utf8"),
    pytest.param(b"a =", "initdata-toml", id="syntax"),
    pytest.param(b'algorithm = "sha256"', "initdata-version", id="no-version"),
    pytest.param(b'version = "0.2.0"\nalgorithm = "sha256"', "initdata-version", id="other-version"),
    pytest.param(b'version = "0.1.0"\nalgorithm = "sha-256"', "initdata-algorithm", id="iana-spelling"),
    pytest.param(b'version = "0.1.0"\nalgorithm = "sm3"', "initdata-algorithm", id="sm3"),
    pytest.param(b'version = "0.1.0"\nalgorithm = ["sha256"]', "initdata-algorithm", id="list"),
    pytest.param(b'version = "0.1.0"\nalgorithm = "sha256"', "initdata-data", id="no-data"),
    pytest.param(b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\na = 1', "initdata-data", id="number"),
    pytest.param(b"#" * (MAX_TOML_BYTES + 1), "initdata-size", id="large"),
    pytest.param(b"H4sIxxxx", "initdata-annotation", id="not-gzip"),
    pytest.param(base64.b64encode(gzip.compress(bytes(MAX_TOML_BYTES + 5), mtime=0)), "initdata-size", id="bomb"),
    pytest.param(base64.b64encode(gzip.compress(b"x", mtime=0)[:-3]), "initdata-annotation", id="cut"),
    pytest.param(base64.b64encode(gzip.compress(b"x", mtime=0) + b"y"), "initdata-annotation", id="followed"),
])  # fmt: skip
def test_refused(raw: bytes, code: str) -> None:
    with pytest.raises(Malformed) as caught:
        parse_any(raw, where="t")
    assert caught.value.code == code


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda b: b"H4sI" + base64.b64encode(b)))
def test_any_bytes_give_a_document_or_malformed(raw: bytes) -> None:
    try:
        assert isinstance(parse_any(raw, where="t"), InitData)
    except Malformed as error:
        assert error.code.startswith("initdata-")


def test_cli_builds_verifies_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kbs.pem").write_text(PEM)
    (tmp_path / "p.rego").write_text(POLICY)
    out = str(tmp_path / "init.toml")
    args = [
        "--kbs-url",
        "https://kbs:8080",
        "--kbs-cert",
        str(tmp_path / "kbs.pem"),
        "--agent-policy",
        str(tmp_path / "p.rego"),
    ]
    assert run(cli, ["initdata", "build", "--tee", "snp", *args, "-o", out]) == 0
    first = (tmp_path / "init.toml").read_bytes()
    assert run(cli, ["initdata", "build", "--tee", "snp", *args, "-o", out]) == 0
    assert (tmp_path / "init.toml").read_bytes() == first
    capsys.readouterr()
    assert run(cli, ["initdata", "digest", out, "--output", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["digest"] == hashlib.sha256(first).hexdigest() == facts["snp_host_data"]
    assert run(cli, ["initdata", "verify", out, "--host-data", facts["snp_host_data"]]) == 0
    assert run(cli, ["initdata", "verify", out, "--host-data", "00" * 32]) == 1
    assert "not the document that the VM was started with" in capsys.readouterr().out
    assert run(cli, ["initdata", "inspect", out]) == 0
    assert "package agent_policy" in capsys.readouterr().out
    assert run(cli, ["initdata", "digest", str(tmp_path / "absent")]) == 2
    assert run(cli, ["initdata", "build", *args]) == 2
