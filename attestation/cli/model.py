"""`kata-gpu-kbs model encrypt`: the owner's side of an encrypted model."""

import json
import os
import secrets
import time
from functools import partial
from pathlib import Path

import click

from attestation.cli.output import output_option
from attestation.crypto.stream import DEFAULT_CHUNK_LOG2, MAX_CHUNK_LOG2, MIN_CHUNK_LOG2, MODEL_KEY_BYTES
from attestation.errors import Malformed, Misconfigured, Unavailable
from attestation.guest.progress import Progress
from attestation.values import ResourcePath, Secret

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_MAX_TOKEN_BYTES = 64 << 10
_MAX_POLICY_BYTES = 1 << 20


@click.group()
def model() -> None:
    """Encrypt models for attested guests.

    \b
    Example:
      kata-gpu-kbs model encrypt ./llama ./llama.kgm --key-file llama.key
    """


@model.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Model key; made with mode 0600 where there is none. Needed to resume.",
)
@click.option(
    "--key", metavar="KBS-URI", help="Store the key in the broker under this name, e.g. kbs:///models/llama/key."
)
@click.option("--policy", type=_FILE, help="Release policy (TOML) to store with the key.")
@click.option("--label", "labels", multiple=True, help="Label that the key must have, e.g. test.")
@click.option("--broker", help="URL of the broker's admin listener.")
@click.option("--broker-cert", type=_FILE, help="PEM to pin for it (https).")
@click.option("--admin-token-file", type=_FILE, help="Admin token.")
@click.option("--threads", type=click.IntRange(1, 16), default=lambda: min(4, len(os.sched_getaffinity(0))),
              help="Threads that encrypt. [default: processors at hand, at most 4]")  # fmt: skip
@click.option(
    "--chunk-log2",
    type=click.IntRange(MIN_CHUNK_LOG2, MAX_CHUNK_LOG2),
    default=DEFAULT_CHUNK_LOG2,
    show_default=True,
    help="Chunk size as a power of two.",
)
@click.option("--sha256", is_flag=True, help="Add the SHA-256 of every plaintext file to the manifest (slower).")
@output_option
def encrypt(
    source: Path,
    out: Path,
    key_file: Path | None,
    key: str | None,
    policy: Path | None,
    labels: tuple[str, ...],
    broker: str | None,
    broker_cert: Path | None,
    admin_token_file: Path | None,
    threads: int,
    chunk_log2: int,
    sha256: bool,
    output: str,
) -> None:
    """Encrypt SOURCE (a folder or a file) into the folder OUT, and store the key with its release policy.

    Key, labels and policy are stored in one request before the model is encrypted. A name that is taken must hold the
    same key, the one of --key-file, so that models which it encrypted before can still be opened.

    An interrupted run goes on where it stopped when it is started again with the same --key-file; what changed in
    between is encrypted anew. Without --key-file the key is in memory and in the broker only. A line on stderr
    says every ten seconds how far it is.

    \b
    Example:
      kata-gpu-kbs model encrypt ./llama ./llama.kgm --key-file llama.key --key kbs:///models/llama/key \\
          --policy llama-policy.toml --broker https://kbs-admin:8081 --broker-cert ca.pem --admin-token-file token
    """
    from attestation.ops.model_encrypt import Options, encrypt_model
    from attestation.ops.model_sources import plan_sources

    path = ResourcePath.parse(key) if key else None
    if path is None and key_file is None:
        raise Misconfigured("model-key", "the key would be lost", expected="--key-file, or --key with --broker")
    if path is None and (broker or policy or labels):
        raise Misconfigured(
            "model-key", "the key has no name in the broker", expected="--key kbs:///repository/type/tag"
        )
    sources = plan_sources(source)
    _require_apart(source, out)
    secret = _model_key(key_file)
    if path is not None:
        _store(
            path,
            secret,
            policy=policy,
            labels=labels,
            broker=broker,
            broker_cert=broker_cert,
            token_file=admin_token_file,
        )
    total = sum(p.stat().st_size for p in sources.values())
    result = encrypt_model(
        sources,
        out,
        secret,
        random=secrets.token_bytes,
        options=Options(threads=threads, chunk_log2=chunk_log2, sha256=sha256),
        progress=Progress(what="encrypted", total=total, clock=time.monotonic, say=partial(click.echo, err=True)),
    )
    document = {
        "out": str(out),
        "files": len(result.manifest.files),
        "bytes": result.manifest.size,
        "kept_bytes": result.kept_bytes,
        "digest": str(result.digest),
        "key": str(path) if path else None,
    }
    if output == "json":
        click.echo(json.dumps(document))
        return
    kept = f", {result.kept_bytes} bytes kept from an earlier run" if result.kept_bytes else ""
    click.echo(f"encrypted {document['files']} files, {result.manifest.size} bytes{kept}, into {out}")
    click.echo(f"model digest (pin it with `kata-gpu-guest model decrypt --expect`): {result.digest}")
    if path:
        click.echo(f"key: kbs:///{path}{'' if policy else ' (no --policy: nobody gets it before the broker has one)'}")


def _require_apart(source: Path, out: Path) -> None:
    inside = source.resolve()
    if inside == out.resolve() or inside in out.resolve().parents:
        raise Misconfigured(
            "out-inside", "the output lies in what is encrypted", where=str(out), expected="another folder"
        )


def _model_key(path: Path | None) -> Secret:
    """The key of a file, made first where there is none; a fresh one without a file."""
    if path is None:
        return Secret(secrets.token_bytes(MODEL_KEY_BYTES))
    from attestation.sources.blocks import sync_folder

    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raw = _read(path, MODEL_KEY_BYTES)
        if len(raw) != MODEL_KEY_BYTES:
            raise Malformed(
                "model-key", "not a model key", where=str(path), expected=f"{MODEL_KEY_BYTES} bytes", got=len(raw)
            ) from None
        return Secret(raw)
    except OSError as exc:
        raise Misconfigured("key-file", exc.strerror or "cannot write", where=str(path)) from exc
    secret = Secret(secrets.token_bytes(MODEL_KEY_BYTES))
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(secret.expose())
            file.flush()
            os.fsync(fd)
    except OSError as exc:
        path.unlink()  # half a key is none, and would be in the way of a whole one
        raise Unavailable("key-file", exc.strerror or "cannot write", where=str(path)) from exc
    sync_folder(path.parent)  # what it will have encrypted must not outlive its name
    return secret


def _store(
    path: ResourcePath,
    secret: Secret,
    *,
    policy: Path | None,
    labels: tuple[str, ...],
    broker: str | None,
    broker_cert: Path | None,
    token_file: Path | None,
) -> None:
    """Key, labels and policy in one request: the broker has all of them or is as it was before."""
    from attestation.cli.admin_client import AdminClient

    if broker is None or token_file is None:
        raise Misconfigured("broker", "no broker to store the key in", expected="--broker and --admin-token-file")
    pem = _read(broker_cert, _MAX_POLICY_BYTES).decode("ascii", "replace") if broker_cert else None
    token = _read(token_file, _MAX_TOKEN_BYTES).decode("ascii", "replace").strip()
    client = AdminClient(broker, certificate=pem, token=token)
    client.keep_key(path, secret, labels=labels, policy=_read(policy, _MAX_POLICY_BYTES) if policy else None)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as exc:
        raise Misconfigured("file", exc.strerror or "cannot read", where=str(path)) from exc
    if len(data) > limit:
        raise Malformed("file-size", "too large", where=str(path), expected=f"at most {limit} bytes")
    return data
