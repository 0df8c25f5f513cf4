"""One version, wherever it is written."""

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner

import attestation
import kata_gpu
from kata_gpu.core.yaml12 import load

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = PROJECT["version"]
IMAGE = re.compile(r"ghcr\.io/kata-gpu/[a-z]+:([\w.-]+)")


def test_packages() -> None:
    assert kata_gpu.__version__ == attestation.__version__ == VERSION


def test_changelog() -> None:
    """The newest release has a date and comes first, and what is not released before it."""
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(VERSION)} - \d{{4}}-\d\d-\d\d", heads[1])


@pytest.mark.parametrize("program", ["kata-gpu", "kata-gpu-kbs", "kata-gpu-guest"])
def test_programs(program: str) -> None:
    module = import_module(PROJECT["scripts"][program].partition(":")[0])
    said = CliRunner().invoke(module.cli, ["--version"]).stdout
    assert said == f"{program}, version {VERSION}\n"


def test_chart() -> None:
    chart = load((ROOT / "deploy/chart/kata-gpu/Chart.yaml").read_text(), where="Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (VERSION, VERSION)


def test_images() -> None:
    """In manifests, chart, examples and whatever the documentation tells people to run."""
    texts = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    texts += [path for path in (ROOT / "deploy").rglob("*") if path.suffix in {".yaml", ".md", ".json"}]
    tags = [(path, tag) for path in texts for tag in IMAGE.findall(path.read_text())]
    assert len(tags) > 5
    assert [(path, tag) for path, tag in tags if tag != VERSION] == []
