"""What the commands that open a store share: the two options, the principal, and one way to print."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from attestation.cli.output import output_option
from attestation.clock import parse_time, utc_now
from attestation.errors import Misconfigured

F = TypeVar("F", bound=Callable[..., Any])
NO_POLICY = "without a policy of its own: nobody gets it unless its repository or `default` has one"
MAX_FILE_BYTES = 4 * 1024 * 1024


def store_options(command: F) -> F:
    """`--store`, `--root-key` and `--output`."""
    for option in (
        output_option,
        click.option("--root-key", type=click.Path(path_type=Path), help="Root key file. Default: in the store."),
        click.option(
            "--store", type=click.Path(), required=True, help="Directory of the embedded store, or postgresql://..."
        ),
    ):
        command = option(command)
    return command


class _Nobody:
    """Commands verify no evidence."""

    def verify(self, *_args: object, **_kwargs: object) -> Any:
        raise Misconfigured("no-verifier", "this command verifies no evidence")


@contextmanager
def opened(store: str, root_key: Path | None, *, new: bool = False) -> Iterator[Any]:
    """The world of a store, closed at the end. Only with `new` it may be made: a typing error is no empty store."""
    if not new and "://" not in store and not Path(store).is_dir():
        raise Misconfigured(
            "no-store",
            "there is no store",
            where=store,
            expected="the directory of `serve --store` (`serve`, `user add` and `key add` make one)",
        )
    if Path(store).is_dir() and not os.access(store, os.R_OK | os.W_OK | os.X_OK):
        raise Misconfigured(
            "store-permission",
            "no right to use the store",
            where=store,
            expected=f"the user that owns it (uid {Path(store).stat().st_uid}), or root",
            got=f"uid {os.geteuid()}",
        )
    from attestation.ops.open_world import WorldOptions, close_world, open_world

    world = open_world(WorldOptions(store=store, root_key=root_key), _Nobody(), now=utc_now())
    try:
        yield world
    finally:
        close_world(world)


def operator() -> Any:
    """Whoever can open the store's root key is its administrator; the audit log names the local user."""
    from attestation.broker.roles import Principal, Role

    return Principal(name=f"local-uid-{os.getuid()}", role=Role.ADMIN)


def moment(at: str | None) -> datetime:
    """`--at`, or now."""
    return utc_now() if at is None else parse_time(at, where="--at")


def read_bytes(path: str) -> bytes:
    """A file, or standard input for `-`; bounded."""
    try:
        with click.open_file(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise Misconfigured("file", f"cannot read: {exc.strerror}", where=path) from exc
    if len(raw) > MAX_FILE_BYTES:
        raise Misconfigured("file-size", "file is too large", where=path, expected=f"at most {MAX_FILE_BYTES} bytes")
    return bytes(raw)


def read_text(path: str) -> str:
    """A UTF-8 file."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as exc:
        raise Misconfigured("file-text", "not UTF-8 text", where=path) from exc


def short(chip_id: object) -> str:
    """A chip id to tell apart in a list; its dots, and its length, are no id that `revoke` would take."""
    text = str(chip_id)
    return f"{text[:12]}..." if len(text) > 12 else text


def show(result: Mapping[str, Any], output: str, text: Sequence[str] = ()) -> None:
    """One JSON object, or the lines for people."""
    if output == "json":
        click.echo(json.dumps(result, indent=2, sort_keys=True))
    else:
        for line in text or [f"{name}: {value}" for name, value in result.items()]:
            click.echo(line)
