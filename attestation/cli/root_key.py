"""`kata-gpu-kbs root-key`: the file that wraps every stored key."""

from pathlib import Path

import click


@click.group()
def root_key() -> None:
    """Put the root key where the broker demands it.

    \b
    Example:
      kata-gpu-kbs root-key install --from /secret/root.key --to /keys/root.key
    """


@root_key.command()
@click.option("--from", "source", type=click.Path(path_type=Path), required=True,
              help="File with the 32 bytes, such as a mounted Secret.")  # fmt: skip
@click.option("--to", "target", type=click.Path(path_type=Path), required=True,
              help="Private regular file (mode 0600) for `serve --root-key`.")  # fmt: skip
def install(source: Path, target: Path) -> None:
    """Copy a root key to a private regular file.

    A mounted Secret is a symlink to a file that its group can read; the broker takes neither. The same key may be
    installed again; another key at the target is never overwritten, because what it wrapped would be lost.

    \b
    Example:
      kata-gpu-kbs root-key install --from /secret/root.key --to /keys/root.key
    """
    import secrets

    from attestation.errors import Misconfigured
    from attestation.sources.atomic import read_bounded, write_atomic
    from attestation.sources.envelope import KEY_BYTES, FileRootKey
    from attestation.values import Secret

    raw = read_bounded(source, KEY_BYTES)
    if len(raw) != KEY_BYTES:
        raise Misconfigured("root-key-length", "wrong length", where=str(source), expected=KEY_BYTES, got=len(raw))
    name = FileRootKey(Secret(raw), secrets.token_bytes).name
    if target.is_symlink() or target.exists():
        if FileRootKey.load(target, secrets.token_bytes).name != name:
            raise Misconfigured("root-key-exists", "another root key is there", where=str(target))
        click.echo(f"{name} is in place")
        return
    write_atomic(target, raw, mode=0o600)
    click.echo(f"installed {name}")
