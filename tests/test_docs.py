"""What the documentation points at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PACKAGES = ("kata_gpu", "attestation", "tests", "runtimeclass", "deploy")
SOURCE = re.compile(rf"`((?:{'|'.join(PACKAGES)})/[A-Za-z_/0-9]+\.(?:py|toml))`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
CODE = re.compile(r"`([^`\n]+)`")
ARCHITECTURE = ROOT / "docs/architecture.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_name_files_that_exist(page: Path) -> None:
    text = page.read_text()
    missing = [name for name in SOURCE.findall(text) if not (ROOT / name).is_file()]
    missing += [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    assert missing == []


def test_the_architecture_names_modules_that_exist() -> None:
    """Also where a line gives the folder once: "`attestation/verify/revocation.py`, `ocsp.py`"; and dotted ones."""
    missing = []
    for line in ARCHITECTURE.read_text().splitlines():
        folder = ROOT
        for name in CODE.findall(line):
            path = ROOT / (name if name.startswith(PACKAGES) else f"{folder.relative_to(ROOT)}/{name}")
            if re.fullmatch(r"[a-z_]+(/[a-z_0-9]+)*(\.py|/)", name):
                folder = path.parent
                missing += [] if path.exists() else [line]
            elif name.startswith(PACKAGES) and re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", name):
                module = ROOT / name.replace(".", "/")
                missing += [] if module.is_dir() or module.with_suffix(".py").is_file() else [line]
    assert missing == []


def test_the_architecture_names_types_and_functions_that_exist() -> None:
    code = "\n".join(
        path.read_text() for package in ("kata_gpu", "attestation") for path in (ROOT / package).rglob("*.py")
    )
    defined = set(re.findall(r"^(?:class|def) (\w+)", code, re.MULTILINE))
    named = {
        match[1]
        for name in CODE.findall(ARCHITECTURE.read_text())
        if (match := re.fullmatch(r"([A-Z][a-z]+(?:[A-Z][a-z]+)+|[a-z_]+(?=\())(?:\(.*\))?", name))
    }
    assert {"TrustedVerdict", "release", "plan_setup"} <= named
    assert named - defined <= {"ResourceSlices", "Protocol"}


def test_every_package_has_its_place_in_the_architecture() -> None:
    text = ARCHITECTURE.read_text()
    packages = [
        f"{package}.{path.parent.name}"
        for package in ("kata_gpu", "attestation")
        for path in sorted((ROOT / package).glob("*/__init__.py"))
    ]
    assert len(packages) > 10
    short = [name for name in packages if name not in text and f".{name.split('.')[1]}" not in text]
    assert short == []
