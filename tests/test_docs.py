"""What the documentation points at is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SOURCE = re.compile(r"`((?:kata_gpu|attestation|tests|runtimeclass|deploy)/[A-Za-z_/0-9]+\.(?:py|toml))`")
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_pages_name_files_that_exist(page: Path) -> None:
    text = page.read_text()
    missing = [name for name in SOURCE.findall(text) if not (ROOT / name).is_file()]
    missing += [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    assert missing == []
