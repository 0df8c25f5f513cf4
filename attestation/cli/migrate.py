"""`kata-gpu-kbs migrate`: from other key brokers."""

from pathlib import Path

import click

from attestation.cli.output import output_option
from attestation.cli.store import moment, opened, operator, read_text, show
from attestation.errors import ExitCode, Misconfigured


@click.group()
def migrate() -> None:
    """Move here from another key broker.

    \b
    Example:
      kata-gpu-kbs migrate trustee --config kbs-config.toml --dry-run
    """


@migrate.command()
@click.option("--config", type=click.Path(), required=True, help="Upstream's kbs-config.toml.")
@click.option("--resources", type=click.Path(path_type=Path), help="Its resource store, where it is not as configured.")
@click.option("--store", type=click.Path(), help="Our store: a directory, or postgresql://...")
@click.option("--root-key", type=click.Path(path_type=Path), help="Root key file. Default: in the store.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@output_option
def trustee(
    config: str, resources: Path | None, store: str | None, root_key: Path | None, dry_run: bool, output: str
) -> int:
    """Read upstream's configuration, say what corresponds, and import its local resources.

    Exit code 1 where an option is refused as unsafe. Imported keys have no policy: set one before guests come.

    \b
    Example:
      kata-gpu-kbs migrate trustee --config kbs-config.toml --store /var/lib/kbs
    """
    from attestation.broker.trustee_config import Outcome, plan_migration
    from attestation.ops.migrate import import_resources
    from attestation.sources.trustee_store import read_resources

    if dry_run == (store is not None):
        raise Misconfigured("migrate-what", "write or not", expected="either --store or --dry-run")
    plan = plan_migration(read_text(config), where=config)
    where = resources or (Path(plan.resources.path) if plan.resources else None)
    found = read_resources(where) if where else ()
    if store is None:
        moved = list(import_resources(None, operator(), found, now=moment(None)))
    else:
        with opened(store, root_key, new=True) as world:
            moved = list(import_resources(world, operator(), found, now=moment(None)))
    unsafe = [row for row in plan.rows if row.outcome is Outcome.UNSAFE]
    lines = [f"{row.outcome:<8}{row.option} = {row.value}\n        {row.note}" for row in plan.rows]
    lines += ["", "kata-gpu-kbs serve " + " ".join((*plan.serve, "--store", store or "STORE"))]
    lines += ["", f"resources: {where or 'no local store is configured'}"]
    lines += [f"{one.outcome:<20}{one.name}" for one in moved]
    rows = [
        {"option": r.option, "value": r.value, "outcome": r.outcome, "note": r.note, "serve": list(r.serve)}
        for r in plan.rows
    ]
    result = {"options": rows, "serve": list(plan.serve), "resources": [one.to_json() for one in moved]}
    show(result, output, lines)
    return ExitCode.NEGATIVE if unsafe else ExitCode.OK
