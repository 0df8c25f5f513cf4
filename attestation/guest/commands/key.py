"""`kata-gpu-guest key get`."""

import os
import sys
from pathlib import Path

import click

from attestation.errors import Unavailable
from attestation.guest.commands.common import Source, fetch_key, source_options, warn
from attestation.guest.memory_fs import Exceptions, Proc, require_memory
from attestation.values import ResourcePath


@click.group()
def key() -> None:
    """Get a key from the broker.

    \b
    Example:
      kata-gpu-guest key get kbs:///models/llama/key --init-data /run/initdata.toml --out /dev/shm/key
    """


@key.command()
@click.argument("path")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File on tmpfs, or - for stdout.")
@click.option("--unsafe-plaintext-on-disk", is_flag=True, help="Allow a disk. The key outlives the VM there.")
@click.option("--unsafe-plaintext-with-swap", is_flag=True, help="Allow memory that can be swapped to a disk.")
@source_options
def get(path: str, out: Path, unsafe_plaintext_on_disk: bool, unsafe_plaintext_with_swap: bool, source: Source) -> None:
    """Attest this VM and write the key, as it is, to a file that only its owner can read.

    \b
    Example:
      kata-gpu-guest key get kbs:///models/llama/key --init-data /run/initdata.toml --out /dev/shm/key
    """
    name = ResourcePath.parse(path)
    if str(out) == "-":
        sys.stdout.buffer.write(fetch_key(source, name).expose())
        return
    exceptions = Exceptions(disk=unsafe_plaintext_on_disk, swap=unsafe_plaintext_with_swap)
    try:
        warn(require_memory(out.parent, exceptions, proc=Proc()))
        secret = fetch_key(source, name)
        partial = out.with_name(f".{out.name}.partial")
        partial.unlink(missing_ok=True)
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(secret.expose())
        partial.replace(out)
    except OSError as exc:
        raise Unavailable("key-write", exc.strerror or "cannot write", where=str(out)) from exc
    click.echo(f"{name}: {len(secret)} bytes in {out}", err=True)
