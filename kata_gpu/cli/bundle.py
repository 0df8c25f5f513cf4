"""`kata-gpu bundle`: a support bundle that doctor can read elsewhere."""

import json
from pathlib import Path

import click

from kata_gpu.errors import ExitCode


@click.command()
@click.option("-o", "--out", "file", type=click.Path(path_type=Path, dir_okay=False), required=True,
              metavar="FILE.tar.gz", help="Where to write it (mode 0600).")  # fmt: skip
@click.option("--profile", metavar="LIST", help="Profiles for the report inside, as for doctor.")
@click.option(
    "--host-root", type=click.Path(path_type=Path), metavar="PATH", help="A mounted root instead of this host."
)
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)
def bundle(file: Path, profile: str | None, host_root: Path | None, output: str) -> int:
    """Write what doctor reads into one archive: redacted, bounded, and enough to get the same report offline.

    Secrets, private keys, tokens, MAC addresses and IP addresses are replaced; other processes, pods and environment
    variables are not collected. Look through it before you send it: host names and PCI addresses stay.

    \b
    Example:
      kata-gpu bundle -o node-1.tar.gz
      kata-gpu doctor --host-root node-1.tar.gz
    """
    from kata_gpu.cli.doctor import parse_profiles
    from kata_gpu.clock import utc_now
    from kata_gpu.ops.bundle import create
    from kata_gpu.ops.doctor import source

    with source(root=host_root) as host:
        written = create(host, file, now=utc_now(), profiles=parse_profiles(profile))
    size = file.stat().st_size
    if output == "json":
        click.echo(json.dumps({"file": str(file), "bytes": size, "entries": written.entries}))
    else:
        click.echo(f"{file}: {written.entries} entries, {size} bytes; read it with kata-gpu doctor --host-root {file}")
    return ExitCode.OK
