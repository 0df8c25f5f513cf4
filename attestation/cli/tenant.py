"""`kata-gpu-kbs tenant`: limits of a repository."""

from typing import Any

import click

from attestation.cli.office import office, office_options
from attestation.cli.store import show


@click.group()
def tenant() -> None:
    """A repository is a tenant: its keys, policies, administrators (`user add --repository`) and these limits.

    Its own root key is named in the root key configuration (docs/operations.md).

    \b
    Example:
      kata-gpu-kbs tenant set acme --keys 100 --releases-per-hour 1000 --store /var/lib/kbs
    """


@tenant.command("set")
@click.argument("name")
@click.option("--keys", "max_keys", type=click.IntRange(0), help="Most keys. Not given: no limit.")
@click.option("--releases-per-hour", type=click.IntRange(0), help="Most releases in an hour.")
@click.option("--attestations-per-minute", type=click.IntRange(0), help="Most attestations that get keys, in a minute.")
@office_options
def set_(
    name: str,
    max_keys: int | None,
    releases_per_hour: int | None,
    attestations_per_minute: int | None,
    output: str,
    **where: Any,
) -> None:
    """Set the limits of a tenant; those not given are lifted.

    \b
    Example:
      kata-gpu-kbs tenant set acme --releases-per-hour 1000 --store /var/lib/kbs
    """
    limits = {
        "max_keys": max_keys,
        "releases_per_hour": releases_per_hour,
        "attestations_per_minute": attestations_per_minute,
    }
    with office(where) as place:
        place.set_tenant(name, limits)
    show({"tenant": name, **limits}, output, [f"limits of {name} are set"])


@tenant.command("list")
@office_options
def list_(output: str, **where: Any) -> None:
    """Tenants with limits, and what they have used of them.

    \b
    Example:
      kata-gpu-kbs tenant list --store /var/lib/kbs
    """
    with office(where) as place:
        rows = place.tenants()
    lines = [
        f"{row['tenant']}  keys {row['used'].get('keys', 0)}/{_limit(row['max_keys'])}  "
        f"releases {row['used'].get('releases', 0)}/{_limit(row['releases_per_hour'])} an hour  "
        f"attestations {row['used'].get('attestations', 0)}/{_limit(row['attestations_per_minute'])} a minute"
        for row in rows
    ]
    show({"tenants": rows}, output, lines or ["no limits"])


def _limit(most: int | None) -> str:
    return "-" if most is None else str(most)
