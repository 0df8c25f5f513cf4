"""`kata-gpu-kbs audit`: who got which key, and proof that nobody edited the answer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attestation.cli.audit_page import lines_of
from attestation.cli.output import output_option
from attestation.cli.store import moment, opened, read_bytes, show, store_options

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@click.group()
def audit() -> None:
    """The hash-chained, signed log of every decision.

    \b
    Example:
      kata-gpu-kbs audit verify --store kbs
    """


@audit.command()
@click.option(
    "--checkpoint",
    "kept",
    type=click.Path(),
    help="A checkpoint kept elsewhere: the log must still have all that it covers.",
)
@store_options
def verify(kept: str | None, store: str, root_key: Path | None, output: str) -> None:
    """Walk the whole chain: sequence, links, digests, signatures. Exit code 1 where it is broken.

    Only a checkpoint that is kept elsewhere shows that a whole store was set back.

    \b
    Example:
      kata-gpu-kbs audit verify --store kbs --checkpoint checkpoint.json
    """
    from attestation.sources.audit_proof import Checkpoint, check_extends

    with opened(store, root_key) as world:
        length = world.audit.verify()
        if kept is not None:
            signed = Checkpoint.from_json(_json(kept))
            signed.verify(world.audit.public_key)
            check_extends(signed, world.audit.entries())
    show({"entries": length, "intact": True}, output, [f"intact: {length} entries"])


@audit.command()
@store_options
def checkpoint(store: str, root_key: Path | None, output: str) -> None:  # noqa: ARG001 - always JSON
    """Verify the log and sign its length and digests: one line of JSON to keep outside this machine.

    \b
    Example:
      kata-gpu-kbs audit checkpoint --store kbs > checkpoint.json
    """
    from attestation.sources.audit_proof import checkpoint as sign

    with opened(store, root_key) as world:
        world.audit.verify()
        click.echo(json.dumps(sign(world.audit, moment(None)).to_json(), sort_keys=True))


@audit.command("public-key")
@store_options
def public_key(store: str, root_key: Path | None, output: str) -> None:  # noqa: ARG001 - always PEM
    """The key that verifies checkpoints and proofs, as PEM.

    \b
    Example:
      kata-gpu-kbs audit public-key --store kbs > audit.pem
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    with opened(store, root_key) as world:
        pem = world.audit.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    click.echo(pem.decode(), nl=False)


@audit.command()
@click.argument("seq", type=click.IntRange(1))
@store_options
def proof(seq: int, store: str, root_key: Path | None, output: str) -> None:  # noqa: ARG001 - always JSON
    """Proof that entry SEQ is part of the log, for somebody who has only the public key.

    \b
    Example:
      kata-gpu-kbs audit proof 17 --store kbs > proof.json
    """
    from attestation.sources.audit_proof import make_proof

    with opened(store, root_key) as world:
        click.echo(json.dumps(make_proof(world.audit, seq, moment(None)), sort_keys=True))


def read_audit_key(file: str) -> "Ed25519PublicKey":
    """A public audit key from PEM, or Misconfigured."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    from attestation.errors import Misconfigured

    try:
        public = load_pem_public_key(read_bytes(file))
    except ValueError as exc:
        raise Misconfigured("audit-key", "not a public key in PEM", where=file) from exc
    if not isinstance(public, Ed25519PublicKey):
        raise Misconfigured("audit-key", "another kind of key", where=file, expected="Ed25519")
    return public


@audit.command("verify-proof")
@click.argument("file", type=click.Path())
@click.option("--key", type=click.Path(), required=True, help="Public audit key, PEM (see `audit public-key`).")
@output_option
def verify_proof(file: str, key: str, output: str) -> None:
    """Check a proof without the store: entry, signatures, Merkle path. Exit code 1 where it does not hold.

    \b
    Example:
      kata-gpu-kbs audit verify-proof proof.json --key audit.pem
    """
    from attestation.sources.audit_proof import verify_proof as check

    document = _json(file)
    entry = check(document, read_audit_key(key)).to_json()
    size = document["checkpoint"]["size"]
    show(
        {"proven": True, "entry": entry, "size": size},
        output,
        [f"proven: entry {entry['seq']} of {size}: {entry['at']} {entry['event']} {entry['subject']}"],
    )


@audit.command()
@click.option("--last", type=click.IntRange(1, 10_000), default=20, show_default=True, help="How many entries.")
@click.option("--repository", "repositories", multiple=True, help="Only what concerns this tenant.")
@store_options
def tail(last: int, repositories: tuple[str, ...], store: str, root_key: Path | None, output: str) -> None:
    """The newest decisions.

    \b
    Example:
      kata-gpu-kbs audit tail --store kbs --last 50
    """
    with opened(store, root_key) as world:
        entries = [entry.to_json() for entry in world.audit.tail(last, repositories)]
    show({"entries": entries}, output, [line for e in entries for line in lines_of(e)] or ["no entries"])


@audit.command()
@store_options
def export(store: str, root_key: Path | None, output: str) -> None:  # noqa: ARG001 - one JSON object per line, always
    """Everything, one JSON object per line, for a SIEM.

    \b
    Example:
      kata-gpu-kbs audit export --store kbs > audit.jsonl
    """
    with opened(store, root_key) as world:
        for entry in world.audit.entries():
            click.echo(json.dumps(entry.to_json(), sort_keys=True))


@audit.command()
@click.argument("path")
@store_options
def who(path: str, store: str, root_key: Path | None, output: str) -> None:
    """Who got a key: chip, GPUs, version, policy, and the collateral that the evidence was verified with.

    \b
    Example:
      kata-gpu-kbs audit who default/model/llama --store kbs
    """
    with opened(store, root_key) as world:
        entries = [entry.to_json() for entry in world.audit.about(path, "released")]
        denied = [entry.to_json() for entry in world.audit.about(path, "release-denied")]
    lines = [line for e in (*entries, *denied) for line in lines_of(e)]
    show({"released": entries, "denied": denied}, output, lines or [f"nobody asked for {path}"])


def _json(path: str) -> Any:
    from attestation.formats.json_strict import parse_json, require_object
    from attestation.sources.audit_proof import MAX_DOCUMENT_BYTES

    return require_object(parse_json(read_bytes(path), max_bytes=MAX_DOCUMENT_BYTES, what=path), path)
