"""`kata-gpu-kbs backup`: the whole broker in one encrypted file, and back on another machine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from attestation.cli.output import output_option
from attestation.cli.store import moment, opened, read_bytes, show, store_options
from attestation.errors import Misconfigured
from attestation.values import Secret

F = TypeVar("F", bound=Callable[..., Any])


@click.group()
def backup() -> None:
    """Keys, policies, reference values, users, revocations and the audit log, as of one moment.

    Root key files are in it; keys in Vault or an HSM are not, and are needed again for a restore.

    \b
    Example:
      kata-gpu-kbs backup create broker.backup --store /var/lib/kbs --passphrase-file /etc/kbs/backup.pass
    """


def _opening(command: F) -> F:
    for option in (
        click.option(
            "--audit-key",
            type=click.Path(),
            metavar="FILE",
            help="Public audit key of the broker that it must be of, PEM (see `audit public-key`).",
        ),
        click.option("--recipient-key", type=click.Path(), metavar="FILE", help="Private key of the recipient, PEM."),
        click.option(
            "--passphrase-file",
            type=click.Path(),
            metavar="FILE",
            help="File that holds the passphrase; `-` for stdin.",
        ),
    ):
        command = option(command)
    return command


@backup.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--passphrase-file", type=click.Path(), metavar="FILE", help="File that holds the passphrase; `-` for stdin."
)
@click.option(
    "--recipient",
    type=click.Path(),
    metavar="FILE",
    help="Public key, PEM (P-256, P-521, RSA): this machine cannot read it.",
)
@store_options
def create(
    file: Path, passphrase_file: str | None, recipient: str | None, store: str, root_key: Path | None, output: str
) -> None:
    """Write FILE, mode 0600. The broker goes on serving.

    \b
    Example:
      kata-gpu-kbs backup create broker.backup --store /var/lib/kbs --recipient backup.pub.pem
    """
    import secrets

    from attestation.crypto.backup import to_passphrase, to_recipient
    from attestation.ops.backup import create_backup
    from attestation.sources.atomic import write_atomic

    if (passphrase_file is None) == (recipient is None):
        raise Misconfigured("backup-key", "say who may read it", expected="--passphrase-file or --recipient")
    if passphrase_file is not None:
        sealer = to_passphrase(_passphrase(passphrase_file), secrets.token_bytes)
    else:
        sealer = to_recipient(_public(recipient or ""), secrets.token_bytes)
    with opened(store, root_key) as world:
        raw = create_backup(world, sealer, now=moment(None))
    write_atomic(file, raw, mode=0o600)
    show({"file": str(file), "bytes": len(raw)}, output, [f"{file}: {len(raw)} bytes"])


@backup.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_opening
@click.option("--root-key", type=click.Path(path_type=Path), help="Where root keys are in Vault or an HSM.")
@output_option
def verify(
    file: Path,
    passphrase_file: str | None,
    recipient_key: str | None,
    audit_key: str | None,
    root_key: Path | None,
    output: str,
) -> None:
    """Restore FILE into nowhere: every secret must open and the audit chain must hold. Exit code 1 where not.

    Anybody who has a recipient's public key can make such a file: `--audit-key` says whose it must be.

    \b
    Example:
      kata-gpu-kbs backup verify broker.backup --passphrase-file /etc/kbs/backup.pass
    """
    from attestation.ops.backup import verify_backup

    opener, origin = _opener(passphrase_file, recipient_key), _origin(audit_key)
    report = verify_backup(_read(file), opener, _ring(root_key), origin=origin, now=moment(None))
    _show(report, "good", audit_key, passphrase_file, output)


@backup.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@_opening
@click.option("--store", type=click.Path(), required=True, help="Empty: a new directory, or postgresql://...")
@click.option("--root-key", type=click.Path(path_type=Path), help="Where root keys are in Vault or an HSM.")
@click.option("--keys-to", type=click.Path(path_type=Path, file_okay=False),
              help="Directory for root key files. Default: the store's, where that is a directory.")  # fmt: skip
@output_option
def restore(
    file: Path,
    passphrase_file: str | None,
    recipient_key: str | None,
    audit_key: str | None,
    store: str,
    root_key: Path | None,
    keys_to: Path | None,
    output: str,
) -> None:
    """Fill an empty store from FILE and verify it. What was revoked after the backup must be revoked again.

    Anybody who has a recipient's public key can make such a file: `--audit-key` says whose it must be.

    \b
    Example:
      kata-gpu-kbs backup restore broker.backup --recipient-key backup.pem --audit-key audit.pem --store /var/lib/kbs
    """
    from attestation.ops.backup import restore_backup

    if root_key is None and keys_to is None and "://" in store:
        raise Misconfigured("restore-keys", "say where root keys go", expected="--keys-to or --root-key")
    opener = _opener(passphrase_file, recipient_key)
    target = keys_to or (Path(store) if "://" not in store else None)
    ring, origin = _ring(root_key), _origin(audit_key)
    report = restore_backup(_read(file), opener, store, ring, keys=target, origin=origin, now=moment(None))
    _show(report, "restored", audit_key, passphrase_file, output)


def _show(report: Any, verdict: str, audit_key: str | None, passphrase_file: str | None, output: str) -> None:
    proven = "passphrase" if passphrase_file else "not-proven"
    origin = "audit-key" if audit_key else proven
    body = {
        "origin": origin,
        "made": report.made,
        "secrets": report.secrets,
        "audit_entries": report.audit_entries,
        "sealed": report.sealed,
        "rows": dict(report.rows),
        "root_key": None if report.root_key is None else str(report.root_key),
    }
    lines = [f"{verdict}: made {report.made}, {report.secrets} secrets, {report.audit_entries} audit entries"]
    lines += [f"origin: {origin}"]
    lines += (
        [] if report.sealed else ["configuration: not sealed, of an older version; restored, it needs `store seal`"]
    )
    lines += [f"root key: {report.root_key}"] if report.root_key else []
    show(body, output, lines)


def _read(file: Path) -> bytes:
    from attestation.ops.backup import MAX_BACKUP_BYTES
    from attestation.sources.atomic import read_bounded

    return read_bounded(file, MAX_BACKUP_BYTES * 2)


def _passphrase(file: str) -> Secret:
    return Secret(read_bytes(file).rstrip(b"\r\n"))


def _opener(passphrase_file: str | None, recipient_key: str | None) -> Any:
    from attestation.crypto.backup import by_passphrase, by_recipient

    if (passphrase_file is None) == (recipient_key is None):
        raise Misconfigured("backup-key", "say how to open it", expected="--passphrase-file or --recipient-key")
    if passphrase_file is not None:
        return by_passphrase(_passphrase(passphrase_file))
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_bytes(recipient_key or ""), None)
    except (ValueError, TypeError) as exc:
        raise Misconfigured("backup-key", "not a private key in PEM", where=recipient_key or "") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise Misconfigured("backup-key", "another kind of key", expected="P-256, P-521 or RSA")
    return by_recipient(key)


def _public(file: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from attestation.crypto.jwk import tee_key_of

    try:
        key = load_pem_public_key(read_bytes(file))
    except ValueError as exc:
        raise Misconfigured("backup-key", "not a public key in PEM", where=file) from exc
    if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
        raise Misconfigured("backup-key", "another kind of key", expected="P-256, P-521 or RSA")
    return tee_key_of(key)


def _origin(audit_key: str | None) -> Any:
    from attestation.cli.audit import read_audit_key

    return None if audit_key is None else read_audit_key(audit_key)


def _ring(root_key: Path | None) -> Any:
    import secrets

    from attestation.sources.roots.config import load_root_keys

    return None if root_key is None else load_root_keys(root_key, secrets.token_bytes)
