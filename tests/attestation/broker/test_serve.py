"""`kata-gpu-kbs serve` as a process: what it announces, how it ends, and when it does not start."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from attestation.broker.roles import Role
from attestation.cli.main import cli, run
from attestation.ops.administer import add_user, issue_admin_token
from tests.attestation.broker.broker import ADMIN, GPU_POLICY, NOW, ready_broker
from tests.conformance.rust_client import RustClient, TeeKey, Wire
from tests.conformance.transcripts import snp_attester

FROZEN = ["--unsafe-frozen-time", "2026-11-21T00:00:00Z"]


@contextmanager
def process(store: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The command, its guests' and administrators' addresses."""
    argv = [sys.executable, "-c", "from attestation.cli.main import main; main()", "serve", "--store", str(store)]
    child = subprocess.Popen(
        [*argv, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        lines = [child.stdout.readline().strip() for _ in range(2)]
        yield child, lines[0].removeprefix("guests: "), lines[1].removeprefix("administrators: ")
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()


def test_key_over_http_then_graceful_end(tmp_path: Path) -> None:
    """A GPU key reaches a simulated guest; SIGTERM ends the process with 0; the log names the release."""
    with ready_broker(tmp_path, simulated=True) as made:
        add_user(made.world, ADMIN, "root", Role.ADMIN, (), now=NOW)
        token = issue_admin_token(made.world, "root", now=NOW)
    with process(tmp_path / "store", "--unsafe-trust-simulated-roots", *FROZEN) as (child, url, admin):
        client = RustClient(wire=Wire(url), tee="snp", attester=snp_attester, key=TeeKey.make())
        assert client.get_resource("resource/default/model/llama") == b"k" * 32
        client.wire.close()
        wire = Wire(admin)
        answer = wire.call("GET", "/api/v1/keys", headers={"authorization": f"Bearer {token}"}).json()
        assert answer["keys"][0]["releases"] == 1
        wire.close()
        child.send_signal(signal.SIGTERM)
        _, log = child.communicate(timeout=30)
        assert child.returncode == 0
    assert "WARNING: forgeable evidence is accepted" in log
    assert "release.granted" in log
    assert "default/model/llama" in log


@pytest.mark.parametrize(
    "option", ["--unsafe-trust-simulated-roots=builtin", "--unsafe-sample-tee"], ids=["simulated-roots", "sample-tee"]
)
def test_refuses_forgeable_evidence_beside_real_keys(
    tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Start-up is refused, with the reason."""
    policy = tmp_path / "gpu.toml"
    policy.write_text(GPU_POLICY)
    store = ["--store", str(tmp_path / "store")]
    assert run(cli, ["key", "add", "default/model/real", "--policy", str(policy), *store]) == 0
    assert run(cli, ["serve", option, *FROZEN, *store]) == 2
    assert "simulated-with-real-keys" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        pytest.param(["--listen", "nowhere"], "listen-address", id="address"),
        pytest.param(["--listen", "127.0.0.1:99999"], "listen-address", id="port"),
        pytest.param(["--unsafe-frozen-time", "yesterday"], "bad-time", id="time"),
        pytest.param(["--unsafe-trust-simulated-roots", "/no/such"], "simulated-roots", id="roots"),
        pytest.param(["--admin-issuer", "/no/such.toml"], "admin-issuer", id="issuer"),
        pytest.param(["--tls-cert", "/dev/null"], "tls-cert", id="tls-device"),
    ],
)
def test_bad_options(tmp_path: Path, argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and one line."""
    assert run(cli, ["serve", "--store", str(tmp_path / "store"), *argv]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


def test_identity_provider_file(tmp_path: Path) -> None:
    """Issuer, audience, key and role map of another identity provider."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from attestation.cli.serve import _issuer

    key = Ed25519PrivateKey.generate().public_key()
    (tmp_path / "idp.pem").write_bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    file = tmp_path / "idp.toml"
    file.write_text(
        'issuer = "issuer"\naudience = "audience"\nalgorithm = "ed25519"\npublic_key = "idp.pem"\n'
        '[roles]\ntester = "admin"\n'
    )
    issuer = _issuer(file)
    assert (issuer.issuer, issuer.audience, issuer.roles) == ("issuer", "audience", {"tester": Role.ADMIN})
