"""`kata-gpu-kbs snapshot`: a consistent copy of the embedded store, for backups that read volumes."""

from pathlib import Path

import click


@click.command()
@click.option("--store", type=click.Path(path_type=Path), required=True, help="Directory of the embedded store.")
@click.option("--out", "target", type=click.Path(path_type=Path), required=True, help="File to write; replaced whole.")
def snapshot(store: Path, target: Path) -> None:
    """Copy the embedded store while the broker serves from it.

    Keys in the copy are wrapped by the root key, which is not in it: keep that elsewhere. To restore, stop the broker
    and put the file back as kbs.sqlite3. For one encrypted file with everything see `backup`.

    \b
    Example:
      kata-gpu-kbs snapshot --store /data/store --out /data/snapshot/kbs.sqlite3
    """
    from attestation.sources.sqlite_snapshot import snapshot as copy

    click.echo(f"{target}: {copy(store, target)} bytes")
