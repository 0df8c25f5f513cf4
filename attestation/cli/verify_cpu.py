"""What `verify snp` and `verify tdx` share: options, what they become, and the run around the verification itself."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestation.cli.verification import FILE, Asked, Basis, F, judging_options
from attestation.errors import Malformed
from attestation.formats.initdata import MAX_INIT_DATA_BYTES, parse_init_data
from attestation.sources.atomic import read_bounded
from attestation.verify.expected import CpuExpected

if TYPE_CHECKING:
    from attestation.verify.verified import VerifiedCpu

MAX_FILE_BYTES = 2 * 1024 * 1024
REPORT_DATA_BYTES = 64
_SHARED = (
    click.option("--evidence", type=FILE, help="The attester's JSON, instead of raw files."),
    click.option("--report-data", metavar="HEX", help="What the report must commit to; padded with zeros to 64 bytes."),
    click.option("--init-data", type=FILE, help="Init-data document that the TEE must have been launched with."),
    click.option("--measurement", "measurements", metavar="HEX", multiple=True, help="Launch measurement to accept."),
    click.option("--collateral", type=FILE, help="Collateral store (a directory)."),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuAsked(Asked):
    """Their command line, typed."""

    evidence: Path | None
    report_data: str | None
    init_data: Path | None
    measurements: tuple[str, ...]


def cpu_options(command: F) -> F:
    """Decorator that adds them, in this order."""
    for option in reversed((*_SHARED, judging_options)):
        command = option(command)
    return command


def run_cpu(
    asked: CpuAsked,
    basis: Basis,
    now: datetime,
    verify: "Callable[[CpuExpected], tuple[VerifiedCpu, str]]",
) -> int:
    """Verify (`verify` gives a title, too), add what the command line alone demands, print the page: the exit code."""
    from attestation.cli.evidence_page import Page, check_measurement, judged
    from attestation.verify.bundle import require_recent

    expected = _expected(asked)

    def page() -> Page:
        recent = require_recent(basis.bundle, basis.rule, now=now)
        cpu, title = verify(expected)
        findings = (*cpu.findings, check_measurement(cpu, asked.measurements), recent)
        return Page(title=title, findings=findings, claims=cpu.claims)

    text, code = judged(asked, page, now, basis)
    click.echo(text)
    return code


def _expected(asked: CpuAsked) -> CpuExpected:
    document = None
    if asked.init_data is not None:
        try:
            document = parse_init_data(read_bounded(asked.init_data, MAX_INIT_DATA_BYTES).decode())
        except UnicodeDecodeError as exc:
            raise Malformed("init-data-text", "not UTF-8", where=str(asked.init_data)) from exc
    return CpuExpected(
        report_data=None if asked.report_data is None else _padded(asked.report_data), init_data=document
    )


def _padded(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError as exc:
        raise Malformed("report-data", "not hexadecimal", where="--report-data", got=repr(text[:40])) from exc
    if len(raw) > REPORT_DATA_BYTES:
        raise Malformed("report-data", "too long", where="--report-data", expected="<= 64 bytes", got=len(raw))
    return raw.ljust(REPORT_DATA_BYTES, b"\0")
