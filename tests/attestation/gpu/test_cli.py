"""`kata-gpu-kbs verify gpu`: levels, exit codes, every input form, and a clear answer to anything else."""

import base64
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from attestation.cli.main import cli, run
from attestation.formats.collateral import Document, Kind
from attestation.simulate.nv_products import PRODUCTS
from attestation.simulate.pki import mint, to_pem
from attestation.sources.collateral import ocsp_id
from attestation.sources.collateral_store import CollateralStore
from tests.attestation.forged_revocation import forge_chain_answers
from tests.attestation.gpu.support import FORGE, HOPPER, NONCE, NOW

AT = ["--at", NOW.isoformat()]
SWITCH_NONCE = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"


def verify(*arguments: object) -> int:
    return run(cli, ["verify", "gpu", *AT, *map(str, arguments)])


def as_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    code = verify(*arguments, "--output", "json")
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A forged GPU, its documents and the roots that signed all of it."""
    device = FORGE.device(nonce=NONCE)
    (tmp_path / "report.bin").write_bytes(device.report)
    (tmp_path / "chain.pem").write_bytes(device.chain)
    (tmp_path / "rims").mkdir()
    product = PRODUCTS[HOPPER]
    for rim_id in (product.driver_rim, product.vbios_rim):
        (tmp_path / "rims" / f"{rim_id}.xml").write_bytes(FORGE.shelf().rims(rim_id)[0])
    for name, pem in FORGE.roots.items():
        (tmp_path / name).write_bytes(pem)
    return tmp_path


def options(files: Path, *, rims: bool = True, nonce: bool = True) -> list[object]:
    return [
        "--report", files / "report.bin", "--chain", files / "chain.pem", "--unsafe-trust-simulated-roots", files,
        *(["--rim", files / "rims"] if rims else []), *(["--nonce", NONCE.hex()] if nonce else []),
    ]  # fmt: skip


def test_trusted(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(*options(files)) == 0
    shown = capsys.readouterr()
    assert "level: trusted (reaches the required `trusted`)" in shown.out
    assert "WARNING: simulated roots are trusted" in shown.err


def test_simulated_roots_must_be_named(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [a for a in options(files) if a not in ("--unsafe-trust-simulated-roots", files)]
    assert verify(*arguments) == 1
    assert "chain-root" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rims", "nonce", "code"), [(False, True, "rim-missing"), (True, False, "nonce-not-given")], ids=["rim", "nonce"]
)
def test_what_is_missing_is_named(
    files: Path, capsys: pytest.CaptureFixture[str], rims: bool, nonce: bool, code: str
) -> None:
    status, answer = as_json(capsys, *options(files, rims=rims, nonce=nonce))
    assert (status, answer["level"]) == (1, "authentic")
    assert code in {f.get("code") for f in answer["findings"]}
    assert verify(*options(files, rims=rims, nonce=nonce), "--require", "authentic") == 0


def test_json_shape(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = as_json(capsys, *options(files))
    assert (status, answer["level"], answer["claims"]["measres"]) == (0, "trusted", "success")
    assert {"check", "result", "expected", "got"} <= set(answer["findings"][0])
    assert answer["devices"][0]["chip_id"] == FORGE.chip_id(HOPPER, 0)
    assert answer["claims"]["ueid"].isdigit()


@pytest.mark.parametrize(
    "encode",
    [
        lambda raw: raw,
        lambda raw: raw.hex().encode(),
        lambda raw: raw.hex(" ").upper().encode() + b"\n",
        lambda raw: b"".join(b"\\x%02x" % byte for byte in raw),
        lambda raw: b", ".join(b"0x%02x" % byte for byte in raw),
        base64.b64encode,
        base64.encodebytes,
    ],
    ids=["raw", "hex", "spaced", "backslash-x", "0x", "base64", "base64-lines"],
)
def test_every_form_of_a_report(files: Path, encode: Any) -> None:
    (files / "report.bin").write_bytes(encode(FORGE.device(nonce=NONCE).report))
    assert verify(*options(files)) == 0


SHAPES = ("list", "single", "nras", "coco")


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_json(files: Path, shape: str) -> None:
    device = FORGE.device(nonce=NONCE)
    one = {
        "evidence": base64.b64encode(device.report).decode(),
        "certificate": base64.b64encode(device.chain).decode(),
    }
    document: object = {
        "list": [one | {"arch": "HOPPER", "nonce": "00"}],
        "single": one,
        "nras": {"nonce": "00", "arch": "HOPPER", "evidence_list": [one]},
        "coco": {"device_evidence_list": [one | {"arch": "hopper", "uuid": "GPU-1"}]},
    }[shape]
    (files / "evidence.json").write_text(json.dumps(document))
    arguments = [
        a for a in options(files) if a not in ("--report", "--chain", files / "report.bin", files / "chain.pem")
    ]
    assert verify("--evidence", files / "evidence.json", *arguments) == 0


def test_board(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = [
        {"evidence": base64.b64encode(d.report).decode(), "certificate": base64.b64encode(d.chain).decode()}
        for d in FORGE.board(nonce=NONCE)
    ]
    (files / "board.json").write_text(json.dumps(board))
    (files / "rims" / "switch.xml").write_bytes(FORGE.shelf().rims("NV_SWITCH_BIOS_5612_0002_890_9610730001")[0])
    rest = ["--rim", files / "rims", "--nonce", NONCE.hex(), "--unsafe-trust-simulated-roots", files]
    arguments = ["--evidence", files / "board.json", *rest]
    assert verify(*arguments, "--expect", "gpus=8,switches=4") == 0
    assert "144 links, every edge seen from both ends" in capsys.readouterr().out
    status, answer = as_json(capsys, *arguments, "--expect", "gpus=8,switches=5")
    assert (status, answer["level"], len(answer["devices"])) == (1, "none", 13)


def test_genuine_switch(vectors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of the README: LS10, 31 of 31, trusted."""
    nv = vectors / "nvidia"
    status, answer = as_json(
        capsys, "--report", nv / "switch/switchAttestationReport.txt", "--chain", nv / "switch/switchCertChain.txt",
        "--nonce", SWITCH_NONCE, "--rim", nv / "rim",
    )  # fmt: skip
    assert (status, answer["level"]) == (0, "trusted")
    assert "31 of 31 measurements" in {f["got"] for f in answer["findings"]}


def test_genuine_hopper(vectors: Path, nv_samples: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """535.86.09 with its VBIOS document: authentic in 2024 and today, for different reasons."""
    nv = vectors / "nvidia/gpu"
    arguments = ["--report", nv / "hopperAttestationReport.txt", "--chain", nv / "hopperCertChain.txt"]
    for at, code in (("2024-06-01T00:00:00Z", "rim-missing"), ("2026-11-21T00:00:00Z", "rim-signer-expired")):
        status, answer = as_json(capsys, *arguments, "--rim", nv_samples, "--at", at)
        assert (status, answer["level"]) == (1, "authentic")
        assert code in {f.get("code") for f in answer["findings"]}


def test_signer_expiry(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Strict by default; first-seen times and grace are named on the command line."""
    late = ["--at", "9998-01-01T00:00:00Z"]
    assert verify(*options(files), *late) == 0  # forged signers do not expire before 9999
    (tmp_path / "seen.json").write_text("{}")
    assert verify(*options(files), "--signer-expiry", "valid-at-first-seen") == 2
    assert verify(*options(files), "--signer-expiry", "grace") == 2
    assert verify(*options(files), "--grace-days", "3") == 2
    assert verify(*options(files), "--signer-expiry", "grace", "--grace-days", "3") == 0
    (tmp_path / "seen.json").write_text(json.dumps({"00" * 32: "2024-01-01T00:00:00Z"}))
    first_seen = ["--signer-expiry", "valid-at-first-seen", "--first-seen", tmp_path / "seen.json"]
    assert verify(*options(files), *first_seen) == 0


BAD: list[tuple[str, Sequence[object], int, str]] = [
    ("nothing", [], 2, "evidence-options"),
    ("report-only", ["--report", "x"], 2, "evidence-options"),
    ("no-such-file", ["--report", "/nonexistent", "--chain", "/nonexistent"], 2, "unreadable-file"),
    ("bad-nonce", ["--report", "x", "--chain", "y", "--nonce", "zz"], 2, "nonce-hex"),
    ("short-nonce", ["--report", "x", "--chain", "y", "--nonce", "00"], 2, "nonce-length"),
    ("bad-time", ["--report", "x", "--chain", "y", "--at", "yesterday"], 2, "bad-time"),
]


@pytest.mark.parametrize(("arguments", "code", "word"), [pytest.param(a, c, w, id=n) for n, a, c, w in BAD])
def test_usage(arguments: Sequence[object], code: int, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(*arguments) == code
    shown = capsys.readouterr()
    assert f"error[{word}]" in shown.err
    assert "Traceback" not in shown.err + shown.out


@pytest.mark.parametrize("expect", ["gpus", "gpus=x", "gpus=-1", "tpus=8", "gpus=0", "gpus=99", "gpus=\u0662"])
def test_bad_expectation(files: Path, expect: str) -> None:
    assert verify(*options(files), "--expect", expect) == 2


INPUTS = [
    ("empty", b"", 2),
    ("truncated", FORGE.device(nonce=NONCE).report[:-1], 2),
    ("extended", FORGE.device(nonce=NONCE).report + b"\0", 2),
    ("random", bytes(range(256)) * 16, 2),
    ("zeros", bytes(4096), 2),
    ("text", b"hello", 2),
    ("escape", b"\x1b[2J" * 100, 2),
    ("100-MB", b"\x11\xe0" + bytes(100_000_000), 2),
    ("flipped-nonce", FORGE.device(nonce=NONCE[::-1]).report, 1),
]


@pytest.mark.parametrize(("data", "code"), [pytest.param(d, c, id=n) for n, d, c in INPUTS])
def test_bad_report(files: Path, data: bytes, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Any bytes: a level of `none`, a code, no traceback, and nothing that moves a terminal's cursor."""
    (files / "report.bin").write_bytes(data)
    assert verify(*options(files)) == code
    shown = capsys.readouterr()
    assert "level: none" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert "\x1b" not in shown.out


def test_hostile_names_do_not_reach_the_terminal(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A certificate's name is printed before it is believed: control characters are replaced."""
    specs = FORGE.device_specs(HOPPER, 0)
    specs[-1] = replace(specs[-1], name="\x1b[2Jevil", key=FORGE.key("evil"))
    (files / "chain.pem").write_bytes(to_pem(mint(specs)))
    assert verify(*options(files)) == 1
    shown = capsys.readouterr().out
    assert "evil" in shown
    assert "\x1b" not in shown


def test_bad_roots_and_documents(files: Path) -> None:
    (files / "rims" / "broken.xml").write_bytes(b"<x")
    assert verify(*options(files)) == 0  # passed over in a directory
    assert verify(*options(files), "--rim", files / "rims" / "broken.xml") == 2  # refused when named
    (files / "nvidia-rim-root.pem").write_bytes(b"x")
    assert verify(*options(files)) == 2


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(cli, ["verify", "gpu", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Exit code 0" in shown
    assert "kata-gpu-kbs verify gpu --report" in shown


def test_collateral_store(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a store, documents come from it and revocation answers are demanded, not only reported."""
    store = CollateralStore(tmp_path / "store")
    seen = NOW - timedelta(days=3)
    for rim_id, document in FORGE.rims().items():
        store.add(Document(kind=Kind.RIM, id=rim_id, content=document, first_seen=seen, source="test"))
    arguments = [*options(files, rims=False), "--collateral", tmp_path / "store"]
    assert verify(*arguments) == 1
    assert "revocation-unknown" in capsys.readouterr().out
    answers = forge_chain_answers(
        FORGE.rim_specs(HOPPER), this_update=NOW - timedelta(days=1), next_update=NOW + timedelta(days=1)
    )
    for serial, answer in answers:
        store.add(Document(kind=Kind.OCSP, id=ocsp_id(serial), content=answer, first_seen=seen, source="test"))
    assert verify(*arguments) == 0
    assert verify(*arguments, "--signer-expiry", "valid-at-first-seen") == 0
