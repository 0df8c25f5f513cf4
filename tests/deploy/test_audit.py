"""`make audit` never says "none" where nobody answered."""

from pathlib import Path
from typing import Any

import pytest

from deploy.audit import LOCKS, judge, main
from kata_gpu.errors import ExitCode

CLEAN = {"name": "click", "version": "8.1", "vulns": []}
FLAWED = {"name": "lxml", "version": "5.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["5.1"]}]}
UNFIXED = {"name": "yarl", "version": "1.0", "vulns": [{"id": "PYSEC-2", "fix_versions": []}]}
SKIPPED = {"name": "rich", "skip_reason": "Dependency not found on PyPI and could not be audited: rich (15.0.0)"}


@pytest.mark.parametrize(("found", "code", "lines"), [
    pytest.param([CLEAN], ExitCode.OK, ["1 of 1 packages looked up"], id="clean"),
    pytest.param([CLEAN, FLAWED, UNFIXED], ExitCode.NEGATIVE,
                 ["lxml 5.0: PYSEC-1, fixed in 5.1", "yarl 1.0: PYSEC-2, fixed in no version", "3 of 3 packages looked up"],
                 id="advisories"),
    pytest.param([CLEAN, SKIPPED], ExitCode.UNAVAILABLE,
                 ["not looked up, the advisory service does not know them: rich", "1 of 2 packages looked up"], id="one-unknown"),
    pytest.param([SKIPPED, FLAWED], ExitCode.NEGATIVE,
                 ["lxml 5.0: PYSEC-1, fixed in 5.1", "not looked up, the advisory service does not know them: rich",
                  "1 of 2 packages looked up"], id="advisory-outweighs"),
    pytest.param([], ExitCode.UNAVAILABLE, ["0 of 0 packages looked up"], id="empty"),
])  # fmt: skip
def test_what_a_report_proves(found: list[dict[str, Any]], code: ExitCode, lines: list[str]) -> None:
    assert judge({"dependencies": found, "fixes": []}) == (code, lines)


@pytest.mark.parametrize(("codes", "worst", "said"), [
    pytest.param([ExitCode.OK, ExitCode.OK], ExitCode.OK, False, id="clean"),
    pytest.param([ExitCode.UNAVAILABLE, ExitCode.OK], ExitCode.UNAVAILABLE, True, id="one-not-proven"),
    pytest.param([ExitCode.NEGATIVE, ExitCode.UNAVAILABLE], ExitCode.NEGATIVE, True, id="advisory-outweighs"),
])  # fmt: skip
def test_the_worst_lock_decides(
    codes: list[ExitCode], worst: ExitCode, said: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = dict(zip((Path("a.lock"), Path("b.lock")), codes, strict=True))
    assert main(tuple(answers), lambda lock: (answers[lock], ["lines"])) is worst
    assert ("not proven" in capsys.readouterr().out) is said


def test_every_lock_that_is_installed_is_asked_about() -> None:
    """The locks of the images are subsets of runtime.lock."""
    pinned = {path.stem: {line for line in path.read_text().splitlines() if "==" in line} for path in LOCKS}
    assert set(pinned) == {"runtime", "dev"}
    for image in ("guest", "kbs", "node"):
        lock = LOCKS[0].with_name(f"{image}.lock")
        assert {line.split(";")[0].strip(" \\") for line in lock.read_text().splitlines() if "==" in line} <= {
            line.split(";")[0].strip(" \\") for line in pinned["runtime"]
        }
