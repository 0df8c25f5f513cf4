"""`kata-gpu-guest model decrypt|verify|cat|serve`."""

import os
import sys
import time
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import click

from attestation.errors import Misconfigured
from attestation.guest.commands.common import (
    FILE,
    Source,
    output_option,
    read_key,
    settings_of,
    show,
    source_options,
    warn,
)
from attestation.guest.model import EncryptedModel, open_model
from attestation.guest.progress import Progress
from attestation.values import Digest

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


class _Renamed(click.Option):
    """Help shows its first name; the others are what it was called before. One option: no name loses a value."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        today = copy(self)
        today.opts = self.opts[:1]
        return click.Option.get_help_record(today, ctx)


def _threads() -> int:
    return min(4, len(os.sched_getaffinity(0)))


def _key_options(command: Any) -> Any:
    for option in (
        click.option(
            "--model-digest",
            "--expect",
            cls=_Renamed,
            metavar="sha256:HEX",
            help="Accept only this encryption (what encrypt printed).",
        ),
        click.option("--key-file", type=FILE, help="Model key from a file instead of the broker."),
        click.option("--key", metavar="KBS-URI", help="Model key by name, e.g. kbs:///models/llama/key."),
    ):
        command = option(command)
    return source_options(command)


def _open(
    folder: Path, key: str | None, key_file: Path | None, model_digest: str | None, source: Source
) -> EncryptedModel:
    pinned = Digest.parse(model_digest) if model_digest else None
    if pinned is None and source.init_data is not None:
        pinned = settings_of(source).model_digest
    return open_model(folder, read_key(source, key, key_file), expect=pinned)


@click.group()
def model() -> None:
    """Decrypt, verify, read or serve an encrypted model.

    \b
    Example:
      kata-gpu-guest model verify /models/llama.kgm --key-file key.bin
    """


@model.command()
@click.argument("folder", type=FOLDER)
@click.argument("target", type=click.Path(path_type=Path, file_okay=False))
@click.option("--mode", default="600", show_default=True, metavar="OCTAL", help="Permissions of the files.")
@click.option("--threads", type=click.IntRange(1, 16), default=_threads, help="Default: cores, at most 4.")
@click.option("--unsafe-plaintext-on-disk", is_flag=True, help="Allow a disk. The weights outlive the VM there.")
@click.option("--unsafe-plaintext-with-swap", is_flag=True, help="Allow memory that can be swapped to a disk.")
@_key_options
@output_option
def decrypt(
    folder: Path,
    target: Path,
    mode: str,
    threads: int,
    unsafe_plaintext_on_disk: bool,
    unsafe_plaintext_with_swap: bool,
    key: str | None,
    key_file: Path | None,
    model_digest: str | None,
    source: Source,
    output: str,
) -> None:
    """Decrypt every file of FOLDER below TARGET, which must be in memory (tmpfs or ramfs, no swap).

    Files get their names only when all of them are authentic and complete; `.kata-gpu-complete` comes last. A line
    on stderr says every ten seconds how far it is.

    \b
    Example:
      kata-gpu-guest model decrypt /models/llama.kgm /weights --key kbs:///models/llama/key \\
          --init-data /run/initdata.toml
    """
    from attestation.guest.decrypt import decrypt_model
    from attestation.guest.memory_fs import Exceptions, Proc

    try:
        permissions = int(mode, 8)
    except ValueError as exc:
        raise Misconfigured(
            "mode", "not permissions", where="--mode", expected="octal, e.g. 640", got=mode[:40]
        ) from exc
    opened = _open(folder, key, key_file, model_digest, source)
    exceptions = Exceptions(disk=unsafe_plaintext_on_disk, swap=unsafe_plaintext_with_swap)
    warn(
        decrypt_model(
            opened,
            target,
            exceptions=exceptions,
            proc=Proc(),
            threads=threads,
            mode=permissions & 0o777,
            progress=_progress("decrypted", opened),
        )
    )
    _show(opened, f"decrypted to {target}", output)


@model.command()
@click.argument("folder", type=FOLDER)
@_key_options
@output_option
def verify(
    folder: Path, key: str | None, key_file: Path | None, model_digest: str | None, source: Source, output: str
) -> None:
    """Open every chunk and compare every digest; nothing is written.

    \b
    Example:
      kata-gpu-guest model verify /models/llama.kgm --key-file key.bin
    """
    from attestation.guest.model import verify_file

    opened = _open(folder, key, key_file, model_digest, source)
    progress = _progress("verified", opened)
    for index, entry in enumerate(opened.manifest.files):
        verify_file(opened, index)
        progress(entry.size)
    _show(opened, "authentic and complete", output)


@model.command()
@click.argument("folder", type=FOLDER)
@click.argument("name")
@click.option("--tensor", help="Only this tensor of a safetensors file, as raw little-endian bytes.")
@_key_options
def cat(
    folder: Path,
    name: str,
    tensor: str | None,
    key: str | None,
    key_file: Path | None,
    model_digest: str | None,
    source: Source,
) -> None:
    """Write one file, or one tensor of it, to stdout. Each chunk is authenticated before it is written.

    Only a whole file ends with exit code 0: a later chunk may still be refused after earlier ones were written.

    \b
    Example:
      kata-gpu-guest model cat /models/llama.kgm config.json --key-file key.bin
    """
    from attestation.guest.model import open_file
    from attestation.guest.tensors import read_tensor

    opened = _open(folder, key, key_file, model_digest, source)
    with open_file(opened, opened.index(name)) as stored:
        for view in read_tensor(stored, tensor) if tensor else stored.chunks():
            sys.stdout.buffer.write(view)
        if not tensor:
            stored.verify_digest()


@model.command()
@click.argument("folder", type=FOLDER)
@click.option("--port", type=click.IntRange(0, 65535), default=0, show_default="any", help="Port on 127.0.0.1.")
@click.option("--token-file", type=FILE, required=True, help="Bearer token that readers must send.")
@_key_options
def serve(
    folder: Path,
    port: int,
    token_file: Path,
    key: str | None,
    key_file: Path | None,
    model_digest: str | None,
    source: Source,
) -> None:
    """Serve files and tensors on loopback without writing plaintext anywhere: HTTP with ranges.

    \b
    Example:
      kata-gpu-guest model serve /models/llama.kgm --port 8009 --token-file /run/token --key kbs:///models/llama/key
      curl -H "Authorization: Bearer $(cat /run/token)" -r 0-99 http://127.0.0.1:8009/files/config.json
    """
    from attestation.guest.serve import ModelServer

    token = token_file.read_text(encoding="utf-8").strip()
    if len(token) < 16:
        raise Misconfigured(
            "token-short", "token is too short", where=str(token_file), expected="16 characters or more"
        )
    with ModelServer(_open(folder, key, key_file, model_digest, source), port, token) as server:
        click.echo(f"http://{server.server_address[0]!s}:{server.server_address[1]}", err=True)
        server.serve_forever()


def _progress(what: str, opened: EncryptedModel) -> Progress:
    say = partial(click.echo, err=True)
    return Progress(what=what, total=opened.manifest.size, clock=time.monotonic, say=say)


def _show(opened: EncryptedModel, what: str, output: str) -> None:
    files, size = len(opened.manifest.files), opened.manifest.size
    result = {"digest": str(opened.digest), "files": files, "bytes": size}
    show(result, f"{what}: {files} files, {size} bytes, {opened.digest}", output)
