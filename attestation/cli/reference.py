"""`kata-gpu-kbs reference`: reference values, with expiry and provenance."""

import re
import sys
from datetime import timedelta
from pathlib import Path

import click

from attestation.cli.store import moment, opened, operator, read_bytes, show, store_options
from attestation.errors import Misconfigured

_LAUNCH = ("snp_launch_measurement", "mr_td")  # names that are compared with a launch measurement
_MEASUREMENT = re.compile("[0-9a-f]{96}")  # 48 bytes in both kinds of report


@click.group()
def reference() -> None:
    """Known-good values that measurements are compared with. They expire.

    \b
    Example:
      kata-gpu-kbs reference set snp_launch_measurement 4f1e... --store kbs --provenance "build 812"
    """


@reference.command("set")
@click.argument("name")
@click.argument("values", nargs=-1, required=True)
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Lifetime.")
@click.option("--provenance", required=True, help="Where the value comes from: a build, a release, a ticket.")
@store_options
def set_(
    name: str, values: tuple[str, ...], days: int, provenance: str, store: str, root_key: Path | None, output: str
) -> None:
    """Replace the accepted VALUES of NAME.

    \b
    Example:
      kata-gpu-kbs reference set snp_launch_measurement 4f1e... --store kbs --provenance "build 812"
    """
    from attestation.ops.administer import set_reference_values

    if name in _LAUNCH:
        values = tuple(value.lower() for value in values)
        for value in values:
            if not _MEASUREMENT.fullmatch(value):
                raise Misconfigured(
                    "reference-value",
                    "no launch measurement has this form: every guest would be refused",
                    where=name,
                    expected="96 hexadecimal digits",
                    got=value[:100],
                )
    with opened(store, root_key, new=True) as world:
        set_reference_values(
            world,
            operator(),
            {name: list(values)},
            provenance=provenance,
            lifetime=timedelta(days=days),
            now=moment(None),
        )
    show({"name": name, "values": list(values)}, output, [f"{name}: {len(values)} values, valid {days} days"])


@reference.command("list")
@store_options
def list_(store: str, root_key: Path | None, output: str) -> None:
    """All names with their values, expiry and provenance.

    \b
    Example:
      kata-gpu-kbs reference list --store kbs
    """
    now = moment(None)
    with opened(store, root_key) as world:
        found = [world.references.get(name) for name in world.references.names()]
    rows = [
        {
            "name": value.name,
            "values": list(value.values),
            "expires": value.expires.isoformat(),
            "provenance": value.provenance,
            "expired": value.expires <= now,
        }
        for value in found
    ]
    lines = [
        f"{row['name']}: {', '.join(v[:24] for v in row['values'][:3])}  "
        f"{'EXPIRED' if row['expired'] else 'until'} {row['expires'][:10]}  {row['provenance']}"
        for row in rows
    ]
    show({"references": rows}, output, lines or ["no reference values"])


@reference.command("import")
@click.argument("file", type=click.Path())
@click.option("--format", "kind", type=click.Choice(["sample", "swid", "corim"]), default="sample", show_default=True,
              help="JSON map; NVIDIA reference document, verified; corim is refused, being unsigned.")  # fmt: skip
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="Lifetime.")
@store_options
def import_(file: str, kind: str, days: int, store: str, root_key: Path | None, output: str) -> None:
    """Import reference values in a format of upstream's RVPS.

    \b
    Example:
      kata-gpu-kbs reference import values.json --store kbs
    """
    from attestation.ops.references import import_document

    document = read_bytes(file)
    with opened(store, root_key, new=True) as world:
        names = import_document(world, operator(), kind, document, lifetime=timedelta(days=days), now=moment(None))
    show({"imported": list(names)}, output, [f"imported {len(names)} names"])


@reference.command()
@click.option("--listen", default="127.0.0.1:50003", show_default=True, help="host:port, or unix:/path.")
@click.option("--tls-cert", type=click.Path(), help="PEM certificate chain; needed off loopback.")
@click.option("--tls-key", type=click.Path(), help="Its PEM private key.")
@store_options
def serve(
    listen: str, tls_cert: str | None, tls_key: str | None, store: str, root_key: Path | None, output: str
) -> None:
    """Serve upstream's gRPC protocol for reference values on a store that a broker may use at the same time.

    Anybody may query. Registering needs an admin token in the `authorization` metadata, or the Unix socket.

    \b
    Example:
      kata-gpu-kbs reference serve --store kbs --listen unix:/run/kbs/rvps.sock
    """
    import signal
    import threading

    from attestation.clock import utc_now
    from attestation.service.rvps import serving

    if (tls_cert is None) != (tls_key is None):
        raise Misconfigured("tls-files", "certificate and key go together", expected="--tls-cert and --tls-key")
    tls = (read_bytes(tls_cert), read_bytes(tls_key)) if tls_cert and tls_key else None
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with (
        opened(store, root_key, new=True) as world,
        serving(world, listen, clock=utc_now, local=operator(), tls=tls) as bound,
    ):
        show({"reference values": bound}, output)
        sys.stdout.flush()
        stop.wait()
