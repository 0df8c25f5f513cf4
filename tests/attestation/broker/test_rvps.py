"""Reference values in upstream's formats: documents that NVIDIA signed, messages of administrators, the gRPC service."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from attestation.appraise.rvps import parse_message, parse_payload
from attestation.broker.roles import Role
from attestation.cli.main import cli, run
from attestation.crypto.b64 import b64
from attestation.errors import AttestationError, Misconfigured
from attestation.ops.administer import add_user, issue_admin_token
from attestation.service._pb import reference_pb2 as pb
from attestation.service._pb import reference_pb2_grpc
from attestation.service.rvps import serving
from attestation.verify.roots import NvTrust
from tests.attestation.broker.broker import ADMIN, NOW, Broker, broker
from tests.attestation.broker.issuer import Signer
from tests.attestation.tee.world import FORGE

SIMULATED = FORGE.trust.rim_roots
GENUINE = NvTrust.production().rim_roots


def message(kind: str, payload: bytes, version: str = "0.1.0") -> str:
    return json.dumps({"version": version, "type": kind, "payload": b64(payload)})


def forged_document() -> bytes:
    """Any reference document of the simulated authority."""
    return next(iter(FORGE.shelf()._documents.values()))[0]


def test_sample_messages() -> None:
    """Names to any JSON value, as `kbs-client set-sample-reference-value` sends them."""
    found = parse_message(message("sample", b'{"svn":["1"],"major_version":1}'), rim_roots=GENUINE, now=NOW)
    assert found.values == {"svn": ["1"], "major_version": 1}


def test_swid_documents_are_verified_first() -> None:
    """Upstream's names; one byte changed, or another root, and nothing is imported."""
    document = forged_document()
    found = parse_payload("swid", document, rim_roots=SIMULATED, now=NOW)
    assert found.values
    assert all(name.startswith("NVIDIA_Corporation.") and ".measurement_" in name for name in found.values)
    assert all(len(digest) == 96 for digests in found.values.values() for digest in digests)  # type: ignore[union-attr,arg-type]
    digest: str = next(iter(found.values.values()))[0]  # type: ignore[index,assignment]
    flipped = document.replace(digest.encode(), b"ab" * 48, 1)
    assert flipped != document
    for changed, roots in ((flipped, SIMULATED), (document, GENUINE)):
        with pytest.raises(AttestationError) as caught:
            parse_payload("swid", changed, rim_roots=roots, now=NOW)
        assert caught.value.code in {"rim-digest", "chain-root", "rim-signature", "chain-untrusted-root"}


def test_a_genuine_document(nv_samples: Path) -> None:
    """A VBIOS document of NVIDIA, with the names that upstream's extractor gives it."""
    document = next(iter(sorted(nv_samples.rglob("*.swidtag")))).read_bytes()
    for year in range(2022, 2027):
        try:
            found = parse_payload("swid", document, rim_roots=GENUINE, now=datetime(year, 6, 1, tzinfo=UTC))
        except AttestationError as exc:
            assert exc.code.startswith("rim-signer")
            continue
        assert "NVIDIA_Corporation.GPU.measurement_" in min(found.values)
        assert "signed by NVIDIA" in found.provenance
        return
    pytest.fail("the document's signer was never valid")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("nonsense", id="not-json"),
        pytest.param("[]", id="no-object"),
        pytest.param(message("sample", b"{}", "9"), id="version"),
        pytest.param(message("sample", b"{}"), id="empty"),
        pytest.param(message("sample", b"[]"), id="list"),
        pytest.param(message("corim", b"\xd9\x01\xf4"), id="corim"),
        pytest.param(message("swid", b"<xml/>"), id="no-document"),
        pytest.param(message("spdx", b"{}"), id="unknown"),
        pytest.param('{"version":"0.1.0","type":"sample","payload":"%"}', id="base64"),
        pytest.param('{"version":"0.1.0","type":"sample"}', id="no-payload"),
    ],
)
def test_messages_that_are_refused(text: str) -> None:
    """With an error of ours, whatever it is."""
    with pytest.raises(AttestationError):
        parse_message(text, rim_roots=GENUINE, now=NOW)


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path) as made:
        yield made


def client(channel: grpc.Channel) -> reference_pb2_grpc.ReferenceValueProviderServiceStub:
    return reference_pb2_grpc.ReferenceValueProviderServiceStub(channel)


def query(stub: Any, name: str) -> Any:
    reply = stub.QueryReferenceValue(pb.ReferenceValueQueryRequest(reference_value_id=name), timeout=10)
    return json.loads(reply.reference_value_results) if reply.HasField("reference_value_results") else None


def register(stub: Any, text: str, token: str = "") -> None:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    stub.RegisterReferenceValue(pb.ReferenceValueRegisterRequest(message=text), metadata=metadata, timeout=10)


def refused(stub: Any, text: str, token: str = "") -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        register(stub, text, token)
    code: grpc.StatusCode = caught.value.code()
    return code


def test_the_service_over_tcp(kbs: Broker) -> None:
    """Anybody asks; administrators register; provenance names them; what has expired is not answered."""
    add_user(kbs.world, ADMIN, "alice", Role.ADMIN, (), now=NOW)
    add_user(kbs.world, ADMIN, "olga", Role.AUDITOR, (), now=NOW)
    alice, olga = (issue_admin_token(kbs.world, name, now=NOW) for name in ("alice", "olga"))
    values = message("sample", b'{"svn":["1"],"flag":false}')
    with ExitStack() as stack:
        address = stack.enter_context(serving(kbs.world, "127.0.0.1:0", clock=kbs.clock, local=ADMIN))
        stub = client(stack.enter_context(grpc.insecure_channel(address)))
        assert query(stub, "svn") is None
        assert refused(stub, values) is grpc.StatusCode.UNAUTHENTICATED
        assert refused(stub, values, "nonsense") is grpc.StatusCode.UNAUTHENTICATED
        assert refused(stub, values, olga) is grpc.StatusCode.PERMISSION_DENIED
        assert refused(stub, message("corim", b"x"), alice) is grpc.StatusCode.INVALID_ARGUMENT
        assert refused(stub, message("swid", forged_document()), alice) is grpc.StatusCode.INVALID_ARGUMENT
        assert query(stub, "svn") is None
        register(stub, values, alice)
        assert query(stub, "svn") == ["1"]
        assert query(stub, "flag") is False
        kbs.clock.now = kbs.clock.now.replace(year=2028)
        assert query(stub, "svn") is None
    found = kbs.world.references.get("svn")
    assert found is not None
    assert found.provenance == "rvps-sample by alice"


def test_the_unix_socket_is_the_operators(kbs: Broker, tmp_path: Path) -> None:
    """No token: who can open it owns the broker's files. As upstream's tools work, unchanged."""
    socket = tmp_path / "rvps.sock"
    with serving(kbs.world, f"unix:{socket}", clock=kbs.clock, local=ADMIN) as address:
        assert socket.stat().st_mode & 0o777 == 0o600
        with grpc.insecure_channel(address) as channel:
            register(client(channel), message("sample", b'{"svn":["2"]}'))
            assert query(client(channel), "svn") == ["2"]


def test_off_loopback_needs_a_certificate(kbs: Broker) -> None:
    """Tokens do not travel in the clear."""
    for address in ("0.0.0.0:0", "localhost.example:0", "nonsense"):
        with pytest.raises(Misconfigured), serving(kbs.world, address, clock=kbs.clock, local=ADMIN):
            pass
    signer = Signer(name="localhost", key=ec.generate_private_key(ec.SECP256R1()))
    key = signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with serving(kbs.world, "0.0.0.0:0", clock=kbs.clock, local=ADMIN, tls=(signer.pem, key)) as address:
        assert address.startswith("0.0.0.0:")


def test_import_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same formats from files; what is refused says why."""
    store = ["--store", str(tmp_path / "store")]
    (tmp_path / "values.json").write_text('{"mr_td":["aa"]}')
    assert run(cli, ["reference", "import", str(tmp_path / "values.json"), *store]) == 0
    assert capsys.readouterr().out == "imported 1 names\n"
    (tmp_path / "rim.swidtag").write_bytes(forged_document())
    assert run(cli, ["reference", "import", "--format", "swid", str(tmp_path / "rim.swidtag"), *store]) == 1
    assert run(cli, ["reference", "import", "--format", "corim", str(tmp_path / "values.json"), *store]) == 2
    assert "unsigned" in capsys.readouterr().err


def test_the_stubs_are_what_the_protocol_file_gives(tmp_path: Path) -> None:
    """Generated code is checked in; this is its source."""
    import subprocess
    import sys

    root = Path(__file__).resolve().parents[3]
    argv = [sys.executable, "-m", "grpc_tools.protoc", "-Iattestation/service/_pb=attestation/service/proto"]
    argv += [f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}", "attestation/service/proto/reference.proto"]
    subprocess.run(argv, cwd=root, check=True)
    for made in (tmp_path / "attestation/service/_pb").iterdir():
        assert made.read_bytes() == (root / "attestation/service/_pb" / made.name).read_bytes()
