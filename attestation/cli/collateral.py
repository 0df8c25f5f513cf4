"""`kata-gpu-kbs collateral`: fill a store, carry it across an air gap as one signed file, look at what expires."""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attestation.cli.collateral_fetch import FILE, PATH, STORE, fetch
from attestation.cli.output import output_option
from attestation.clock import parse_time, utc_now
from attestation.errors import ExitCode, Malformed, Misconfigured
from attestation.formats.collateral import Kind, State

if TYPE_CHECKING:
    from attestation.formats.collateral import Document
    from attestation.sources.collateral_store import CollateralStore

_MIN_PREFIX = 8  # hex digits of a digest on the command line


@click.group()
def collateral() -> None:
    """Reference documents, revocation answers and CPU collateral: fetch, carry, import, look.

    Verification never fetches. Fill a store with `fetch` where there is a network; `build` makes one signed file of
    it; `import` takes that file where there is none.

    \b
    Example:
      kata-gpu-kbs collateral fetch --store /var/lib/collateral --rim NV_GPU_DRIVER_GH100_580.95.05
    """


collateral.add_command(fetch)


@collateral.command()
@click.argument("private", type=PATH)
@click.argument("public", type=PATH)
def keygen(private: Path, public: Path) -> None:
    """Make the Ed25519 pair that signs bundles: PRIVATE stays where bundles are built, PUBLIC goes to every site.

    \b
    Example:
      kata-gpu-kbs collateral keygen bundle.key bundle.pub
    """
    from attestation.sources.bundle import write_key_pair

    write_key_pair(private, public)
    click.echo(f"private key: {private} (keep it offline)\npublic key: {public} (pin it: `collateral import --key`)")


@collateral.command()
@STORE
@click.option("--key", type=FILE, required=True, help="Private key that signs: Ed25519 or P-384, PEM.")
@click.option("--issued-at", metavar="RFC3339", help="Issue time instead of now: equal input then gives equal bytes.")
@click.argument("out", type=PATH)
@output_option
def build(store: Path, key: Path, issued_at: str | None, out: Path, output: str) -> None:
    """Write everything usable in the store to OUT: one signed, reproducible file for air-gapped sites.

    \b
    Example:
      kata-gpu-kbs collateral build --store c --key bundle.key 2026-11.kgpubundle
    """
    from attestation.formats.bundle import parse_bundle
    from attestation.sources.atomic import write_atomic
    from attestation.sources.bundle import build_bundle, read_signer
    from attestation.sources.collateral_store import CollateralStore

    moment = parse_time(issued_at, where="--issued-at") if issued_at else utc_now()
    documents = [s.document for s in CollateralStore(store).stored()]
    raw = build_bundle(documents, read_signer(key), issued_at=moment)
    write_atomic(out, raw)
    built = parse_bundle(raw)
    result = {"id": str(built.digest), "documents": len(built.documents), "bytes": len(raw), "file": str(out)}
    click.echo(
        json.dumps(result)
        if output == "json"
        else f"{out}: {len(built.documents)} documents, {len(raw)} bytes\nid {built.digest}"
    )


@collateral.command("import")
@STORE
@click.option("--key", type=FILE, help="Your pinned public key, for bundles. Never taken from the bundle.")
@click.option("--allow-rollback", is_flag=True, help="Accept a bundle older than the one in use.")
@click.option("--rims", type=PATH, multiple=True, help="Reference document, or a directory of them.")
@click.option("--kds", type=PATH, multiple=True, help="Offline copy of AMD's KDS in trustee's layout.")
@click.option("--tdx", type=FILE, multiple=True, help="Intel collateral: dcap-qvl or PcsClientTool JSON.")
@click.option("--jwks", type=FILE, help="Key set of a token issuer, with --issuer-host.")
@click.option(
    "--issuer-host",
    default="nras.attestation.nvidia.com",
    show_default=True,
    help="Host in the issuer that tokens name.",
)
@click.argument("bundle", type=FILE, required=False)
@output_option
def import_(**options: Any) -> None:
    """Import a signed BUNDLE, or files of other origin.

    A bundle replaces what the previous bundle brought; documents of this site stay.

    \b
    Examples:
      kata-gpu-kbs collateral import --store c --key bundle.pub 2026-11.kgpubundle
      kata-gpu-kbs collateral import --store c --rims rims/ --kds kds-store/ --tdx platform_collaterals.json
    """
    from attestation.sources.bundle import import_bundle
    from attestation.sources.collateral_store import CollateralStore

    store, now = CollateralStore(options["store"]), utc_now()
    result: dict[str, Any] = {"bundle": None, "new": 0}
    if options["bundle"] is not None:
        if options["key"] is None:
            raise Misconfigured("bundle-key", "a bundle needs the key that you pinned", expected="--key PUBLIC.pem")
        info, result["new"] = import_bundle(
            store, options["bundle"], options["key"], now=now, allow_rollback=options["allow_rollback"]
        )
        result["bundle"] = info.to_json(now)
    documents = list(_files(options, now))
    if options["bundle"] is None and not documents:
        raise Misconfigured("nothing-to-import", "name something", expected="BUNDLE, --rims, --kds, --tdx or --jwks")
    result["new"] += sum(store.add(document) for document in documents)
    if options["output"] == "json":
        click.echo(json.dumps(result))
        return
    if result["bundle"]:
        click.echo(f"bundle {result['bundle']['id']} issued {result['bundle']['issued-at']} is in use")
    click.echo(f"{result['new']} new documents")


def _files(options: dict[str, Any], now: datetime) -> Iterator["Document"]:
    """Documents of the file options; everything is read before anything is written."""
    from attestation.sources.amd_kds import read_offline_copy
    from attestation.sources.collateral_files import read_jwks_file, read_rim_files, read_tdx_file

    for path in options["rims"]:
        yield from read_rim_files(path, now=now)
    for path in options["kds"]:
        yield from read_offline_copy(path, now=now)
    for path in options["tdx"]:
        yield from read_tdx_file(path, now=now)
    if options["jwks"] is not None:
        yield read_jwks_file(options["jwks"], options["issuer_host"], now=now)


@collateral.command()
@STORE
@click.option("--kind", type=click.Choice([str(k) for k in Kind]), help="Only this kind.")
@click.option("--expiring", type=click.IntRange(0, 3650), metavar="DAYS", help="Only what ends within DAYS.")
@click.option("--at", metavar="RFC3339", help="As of this time instead of now.")
@output_option
def show(store: Path, kind: str | None, expiring: int | None, at: str | None, output: str) -> int:
    """List the store: bundle in use, documents, and what expires when. With --expiring, exit code 1 if any does.

    \b
    Example:
      kata-gpu-kbs collateral show --store c --expiring 14
    """
    from attestation.sources.collateral_store import CollateralStore

    now = parse_time(at, where="--at") if at else utc_now()
    opened = CollateralStore(store)
    bundle = opened.bundle_in_use()
    rows = [_row(s.document, now) for s in opened.stored() if kind in {None, str(s.document.kind)}]
    if expiring is not None:
        limit = now + timedelta(days=expiring)
        rows = [
            r for r in rows if r["state"] != State.RETIRED and r["ends"] and datetime.fromisoformat(r["ends"]) <= limit
        ]
    if output == "json":
        click.echo(json.dumps({"bundle": bundle.to_json(now) if bundle else None, "documents": rows}, indent=2))
    else:
        click.echo(_table(rows, bundle.to_json(now) if bundle else None))
    return ExitCode.NEGATIVE if expiring is not None and rows else ExitCode.OK


def _row(document: "Document", now: datetime) -> dict[str, Any]:
    from attestation.sources.expiry import expiry_of

    try:
        end, note = expiry_of(document), ""
    except Malformed as exc:
        end, note = None, exc.code
    return {
        "kind": str(document.kind),
        "id": document.id,
        "sha256": document.sha256,
        "state": str(document.state),
        "first_seen": document.first_seen.isoformat(),
        "ends": end.isoformat() if end else None,
        "expired": end is not None and end < now,
        "source": document.source,
        "note": note,
    }


def _table(rows: Sequence[dict[str, Any]], bundle: Any) -> str:
    head = (
        f"bundle {bundle['id']}\n  issued {bundle['issued-at']}, {bundle['age-seconds'] // 86400} days old"
        if bundle
        else "no bundle imported"
    )
    lines = [head, "", f"{'KIND':<7} {'ENDS':<11} {'STATE':<8} {'SHA256':<12} ID"]
    for row in rows:
        ends = row["ends"][:10] if row["ends"] else (row["note"] or "-")
        mark = "!" if row["expired"] else " "
        shown = row["id"] if len(row["id"]) <= 60 else f"{row['id'][:57]}..."
        lines.append(f"{row['kind']:<7} {ends:<10}{mark} {row['state']:<8} {row['sha256'][:12]} {shown}")
    expired = sum(1 for row in rows if row["expired"] and row["state"] != State.RETIRED)
    return "\n".join([*lines, "", f"{len(rows)} documents, {expired} expired (marked !)"])


def _state_command(name: str, state: State, text: str) -> None:
    """`retire`, `pin` and `activate` differ in one word."""

    @collateral.command(
        name, help=f"{text}\n\n\b\nExample:\n  kata-gpu-kbs collateral {name} --store c rim NV_... 059b32e7"
    )
    @STORE
    @click.argument("kind", type=click.Choice([str(k) for k in Kind]))
    @click.argument("identifier", metavar="ID")
    @click.argument("sha256", metavar="SHA256")
    def command(store: Path, kind: str, identifier: str, sha256: str) -> None:
        from attestation.sources.collateral_store import CollateralStore

        opened = CollateralStore(store)
        full = _resolve(opened, Kind(kind), identifier, sha256.lower())
        document = opened.set_state(Kind(kind), identifier, full, state)
        click.echo(f"{document.kind} {document.id} {document.sha256}: {document.state}")


def _resolve(store: "CollateralStore", kind: Kind, identifier: str, prefix: str) -> str:
    """The one stored digest that starts with `prefix`."""
    found = [
        s.document.sha256
        for s in store.stored()
        if (s.document.kind, s.document.id) == (kind, identifier) and s.document.sha256.startswith(prefix)
    ]
    if len(prefix) < _MIN_PREFIX or len(found) != 1:
        raise Misconfigured(
            "not-stored", "no single document has this digest", where=f"{kind} {identifier}",
            expected=f"at least {_MIN_PREFIX} hex digits of one", got=f"{prefix}: {len(found)} match",
        )  # fmt: skip
    return found[0]


_state_command("retire", State.RETIRED, "Keep a document but never use it again.")
_state_command("pin", State.PINNED, "Use only the pinned documents of this id.")
_state_command("activate", State.ACTIVE, "Undo `retire` and `pin`.")
