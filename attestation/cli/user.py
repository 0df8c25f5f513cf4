"""`kata-gpu-kbs user`: administrators and their tokens."""

from datetime import timedelta
from pathlib import Path

import click

from attestation.cli.store import moment, opened, operator, show, store_options


@click.group()
def user() -> None:
    """Administrators: a role, repositories, and signed tokens that can be taken back.

    \b
    Example:
      kata-gpu-kbs user add alice --role operator --repository alpha --store kbs
    """


@user.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["admin", "operator", "auditor"]), required=True, help="What they may do.")
@click.option("--repository", "repositories", multiple=True, help="Only here; may be repeated. Default: everywhere.")
@store_options
def add(name: str, role: str, repositories: tuple[str, ...], store: str, root_key: Path | None, output: str) -> None:
    """Add an administrator.

    \b
    Example:
      kata-gpu-kbs user add alice --role operator --repository alpha --store kbs
    """
    from attestation.broker.roles import Role
    from attestation.ops.administer import add_user

    with opened(store, root_key, new=True) as world:
        add_user(world, operator(), name, Role(role), repositories, now=moment(None))
    show({"name": name, "role": role}, output, [f"added {name} as {role}; now: kata-gpu-kbs user token {name}"])


@user.command()
@click.argument("name")
@click.option("--hours", type=click.IntRange(1, 24 * 90), default=12, show_default=True, help="Lifetime.")
@click.option("--at", metavar="RFC3339", help="Issue at this time instead of now (frozen clocks of demonstrations).")
@store_options
def token(name: str, hours: int, at: str | None, store: str, root_key: Path | None, output: str) -> None:
    """Print a bearer token for the admin API. Whoever holds it is the user.

    \b
    Example:
      kata-gpu-kbs user token alice --store kbs > alice.token
    """
    from attestation.ops.administer import issue_admin_token

    with opened(store, root_key) as world:
        text = issue_admin_token(world, name, lifetime=timedelta(hours=hours), now=moment(at))
    show({"token": text}, output, [text])


@user.command("list")
@store_options
def list_(store: str, root_key: Path | None, output: str) -> None:
    """List administrators.

    \b
    Example:
      kata-gpu-kbs user list --store kbs
    """
    with opened(store, root_key) as world:
        rows = [{"name": u.name, "role": u.role, "repositories": list(u.repositories)} for u in world.users.list()]
    lines = [f"{row['name']}  {row['role']}  {', '.join(row['repositories']) or 'every repository'}" for row in rows]
    show({"users": rows}, output, lines or ["no users"])


@user.command()
@click.argument("name")
@store_options
def revoke(name: str, store: str, root_key: Path | None, output: str) -> None:
    """Take back every token of a user; new ones can be issued.

    \b
    Example:
      kata-gpu-kbs user revoke alice --store kbs
    """
    from attestation.ops.administer import revoke_user

    with opened(store, root_key) as world:
        revoke_user(world, operator(), name, now=moment(None))
    show({"name": name, "revoked": True}, output, [f"tokens of {name} are no longer accepted"])
