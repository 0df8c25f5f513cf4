"""docs/operations.md is complete: whoever is woken by an alert, or reads a command line, finds it there."""

import re
from pathlib import Path

import pytest

from attestation.cli.serve import serve

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/operations.md").read_text()
ALERTS = re.findall(r"- alert: (\w+)", (ROOT / "deploy/monitoring/alerts.yaml").read_text())


def test_every_alert_has_a_line() -> None:
    """With what to do."""
    assert len(ALERTS) > 10
    assert [alert for alert in ALERTS if f"`{alert}`" not in PAGE] == []


def test_every_option_of_serve_has_a_line() -> None:
    """With when to use it."""
    options = [option for parameter in serve.params for option in parameter.opts]
    assert [option for option in options if not re.search(rf"`{option}[` ]", PAGE)] == []


@pytest.mark.parametrize("name", re.findall(r"`(test_\w+)`", PAGE))
def test_every_test_that_it_names_is_there(name: str) -> None:
    """Faults point at the test that proves them."""
    assert any(f"def {name}(" in file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
