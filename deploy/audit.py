"""`make audit`: known advisories of what is locked, and never "none" where nobody was asked.

pip-audit calls it success when its service knows none of the packages, as mirrors without PyPI's JSON interface do.
Here a package that could not be looked up fails the audit, and the last line says how many were.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from kata_gpu.errors import ExitCode

ROOT = Path(__file__).resolve().parent.parent
LOCKS = tuple(ROOT / "requirements" / f"{name}.lock" for name in ("runtime", "dev"))
Answer: TypeAlias = "tuple[ExitCode, list[str]]"  # NEGATIVE: advisories; UNAVAILABLE: not proven; and lines to print


def judge(report: dict[str, Any]) -> Answer:
    """What pip-audit's JSON report proves: advisories first, then what could not be looked up."""
    found = report["dependencies"]
    skipped = [each["name"] for each in found if "skip_reason" in each]
    lines = [
        f"{each['name']} {each['version']}: {flaw['id']}, fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for each in found
        for flaw in each.get("vulns", ())
    ]
    code = ExitCode.NEGATIVE if lines else ExitCode.UNAVAILABLE if skipped or not found else ExitCode.OK
    if skipped:
        names = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        lines.append(f"not looked up, the advisory service does not know them: {names}")
    lines.append(f"{len(found) - len(skipped)} of {len(found)} packages looked up")
    return code, lines


def audit(lock: Path) -> Answer:
    """Ask PyPI's service about every package of a lock file."""
    argv = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--disable-pip"]
    done = subprocess.run([*argv, "-r", str(lock)], capture_output=True, text=True, check=False)
    try:
        return judge(json.loads(done.stdout))
    except (ValueError, KeyError):
        return ExitCode.UNAVAILABLE, [
            f"pip-audit failed: {(done.stderr.strip() or 'no report').splitlines()[-1][:300]}"
        ]


def main(locks: tuple[Path, ...] = LOCKS, ask: Callable[[Path], Answer] = audit) -> ExitCode:
    """Print one block a lock file. Advisories outweigh what is not proven."""
    codes = set()
    for lock in locks:
        code, lines = ask(lock)
        codes.add(code)
        print(f"{lock.name}:", *lines, sep="\n  ")
    if ExitCode.UNAVAILABLE in codes:
        print("not proven: without an answer for every package this says nothing about advisories")
    return next((code for code in (ExitCode.NEGATIVE, ExitCode.UNAVAILABLE) if code in codes), ExitCode.OK)


if __name__ == "__main__":
    sys.exit(main())
