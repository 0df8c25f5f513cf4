"""`kata-gpu-kbs tenant`: limits of a repository."""

from pathlib import Path

import click

from attestation.cli.store import moment, opened, operator, show, store_options


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
@store_options
def set_(
    name: str,
    max_keys: int | None,
    releases_per_hour: int | None,
    attestations_per_minute: int | None,
    store: str,
    root_key: Path | None,
    output: str,
) -> None:
    """Set the limits of a tenant; those not given are lifted.

    \b
    Example:
      kata-gpu-kbs tenant set acme --releases-per-hour 1000 --store /var/lib/kbs
    """
    from attestation.ops.revocations import set_quota
    from attestation.sources.tenants import Quota

    quota = Quota(
        max_keys=max_keys,
        releases_per_hour=releases_per_hour,
        attestations_per_minute=attestations_per_minute,
    )
    with opened(store, root_key) as world:
        set_quota(world, operator(), name, quota, now=moment(None))
    show({"tenant": name, "keys": max_keys}, output, [f"limits of {name} are set"])


@tenant.command("list")
@store_options
def list_(store: str, root_key: Path | None, output: str) -> None:
    """Tenants with limits, and what they have used of them.

    \b
    Example:
      kata-gpu-kbs tenant list --store /var/lib/kbs
    """
    from dataclasses import asdict

    now = moment(None)
    with opened(store, root_key) as world:
        rows = [
            {"tenant": name, **asdict(quota), "used": world.tenants.used(name, now) | _keys(world, name)}
            for name, quota in world.tenants.all().items()
        ]
    lines = [
        f"{row['tenant']}  keys {row['used'].get('keys', 0)}/{row['max_keys'] or '-'}  "
        f"releases {row['used'].get('releases', 0)}/{row['releases_per_hour'] or '-'} an hour  "
        f"attestations {row['used'].get('attestations', 0)}/{row['attestations_per_minute'] or '-'} a minute"
        for row in rows
    ]
    show({"tenants": rows}, output, lines or ["no limits"])


def _keys(world: object, name: str) -> dict[str, int]:
    from attestation.ops.world import World

    assert isinstance(world, World)
    return {"keys": len(world.keys.list(name))}
