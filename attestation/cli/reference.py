"""`kata-gpu-kbs reference`: reference values, with expiry and provenance."""

import json
from datetime import timedelta
from pathlib import Path

import click

from attestation.cli.store import moment, opened, operator, read_bytes, show, store_options
from attestation.errors import Misconfigured


@click.group()
def reference() -> None:
    """Known-good values that measurements are compared with. They expire.

    \b
    Example:
      kata-gpu-kbs reference set snp_launch_measurement 4f1e... --store kbs --provenance "build 812"
    """


@reference.command("set")
@click.argument("name")
@click.argument("values", nargs=-1, required=True)
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Lifetime.")
@click.option("--provenance", required=True, help="Where the value comes from: a build, a release, a ticket.")
@store_options
def set_(
    name: str, values: tuple[str, ...], days: int, provenance: str, store: str, root_key: Path | None, output: str
) -> None:
    """Replace the accepted VALUES of NAME.

    \b
    Example:
      kata-gpu-kbs reference set snp_launch_measurement 4f1e... --store kbs --provenance "build 812"
    """
    from attestation.ops.administer import set_reference_values

    with opened(store, root_key) as world:
        set_reference_values(
            world,
            operator(),
            {name: list(values)},
            provenance=provenance,
            lifetime=timedelta(days=days),
            now=moment(None),
        )
    show({"name": name, "values": list(values)}, output, [f"{name}: {len(values)} values, valid {days} days"])


@reference.command("list")
@store_options
def list_(store: str, root_key: Path | None, output: str) -> None:
    """All names with their values, expiry and provenance.

    \b
    Example:
      kata-gpu-kbs reference list --store kbs
    """
    now = moment(None)
    with opened(store, root_key) as world:
        found = [world.references.get(name) for name in world.references.names()]
    rows = [
        {
            "name": value.name,
            "values": list(value.values),
            "expires": value.expires.isoformat(),
            "provenance": value.provenance,
            "expired": value.expires <= now,
        }
        for value in found
    ]
    lines = [
        f"{row['name']}: {', '.join(v[:24] for v in row['values'][:3])}  "
        f"{'EXPIRED' if row['expired'] else 'until'} {row['expires'][:10]}  {row['provenance']}"
        for row in rows
    ]
    show({"references": rows}, output, lines or ["no reference values"])


@reference.command("import")
@click.argument("file")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Lifetime.")
@store_options
def import_(file: str, days: int, store: str, root_key: Path | None, output: str) -> None:
    """Import a JSON map of names to values, as upstream's `sample` RVPS messages carry it.

    \b
    Example:
      kata-gpu-kbs reference import values.json --store kbs
    """
    from attestation.ops.administer import set_reference_values

    try:
        values = json.loads(read_bytes(file))
    except (ValueError, RecursionError) as exc:
        raise Misconfigured("reference-file", "not JSON", where=file) from exc
    if not isinstance(values, dict) or not values:
        raise Misconfigured("reference-file", "not a map of names to values", where=file)
    with opened(store, root_key) as world:
        set_reference_values(
            world,
            operator(),
            values,
            provenance=f"imported from {Path(file).name}",
            lifetime=timedelta(days=days),
            now=moment(None),
        )
    show({"imported": sorted(values)}, output, [f"imported {len(values)} names"])
