"""Options that `verify snp` and `verify tdx` share, and what they become."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from attestation.cli.verification import policy_option, simulated_roots_option
from attestation.errors import Malformed
from attestation.formats.initdata import MAX_INIT_DATA_BYTES, parse_init_data
from attestation.sources.atomic import read_bounded
from attestation.verify.expected import CpuExpected

FILE = click.Path(path_type=Path)
MAX_FILE_BYTES = 2 * 1024 * 1024
REPORT_DATA_BYTES = 64
_SHARED = (
    click.option("--evidence", type=FILE, help="The attester's JSON, instead of raw files."),
    click.option("--report-data", metavar="HEX", help="What the report must commit to; padded with zeros to 64 bytes."),
    click.option("--init-data", type=FILE, help="Init-data document that the TEE must have been launched with."),
    click.option("--measurement", "measurements", metavar="HEX", multiple=True, help="Launch measurement to accept."),
    click.option("--collateral", type=FILE, help="Collateral store (a directory)."),
    policy_option,
    click.option("--at", metavar="RFC3339", help="Verify as of this time instead of now."),
    click.option(
        "--require",
        type=click.Choice(["authentic", "trusted"]),
        default="trusted",
        show_default=True,
        help="Level that counts as success: signatures alone, or policy met too.",
    ),
    click.option(
        "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
    ),
    simulated_roots_option,
)


def shared_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator that adds them, in this order."""
    for option in reversed(_SHARED):
        command = option(command)
    return command


def read_expected(report_data: str | None, init_data: Path | None) -> CpuExpected:
    """What the report must commit to."""
    document = None
    if init_data is not None:
        try:
            document = parse_init_data(read_bounded(init_data, MAX_INIT_DATA_BYTES).decode())
        except UnicodeDecodeError as exc:
            raise Malformed("init-data-text", "not UTF-8", where=str(init_data)) from exc
    return CpuExpected(report_data=None if report_data is None else _padded(report_data), init_data=document)


def _padded(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text)
    except ValueError as exc:
        raise Malformed("report-data", "not hexadecimal", where="--report-data", got=repr(text[:40])) from exc
    if len(raw) > REPORT_DATA_BYTES:
        raise Malformed("report-data", "too long", where="--report-data", expected="<= 64 bytes", got=len(raw))
    return raw.ljust(REPORT_DATA_BYTES, b"\0")


def warn_simulated() -> None:
    """Each use says so."""
    click.echo("WARNING: simulated roots are trusted: the result says nothing about hardware.", err=True)
