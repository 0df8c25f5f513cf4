"""`kata-gpu-kbs revoke` and `lease`: whom the broker refuses from now on, and who holds which key."""

from pathlib import Path
from typing import Any

import click

from attestation.cli.office import office, office_options
from attestation.cli.store import short, show

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
@office_options
def add(kind: str, value: str, reason: str, webhook: Path | None, output: str, **where: Any) -> None:
    """Revoke VALUE: a token id, TEE key thumbprint, CPU chip id, GPU identity or leaf serial, or a firmware range.

    Prints the leases that this ended: guests that have keys already, which somebody has to stop.

    \b
    Example:
      kata-gpu-kbs revoke add chip 9f2c... --reason "node decommissioned" --store /var/lib/kbs
      kata-gpu-kbs revoke add token 5d0e... --reason "left the fleet" --broker https://kbs-admin:8081 \\
          --broker-cert ca.pem --admin-token-file token
    """
    with office(where, webhook) as place:
        done = place.revoke(kind, value, reason)
    ended = done["ended"]
    lines = [f"revoked {kind} {value}; {len(ended)} leases ended"]
    lines += [f"  {row['path']} held by chip {short(row['chip_id'])}, token {row['jti']}" for row in ended]
    show(done, output, lines)


@revoke.command()
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("value")
@office_options
def remove(kind: str, value: str, output: str, **where: Any) -> None:
    """Take a revocation back. Exit code 2 where there was none.

    \b
    Example:
      kata-gpu-kbs revoke remove chip 9f2c... --store /var/lib/kbs
    """
    from attestation.errors import Misconfigured

    with office(where) as place:
        if not place.unrevoke(kind, value):
            raise Misconfigured(
                "revocation-unknown", "not revoked (`revoke list` says what is)", where=f"{kind} {value}"
            )
    show({"removed": True}, output, [f"{kind} {value} is accepted again"])


@revoke.command("list")
@office_options
def list_(output: str, **where: Any) -> None:
    """Everything that is revoked.

    \b
    Example:
      kata-gpu-kbs revoke list --store /var/lib/kbs
    """
    with office(where) as place:
        rows = place.revocations()
    lines = [f"{row['created']} {row['kind']} {row['value']}: {row['reason']}" for row in rows]
    show({"revocations": rows}, output, lines or ["nothing is revoked"])


@click.command()
@click.argument("path", required=False)
@office_options
def lease(path: str | None, output: str, **where: Any) -> None:
    """Who holds which key at present, and until when without a new attestation.

    \b
    Example:
      kata-gpu-kbs lease default/model/llama --store /var/lib/kbs
    """
    with office(where) as place:
        rows = place.leases(path)
    lines = [f"{row['path']}  chip {short(row['chip_id'])}  until {row['expires']}" for row in rows]
    show({"leases": rows}, output, lines or ["no leases"])
