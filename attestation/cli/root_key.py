"""`kata-gpu-kbs root-key`: what wraps every stored key, and where it comes from."""

from pathlib import Path

import click

from attestation.cli.store import moment, opened, operator, show, store_options


@click.group()
def root_key() -> None:
    """What wraps every stored key: a private file, Vault or OpenBao Transit, or a PKCS#11 token.

    `--root-key` of every command takes a key file, or a `.toml` file that names providers (docs/operations.md).

    \b
    Example:
      kata-gpu-kbs root-key show --store /var/lib/kbs
    """


@root_key.command()
@click.option("--file", type=click.Path(path_type=Path), help="New key file, mode 0600.")
@click.option("--pkcs11-module", type=click.Path(path_type=Path), help="PKCS#11 library; the key is made in the token.")
@click.option("--token", help="Label of the token.")
@click.option("--key", help="Label of the new key.")
@click.option("--pin-file", type=click.Path(path_type=Path), help="File with the user PIN.")
def create(
    file: Path | None, pkcs11_module: Path | None, token: str | None, key: str | None, pin_file: Path | None
) -> None:
    """Make a root key: in a file, or inside a PKCS#11 token, which it never leaves. Transit keys are made by Vault.

    \b
    Example:
      kata-gpu-kbs root-key create --file /etc/kbs/root-2.key
    """
    import secrets

    from attestation.errors import Misconfigured
    from attestation.sources.envelope import FileRootKey
    from attestation.sources.roots.hsm import HsmKey

    if (file is None) == (pkcs11_module is None):
        raise Misconfigured("root-key-option", "say where", expected="either --file or --pkcs11-module")
    if file is not None:
        click.echo(f"created {FileRootKey.create(file, secrets.token_bytes).name}")
        return
    if pkcs11_module is None or not token or not key or pin_file is None:
        raise Misconfigured("root-key-option", "say which token and key", expected="--token, --key and --pin-file")
    where = HsmKey(module=pkcs11_module, token=token, label=key, pin_file=pin_file)
    where.generate()
    click.echo(f"created {where.name}")


@root_key.command()
@store_options
def rotate(store: str, root_key: Path | None, output: str) -> None:
    """Wrap every stored secret with the root key that is configured for it now.

    Make the new key `[root]` and the former one `[[retired]]` first. Brokers go on serving; they read the
    configuration again when they meet a new root key.

    \b
    Example:
      kata-gpu-kbs root-key rotate --store /var/lib/kbs --root-key /etc/kbs/roots.toml
    """
    from attestation.ops.root_keys import root_uses, rotate_root

    with opened(store, root_key) as world:
        done = rotate_root(world, operator(), now=moment(None))
        idle = [use.name for use in root_uses(world) if not use.wraps]
    show({"rewrapped": done, "unused": idle}, output, [f"{done} secrets rewrapped", *(f"unused: {n}" for n in idle)])


@root_key.command("show")
@store_options
def show_(store: str, root_key: Path | None, output: str) -> None:
    """Root keys by name, and how many stored secrets each of them wraps. Exit code 1 where one is missing.

    \b
    Example:
      kata-gpu-kbs root-key show --store /var/lib/kbs
    """
    from attestation.errors import ExitCode
    from attestation.ops.root_keys import root_uses

    with opened(store, root_key) as world:
        uses = root_uses(world)
    rows = [{"name": use.name, "wraps": use.wraps, "known": use.known} for use in uses]
    lines = [f"{use.name}  wraps {use.wraps}{'' if use.known else '  NOT CONFIGURED'}" for use in uses]
    show({"roots": rows}, output, lines)
    if not all(use.known for use in uses):
        raise click.exceptions.Exit(ExitCode.NEGATIVE)


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
