"""`kata-gpu-kbs revoke` and `lease`: whom the broker refuses from now on, and who holds which key."""

from pathlib import Path

import click

from attestation.cli.store import moment, opened, operator, show, store_options
from attestation.values import ResourcePath

KINDS = ("token", "tee-key", "chip", "gpu", "firmware")


@click.group()
def revoke() -> None:
    """Refuse an identity or firmware, whatever the evidence says, on every replica within a tenth of a second.

    \b
    Example:
      kata-gpu-kbs revoke add gpu 4f1c... --reason "stolen in transit" --store /var/lib/kbs
      kata-gpu-kbs revoke add firmware "hopper vbios ..96.00.5E" --reason "bulletin 5551" --store /var/lib/kbs
    """


@revoke.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("value")
@click.option("--reason", required=True, help="For the audit log.")
@click.option("--webhook", type=click.Path(path_type=Path), metavar="FILE", help="Tell this webhook (see `serve`).")
@store_options
def add(
    kind: str, value: str, reason: str, webhook: Path | None, store: str, root_key: Path | None, output: str
) -> None:
    """Revoke VALUE: a token id, TEE key thumbprint, CPU chip id, GPU identity or leaf serial, or a firmware range.

    Prints the leases that this ended: guests that have keys already, which somebody has to stop.

    \b
    Example:
      kata-gpu-kbs revoke add chip 9f2c... --reason "node decommissioned" --store /var/lib/kbs
    """
    from dataclasses import replace

    from attestation.broker.revocation import RevocationKind
    from attestation.cli.webhook_file import load_webhook
    from attestation.ops import revocations

    hook = None if webhook is None else load_webhook(webhook)
    with opened(store, root_key) as opened_world:
        world = opened_world if hook is None else replace(opened_world, webhook=hook)
        ended = revocations.revoke(world, operator(), RevocationKind(kind), value, reason, now=moment(None))
    if hook is not None:
        hook.close()
    lines = [f"revoked {kind} {value}; {len(ended)} leases ended"]
    lines += [f"  {lease.path} held by chip {lease.chip_id[:16]}, token {lease.jti}" for lease in ended]
    show({"kind": kind, "value": value, "ended": [lease.to_json() for lease in ended]}, output, lines)


@revoke.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("value")
@store_options
def remove(kind: str, value: str, store: str, root_key: Path | None, output: str) -> None:
    """Take a revocation back. Exit code 1 where there was none.

    \b
    Example:
      kata-gpu-kbs revoke remove chip 9f2c... --store /var/lib/kbs
    """
    from attestation.broker.revocation import RevocationKind
    from attestation.errors import ExitCode
    from attestation.ops import revocations

    with opened(store, root_key) as world:
        found = revocations.unrevoke(world, operator(), RevocationKind(kind), value, now=moment(None))
    show({"removed": found}, output, [f"{kind} {value} is accepted again" if found else "was not revoked"])
    if not found:
        raise click.exceptions.Exit(ExitCode.NEGATIVE)


@revoke.command("list")
@store_options
def list_(store: str, root_key: Path | None, output: str) -> None:
    """Everything that is revoked.

    \b
    Example:
      kata-gpu-kbs revoke list --store /var/lib/kbs
    """
    from attestation.ops import revocations

    with opened(store, root_key) as world:
        rows = [found.to_json() for found in revocations.list_revocations(world, operator())]
    lines = [f"{row['created']} {row['kind']} {row['value']}: {row['reason']}" for row in rows]
    show({"revocations": rows}, output, lines or ["nothing is revoked"])


@click.command()
@click.argument("path", required=False)
@store_options
def lease(path: str | None, store: str, root_key: Path | None, output: str) -> None:
    """Who holds which key at present, and until when without a new attestation.

    \b
    Example:
      kata-gpu-kbs lease default/model/llama --store /var/lib/kbs
    """
    from attestation.ops import revocations

    at = None if path is None else ResourcePath.parse(path)
    with opened(store, root_key) as world:
        rows = [found.to_json() for found in revocations.list_leases(world, operator(), at, now=moment(None))]
    lines = [f"{row['path']}  chip {str(row['chip_id'])[:16]}  until {row['expires']}" for row in rows]
    show({"leases": rows}, output, lines or ["no leases"])
