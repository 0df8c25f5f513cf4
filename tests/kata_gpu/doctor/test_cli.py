"""`kata-gpu doctor` and `bundle` as a person uses them; and docs/doctor.md is the table."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import click.testing
import pytest

from kata_gpu.cli.bundle import bundle
from kata_gpu.cli.doctor import doctor
from kata_gpu.cli.main import COMMANDS
from kata_gpu.core.doctor import CHECKS, SECTIONS, Profile
from kata_gpu.core.doctor.render import render_document
from kata_gpu.core.explain import causes
from kata_gpu.errors import Misconfigured
from kata_gpu.host.simkernel.kernel import SimKernel
from tests.kata_gpu.doctor.tree import Tree, healthy

ROOT = Path(__file__).resolve().parents[3]


def _doctor(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(doctor, list(arguments), standalone_mode=False)


def test_document_is_generated_from_the_table() -> None:
    assert (ROOT / "docs" / "doctor.md").read_text() == render_document(SECTIONS), "run `make docs`"


def test_list() -> None:
    lines = _doctor("--list").stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == [c.id for c in CHECKS]


def _orphan(tree: Tree) -> Tree:
    return tree.drop("/run/kata/0123456789abcdef")


def _debug(tree: Tree) -> Tree:
    return tree.put("/etc/containerd/config.toml", 'version = 3\nimports = ["/etc/other/*.toml"]\n')


@pytest.mark.parametrize(
    ("tree", "arguments", "code"),
    [
        pytest.param(healthy(Profile.SNP), [], 0, id="ready"),
        pytest.param(healthy(Profile.SNP), ["--strict"], 0, id="ready-strict"),
        pytest.param(_orphan(healthy(Profile.SNP)), [], 0, id="warning"),
        pytest.param(_orphan(healthy(Profile.SNP)), ["--strict"], 1, id="warning-strict"),
        pytest.param(_debug(healthy(Profile.SNP)), [], 1, id="failure"),
    ],
)
def test_exit_codes(tree: Tree, arguments: list[str], code: int, tmp_path: Path) -> None:
    result = _doctor("--host-root", str(tree.write(tmp_path)), *arguments)
    assert result.exception is None
    assert result.return_value == code


def test_text_says_what_is_wrong_first(tmp_path: Path) -> None:
    text = _doctor("--host-root", str(_debug(healthy(Profile.SNP)).write(tmp_path))).stdout
    assert text.startswith("profiles: gpu, snp\n\nFAIL CRI-05")
    assert "FAIL CRI-02 follows from it" in text
    assert text.index("fix ") < text.index("Platform and firmware")
    assert "\x1b[" not in text
    assert text.rstrip().splitlines()[-1].startswith("not ready: ")


def test_verbose_shows_every_check(tmp_path: Path) -> None:
    text = _doctor("--verbose", "--host-root", str(healthy(Profile.SNP).write(tmp_path))).stdout
    assert all(f"{c.id}  {c.title}" in text for c in CHECKS)
    assert text.rstrip().splitlines()[-1].startswith("ready: ")


def test_json_has_every_check_in_order(tmp_path: Path) -> None:
    result = _doctor("--output", "json", "--host-root", str(healthy(Profile.SNP).write(tmp_path)), "--profile", "snp")
    report = json.loads(result.stdout)
    assert report["schema"] == "kata-gpu.doctor/1"
    assert report["profiles"] == ["gpu", "snp"]
    assert [f["id"] for f in report["findings"]] == [c.id for c in CHECKS]
    assert report["summary"]["fail"] == 0


def test_unknown_profile_is_a_usage_error() -> None:
    result = _doctor("--profile", "gpu,sev")
    assert isinstance(result.exception, Misconfigured)
    assert result.exception.exit_code == 2


def test_simulated_host(tmp_path: Path) -> None:
    """The simulated host has no containers: what it has of PCI and kernel is judged, the rest is said."""
    from kata_gpu.host.simkernel.presets import hgx_h100

    path = tmp_path / "sim.json"
    with SimKernel(hgx_h100(), path=path).edit():
        pass
    result = _doctor("--sim", str(path), "--output", "json", "--profile", "snp,ppcie")
    assert result.exception is None
    findings = {f["id"]: f for f in json.loads(result.stdout)["findings"]}
    assert findings["IOM-14"]["found"] == "12 devices"
    assert findings["SNP-01"]["status"] == "ok"
    assert findings["IOM-03"]["status"] == "ok"


def test_bundle_and_back(tmp_path: Path) -> None:
    root = healthy(Profile.SNP).write(tmp_path / "root")
    output = tmp_path / "b.tar.gz"
    result = click.testing.CliRunner().invoke(
        bundle, ["-o", str(output), "--host-root", str(root)], standalone_mode=False
    )
    assert result.return_value == 0
    assert "entries" in result.stdout
    assert _doctor("--host-root", str(output)).return_value == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from kata_gpu.cli.main import run, cli; run(cli, ['doctor', '--help']);"
        "print(sorted(m for m in sys.modules if m.startswith(('kata_gpu.core', 'kata_gpu.host', 'kata_gpu.ops'))"
        " or m in {'yaml', 'json', 'rich', 'kubernetes', 'grpc', 'cryptography', 'subprocess', 'tarfile'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] in {"[]", "['json']"}
    assert "Example" in done.stdout


def _named_commands() -> list[str]:
    texts = [text for c in CHECKS for text in (c.fix, c.expected)] + [c.fix for c in causes()]
    return sorted({match for text in texts for match in re.findall(r"`kata-gpu ([a-z]+(?: [a-z]+)?)", text)})


@pytest.mark.parametrize("command", _named_commands())
def test_every_command_that_a_fix_names_exists(command: str) -> None:
    name, _, sub = command.partition(" ")
    assert name in COMMANDS
    if sub and name in {"node", "kata", "cdi", "cc", "vfio", "initdata"}:
        module, attribute, _help = COMMANDS[name]
        group = getattr(importlib.import_module(module), attribute)
        assert sub in group.commands
