"""`kata-gpu-kbs audit`: who got which key, and proof that nobody edited the answer."""

import json
from pathlib import Path

import click

from attestation.cli.store import opened, show, store_options


@click.group()
def audit() -> None:
    """The hash-chained, signed log of every decision.

    \b
    Example:
      kata-gpu-kbs audit verify --store kbs
    """


@audit.command()
@store_options
def verify(store: str, root_key: Path | None, output: str) -> None:
    """Walk the whole chain: sequence, links, digests, signatures. Exit code 1 where it is broken.

    \b
    Example:
      kata-gpu-kbs audit verify --store kbs
    """
    with opened(store, root_key) as world:
        length = world.audit.verify()
    show({"entries": length, "intact": True}, output, [f"intact: {length} entries"])


@audit.command()
@click.option("--last", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many entries.")
@store_options
def tail(last: int, store: str, root_key: Path | None, output: str) -> None:
    """The newest decisions.

    \b
    Example:
      kata-gpu-kbs audit tail --store kbs --last 50
    """
    with opened(store, root_key) as world:
        entries = [entry.to_json() for entry in world.audit.tail(last)]
    lines = [f"{e['seq']} {e['at']} {e['event']} {e['subject']} {json.dumps(e['body'])}" for e in entries]
    show({"entries": entries}, output, lines or ["no entries"])


@audit.command()
@store_options
def export(store: str, root_key: Path | None, output: str) -> None:  # noqa: ARG001 - one JSON object per line, always
    """Everything, one JSON object per line, for a SIEM.

    \b
    Example:
      kata-gpu-kbs audit export --store kbs > audit.jsonl
    """
    with opened(store, root_key) as world:
        for entry in world.audit.entries():
            click.echo(json.dumps(entry.to_json(), sort_keys=True))


@audit.command()
@click.argument("path")
@store_options
def who(path: str, store: str, root_key: Path | None, output: str) -> None:
    """Who got a key: chip, devices, version, policy.

    \b
    Example:
      kata-gpu-kbs audit who default/model/llama --store kbs
    """
    with opened(store, root_key) as world:
        entries = [entry.to_json() for entry in world.audit.about(path, "released")]
        denied = [entry.to_json() for entry in world.audit.about(path, "release-denied")]
    lines = [f"{e['at']} released {json.dumps(e['body'])}" for e in entries]
    lines += [f"{e['at']} denied {json.dumps(e['body'])}" for e in denied]
    show({"released": entries, "denied": denied}, output, lines or [f"nobody asked for {path}"])
