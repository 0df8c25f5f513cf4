"""The command line: fetch against a loopback service, build, import elsewhere, show, retire; explain; NRAS keys."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
import requests
from cryptography.x509 import OCSPNonce, ocsp

from attestation.appraise.eat import EatKey
from attestation.appraise.explain import parse_result, render_explanation
from attestation.cli.main import cli, run
from attestation.errors import ExitCode, Malformed
from attestation.formats.collateral import Document, Kind
from attestation.ops.collect import Outcome, Step, Wanted, collect
from attestation.simulate.nv_products import PRODUCTS
from attestation.simulate.nvidia import NvidiaForge
from attestation.simulate.pki import mint
from attestation.sources.collateral import crl_id
from attestation.sources.collateral_store import CollateralStore
from attestation.sources.expiry import expiry_of
from attestation.sources.http import Answer, Fetcher
from attestation.sources.nv_ocsp import Pair, ocsp_request
from attestation.sources.nv_rim import rim_url
from attestation.values import Architecture
from tests.attestation.collateral.conftest import DAY, NOW, Pki
from tests.attestation.collateral.test_bundle import document
from tests.attestation.collateral.test_http import rim_answer
from tests.attestation.collateral.test_nras_service import genuine_switch
from tests.attestation.collateral.test_nras_token import ISSUER, KEY, NONCE, bundle
from tests.attestation.forged_revocation import Signer, forge_crl, forge_ocsp

FORGE = NvidiaForge()
LS10 = "NV_SWITCH_BIOS_5612_0002_890_9610550001"


class FakeNvidia(Fetcher):
    """RIM service and OCSP responder of the forge, without a socket."""

    def __init__(self, broken: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.broken, self.asked = broken, 0

    def get(self, url: str, *, max_bytes: int) -> Answer:
        rim_id = url.rpartition("/")[2]
        content = FORGE.rims()[rim_id]
        if rim_id in self.broken:
            content = content.replace(b"GH100", b"GH101", 1)
        body = rim_answer(id=rim_id, rim=base64.b64encode(content).decode(), sha256=sha256(content).hexdigest())
        return Answer(url=url, body=body, headers={})

    def post(self, url: str, body: bytes, *, content_type: str, max_bytes: int) -> Answer:
        request = ocsp.load_der_ocsp_request(body)
        nonce = request.extensions.get_extension_for_class(OCSPNonce).value.nonce
        self.asked += 1
        for arch in PRODUCTS:
            for specs in (FORGE.rim_specs(arch), FORGE.device_specs(arch, 0)):
                chain = mint(specs)
                for spec, certificate, issuer in zip(specs[1:], chain[:-1], chain[1:], strict=True):
                    asked = ocsp.load_der_ocsp_request(ocsp_request(Pair(certificate, issuer), None))
                    if (asked.serial_number, asked.issuer_key_hash) == (request.serial_number, request.issuer_key_hash):
                        der = forge_ocsp(
                            certificate,
                            issuer,
                            Signer(issuer, spec.key),
                            this_update=NOW,
                            next_update=NOW + DAY,
                            nonce=nonce,
                        )
                        return Answer(url=url, body=der, headers={})
        raise AssertionError("asked about a certificate that the forge did not make")


def gather(store: CollateralStore, fetcher: Fetcher, wanted: Wanted) -> tuple[list[Outcome], list[Step]]:
    begun: list[Step] = []
    heard: list[Outcome] = []
    outcomes = collect(
        store, fetcher, wanted, now=NOW, new_nonce=lambda: b"n" * 32, begin=begun.extend, done=heard.append
    )
    assert outcomes == heard
    return outcomes, begun


def test_collect(tmp_path: Path) -> None:
    """Documents first, then answers about their signers and about the CAs of a device; one failure stops nothing."""
    store, fetcher = CollateralStore(tmp_path), FakeNvidia(broken=frozenset({PRODUCTS[Architecture.HOPPER].driver_rim}))
    hopper = PRODUCTS[Architecture.HOPPER]
    chain = FORGE.device(nonce=b"n" * 32).chain
    wanted = Wanted(rim_ids=(hopper.driver_rim, hopper.vbios_rim), chains=(chain,), rim_roots=FORGE.trust.rim_roots)
    outcomes, begun = gather(store, fetcher, wanted)
    assert [s.name for s in begun[:2]] == [f"reference document {i}" for i in wanted.rim_ids]
    failed = [(o.step, o.error.code) for o in outcomes if o.error]
    assert failed == [(f"reference document {hopper.driver_rim}", "rim-digest")]
    collateral = store.load()
    assert collateral.ids(Kind.RIM) == (hopper.vbios_rim,)
    assert len(collateral.ids(Kind.OCSP)) == fetcher.asked == 6, "3 signers, 3 device CAs, no leaf, no root"
    again, _ = gather(
        store, FakeNvidia(), Wanted(rim_ids=(hopper.vbios_rim,), revocation=False, rim_roots=FORGE.trust.rim_roots)
    )
    assert [(o.new, o.error) for o in again] == [(0, None)]


def call(*argv: str) -> int:
    return run(cli, list(argv))


@pytest.fixture
def store(tmp_path: Path, vectors: Path) -> Path:
    rims = tmp_path / "rims"
    rims.mkdir()
    source = vectors / "nvidia" / "rim" / f"switchVBIOSRim_{LS10}.xml"
    (rims / f"{LS10}.xml").write_bytes(source.read_bytes())
    path = tmp_path / "store"
    assert call("collateral", "import", "--store", str(path), "--rims", str(rims)) == ExitCode.OK
    return path


def test_build_import_show_retire(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, public, out = (str(tmp_path / name) for name in ("bundle.key", "bundle.pub", "nov.kgpubundle"))
    assert call("collateral", "keygen", key, public) == ExitCode.OK
    issued = ("--issued-at", "2026-11-20T00:00:00Z")
    assert call("collateral", "build", "--store", str(store), "--key", key, *issued, out) == ExitCode.OK
    first = Path(out).read_bytes()
    assert call("collateral", "build", "--store", str(store), "--key", key, *issued, out) == ExitCode.OK
    assert Path(out).read_bytes() == first, "reproducible"

    site = str(tmp_path / "site")
    assert call("collateral", "import", "--store", site, out) == ExitCode.USAGE, "no key was pinned"
    assert "bundle-key" in capsys.readouterr().err
    assert call("collateral", "import", "--store", site, "--key", public, out) == ExitCode.OK
    capsys.readouterr()
    assert (
        call("collateral", "show", "--store", site, "--output", "json", "--at", "2026-11-21T00:00:00Z") == ExitCode.OK
    )
    shown = json.loads(capsys.readouterr().out)
    assert shown["bundle"]["age-seconds"] == 86400
    (row,) = shown["documents"]
    assert (row["id"], row["ends"][:10], row["expired"]) == (LS10, "2027-11-02", False)
    assert call("collateral", "show", "--store", site, "--expiring", "30", "--at", "2027-10-20T00:00:00Z") == 1
    assert call("collateral", "show", "--store", site, "--expiring", "30", "--at", "2027-09-01T00:00:00Z") == 0
    assert call("collateral", "retire", "--store", site, "rim", LS10, row["sha256"][:8]) == ExitCode.OK
    assert CollateralStore(Path(site)).load().rims(LS10) == ()
    assert call("collateral", "activate", "--store", site, "rim", LS10, row["sha256"]) == ExitCode.OK
    assert len(CollateralStore(Path(site)).load().rims(LS10)) == 1
    assert call("collateral", "pin", "--store", site, "rim", LS10, "c0f2") == ExitCode.USAGE, "prefix too short"

    older = ("--issued-at", "2026-11-01T00:00:00Z")
    assert call("collateral", "build", "--store", str(store), "--key", key, *older, out) == ExitCode.OK
    capsys.readouterr()
    assert call("collateral", "import", "--store", site, "--key", public, out) == ExitCode.NEGATIVE
    assert "bundle-rollback" in capsys.readouterr().err
    assert call("collateral", "import", "--store", site, "--key", public, "--allow-rollback", out) == ExitCode.OK


def test_import_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("collateral", "import", "--store", str(tmp_path / "s")) == ExitCode.USAGE
    assert "nothing-to-import" in capsys.readouterr().err


def test_old_names_of_rim_files(nv_samples: Path, tmp_path: Path) -> None:
    """Files from before NVIDIA's service are stored under the ids that reports ask for."""
    assert call("collateral", "import", "--store", str(tmp_path), "--rims", str(nv_samples)) == ExitCode.OK
    ids = CollateralStore(tmp_path).load().ids(Kind.RIM)
    assert "NV_GPU_VBIOS_1010_0200_882_96005E0001" in ids
    assert len(ids) >= 20


def test_show_survives_what_it_cannot_read(tmp_path: Path, pki: Pki, capsys: pytest.CaptureFixture[str]) -> None:
    store = CollateralStore(tmp_path)
    store.add(document())
    crl = forge_crl(pki.ca, {}, last_update=NOW - DAY, next_update=NOW + DAY)
    store.add(document(crl_id(pki.ca.certificate.subject), crl, kind=Kind.CRL))
    assert call("collateral", "show", "--store", str(tmp_path), "--at", "2026-12-01T00:00:00Z") == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "no bundle imported"
    assert any("2026-11-22!" in line for line in lines)
    assert lines[-1] == "2 documents, 1 expired (marked !)"


def test_expiry_of_every_kind(vectors: Path, pki: Pki) -> None:
    def end(kind: Kind, content: bytes) -> str:
        found = expiry_of(Document(kind=kind, id="x", content=content, first_seen=NOW, source=""))
        return found.isoformat()[:10] if found else "-"

    tdx = (vectors / "tdx" / "dcap_tdx_quote_collateral.json").read_bytes()
    answer = forge_ocsp(
        pki.leaf.certificate, pki.ca.certificate, pki.ca, this_update=NOW, next_update=NOW + timedelta(days=2)
    )
    assert end(Kind.TDX, tdx) == "2025-07-19"
    assert end(Kind.OCSP, answer) == "2026-11-23"
    assert end(Kind.VCEK, (vectors / "snp" / "test-vcek.der").read_bytes())[:2] == "20"
    assert end(Kind.AMD_CA, (vectors / "snp" / "genoa_ask_ark_asvk.pem").read_bytes()) == "2047-01-26"
    with pytest.raises(Malformed):
        end(Kind.OCSP, b"rubbish")


def test_bad_command_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.bin"
    report.write_bytes(b"short")
    assert call("collateral", "fetch", "--store", str(tmp_path / "s"), "--snp-report", str(report)) == ExitCode.USAGE
    assert call("collateral", "fetch", "--store", str(tmp_path / "s"), "--rim-service", "ftp://x") == ExitCode.USAGE
    assert call("collateral", "show", "--store", str(tmp_path / "absent")) == ExitCode.USAGE
    assert "Traceback" not in capsys.readouterr().err
    assert rim_url("x").startswith("https://")


def test_help_of_every_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    commands = ["fetch", "build", "import", "show", "retire", "pin", "activate", "keygen"]
    for argv in [["collateral", c] for c in commands] + [["explain"], ["nras", "serve"], ["nras", "keygen"]]:
        assert call(*argv, "--help") == ExitCode.OK
        assert "Example" in capsys.readouterr().out


RESULT = {
    "level": "none",
    "required": "trusted",
    "findings": [
        {"check": "device-chain", "result": "pass", "expected": "", "got": "5 certificates", "subject": "A"},
        {"check": "device-chain", "result": "pass", "expected": "", "got": "5 certificates", "subject": "B"},
        {"check": "a-new-check", "result": "pass", "expected": "", "got": "", "subject": "A"},
        {
            "check": "vbios-rim", "result": "fail", "code": "measurements-differ", "expected": "all match",
            "got": "11 of 12", "hint": "indices 9 differ", "subject": "A",
        },
        {"check": "nonce", "result": "skipped", "code": "nonce-not-given", "expected": "a nonce", "got": "00"},
        {"check": "chip-id", "result": "skipped", "expected": "unchecked: any genuine device", "got": "A"},
    ],
}  # fmt: skip


def test_explanation() -> None:
    text = render_explanation(parse_result(json.dumps(RESULT).encode()))
    proven, refuted = text.index("What was proven"), text.index("What was refuted")
    open_, todo = text.index("What was not proven"), text.index("What to do")
    assert proven < refuted < open_ < todo
    assert "Level none (required: trusted): 3 checks passed, 1 failed, 2 not judged." in text
    assert "lead to the pinned root (2 times)" in text[proven:refuted]
    assert "a-new-check" in text[proven:refuted], "unknown checks are shown as they are"
    assert "vbios-rim [measurements-differ]: wanted all match, found 11 of 12 - A" in text[refuted:open_]
    assert "chip-id: not judged, any genuine device, found A" in text[open_:todo]
    assert "that CPU and GPU are in one machine" in text[open_:todo]
    assert "indices 9 differ" in text[todo:]
    assert "verify again with --nonce" in text[todo:]


def test_control_characters_stay_out_of_terminals() -> None:
    hostile = {
        "level": "\x1b[2J",
        "findings": [{"check": "x", "result": "fail", "code": "y", "got": "\x1b]0;evil\x07"}],
    }
    text = render_explanation(parse_result(json.dumps(hostile).encode()))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "evil" in text


def test_explain_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(RESULT))
    assert call("explain", str(path), "--output", "json") == ExitCode.OK
    page = json.loads(capsys.readouterr().out)
    assert (page["level"], len(page["refuted"])) == ("none", 1)
    for bad in ("[]", "{}", '{"findings":[]}', '{"findings":[{"check":"x","result":"maybe"}]}', '{"findings":[7]}'):
        path.write_text(bad)
        assert call("explain", str(path)) == ExitCode.USAGE
    assert "Traceback" not in capsys.readouterr().err


def test_explain_a_genuine_result(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: verify LS10, pipe the JSON into `explain -` in a process of its own."""
    nvidia = vectors / "nvidia"
    argv = ["--evidence", str(nvidia / "switch_evidence_ls10.json"), "--at", "2026-11-21T00:00:00Z"]
    argv += ["--nonce", "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"]
    argv += ["--rim", str(nvidia / "rim" / f"switchVBIOSRim_{LS10}.xml"), "--output", "json"]
    assert call("verify", "gpu", *argv) == ExitCode.OK
    script = "import sys; from attestation.cli.main import cli, run; sys.exit(run(cli, ['explain', '-']))"
    done = subprocess.run(
        [sys.executable, "-c", script], input=capsys.readouterr().out, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Level trusted (required: trusted)")
    assert "the switch firmware measures as NVIDIA published (31 of 31 measurements)" in done.stdout


def test_verify_nras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token, jwks = tmp_path / "answer.json", tmp_path / "jwks.json"
    token.write_bytes(bundle())
    jwks.write_text(json.dumps(KEY.jwks()))
    base = ["verify", "nras", str(token), "--issuer", ISSUER, "--at", "2026-11-21T00:00:00Z", "--output", "json"]
    right = ["--nonce", NONCE.hex()]
    assert call(*base, *right, "--jwks", str(jwks)) == ExitCode.OK
    shown = json.loads(capsys.readouterr().out)
    assert (shown["findings"][0]["result"], list(shown["claims"])) == ("pass", ["GPU-0"])
    store = [
        "collateral",
        "import",
        "--store",
        str(tmp_path / "s"),
        "--jwks",
        str(jwks),
        "--issuer-host",
        "nras.example",
    ]
    assert call(*store) == ExitCode.OK
    assert call(*base, *right, "--collateral", str(tmp_path / "s")) == ExitCode.OK
    capsys.readouterr()
    assert call(*base, "--nonce", "11" * 32, "--jwks", str(jwks)) == ExitCode.NEGATIVE
    refused = json.loads(capsys.readouterr().out)
    assert (refused["findings"][0]["code"], refused["claims"]) == ("jwt-nonce", {})
    assert parse_result(json.dumps(refused).encode()).findings[0].code == "jwt-nonce"
    assert call(*base, *right) == ExitCode.USAGE, "no keys"
    assert call(*base, *right, "--issuer", "https://other", "--collateral", str(tmp_path / "s")) == ExitCode.USAGE
    token.write_bytes(bundle(overall={"x-nvidia-overall-att-result": False}))
    assert call(*base, *right, "--jwks", str(jwks)) == ExitCode.NEGATIVE


def test_nras_keys(tmp_path: Path) -> None:
    key, certificate = tmp_path / "nras.key", tmp_path / "nras.pem"
    assert call("nras", "keygen", str(key), str(certificate)) == ExitCode.OK
    assert EatKey.of(key.read_bytes(), certificate.read_bytes()).kid.startswith("kata-gpu-eat-")
    assert key.stat().st_mode & 0o777 == 0o600
    assert call("nras", "keygen", str(key), str(certificate)) == ExitCode.USAGE


@pytest.fixture
def served(tmp_path: Path, store: Path) -> Iterator[str]:
    """`nras serve` as a process."""
    key, certificate = tmp_path / "nras.key", tmp_path / "nras.pem"
    assert call("nras", "keygen", str(key), str(certificate)) == ExitCode.OK
    argv = ["nras", "serve", "--collateral", str(store), "--key", str(key), "--certificate", str(certificate)]
    argv += ["--issuer", "https://nras.example", "--listen", "127.0.0.1:0", "--rim-revocation", "good-or-unknown"]
    argv += ["--at", "2026-11-21T00:00:00Z"]
    script = f"import sys; from attestation.cli.main import cli, run; sys.exit(run(cli, {argv!r}))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("nras: http://127.0.0.1:")
        yield line.removeprefix("nras: ").strip()
        process.terminate()


def test_nras_serve(served: str, vectors: Path) -> None:
    with requests.Session() as session:
        session.trust_env = False
        answer = session.post(f"{served}/v4/attest/switch", json=genuine_switch(vectors), timeout=10)
        assert (answer.status_code, answer.json()[0][0]) == (200, "JWT")
        assert session.get(f"{served}/v1/rim/ids", timeout=10).json()["ids"] == [LS10]
