"""`kata-gpu-kbs store`: whether the rows that decide releases are those that the audit log names."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from attestation.cli.store import moment, opened, operator, show, store_options
from attestation.errors import Denied, ExitCode

if TYPE_CHECKING:
    from attestation.ops.reconcile import Reconciled


@click.group()
def store() -> None:
    """Policies, keys' labels, reference values, roles, limits and revocations, compared with the audit log.

    \b
    Example:
      kata-gpu-kbs store verify --store kbs
    """


@store.command()
@store_options
def verify(store: str, root_key: Path | None, output: str) -> ExitCode:
    """Read every row, replay the whole log, and name what differs. Exit code 1 where something does.

    A store that was set back whole, log and rows, has no difference: see `audit verify --checkpoint`.

    \b
    Example:
      kata-gpu-kbs store verify --store kbs
    """
    from attestation.ops.reconcile import reconcile

    with opened(store, root_key) as world:
        found = reconcile(world)
    _show(found, output, {"intact": found.intact})
    return ExitCode.OK if found.intact else ExitCode.NEGATIVE


@store.command()
@click.option("--accept-differences", is_flag=True, help="You have looked at each of them, and answer for the rows.")
@store_options
def seal(accept_differences: bool, store: str, root_key: Path | None, output: str) -> ExitCode:
    """Record the rows as they are: once after an upgrade from a version that did not, and to accept what was changed.

    What the log does not explain is named, and accepted only with --accept-differences. Whoever writes to the database
    can make a store look as if it had to be sealed: look at each line.

    \b
    Example:
      kata-gpu-kbs store seal --store kbs
    """
    from attestation.ops.reconcile import reconcile
    from attestation.ops.reconcile import seal as bind

    with opened(store, root_key) as world:
        found = reconcile(world)
        if found.intact:
            _show(found, output, {"sealed": True})
            return ExitCode.OK
        if not (accept_differences or (found.log_holds and not found.differences)):
            _show(found, output, {"sealed": False})
            raise Denied(
                "store-differences", "the log does not explain these rows", where=store, expected="--accept-differences"
            )
        bind(world, operator(), found, now=moment(None))
    _show(found, output, {"sealed": True})
    return ExitCode.OK


def _show(found: "Reconciled", output: str, verdict: dict[str, bool]) -> None:
    body = {
        **verdict,
        "entries": found.entries,
        "rows": found.rows,
        "problems": list(found.problems),
        "differences": [difference.to_json() for difference in found.differences],
    }
    show(body, output, list(_lines(found, verdict)))


def _lines(found: "Reconciled", verdict: dict[str, bool]) -> Iterator[str]:
    yield from found.problems
    yield from map(str, found.differences)
    ((name, held),) = verdict.items()
    yield f"{name if held else f'not {name}'}: {found.rows} rows, {found.entries} audit entries"
