"""`kata-gpu-kbs explain`: a result of `verify` as one page for a person."""

import json
import sys
from pathlib import Path

import click

from attestation.cli.output import output_option


@click.command()
@click.argument("result", type=click.Path(path_type=Path, allow_dash=True))
@output_option
def explain(result: Path, output: str) -> None:
    """Explain RESULT, the JSON of `verify gpu|snp|tdx|evidence` (`-` reads stdin): what was proven, what was not,
    what to do.

    \b
    Example:
      kata-gpu-kbs verify gpu --evidence gpus.json --nonce 931d8d... --output json | kata-gpu-kbs explain -
    """
    from attestation.appraise.explain import MAX_RESULT_BYTES, parse_result, render_explanation, to_json
    from attestation.sources.atomic import read_bounded

    dash = str(result) == "-"
    raw = sys.stdin.buffer.read(MAX_RESULT_BYTES + 1) if dash else read_bounded(result, MAX_RESULT_BYTES)
    page = parse_result(raw)
    click.echo(json.dumps(to_json(page), indent=2) if output == "json" else render_explanation(page))
