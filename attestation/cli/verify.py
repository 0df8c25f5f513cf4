"""`kata-gpu-kbs verify`: one subcommand per kind of evidence, imported when it runs."""

import click

from attestation.cli.main import LazyGroup

SUBCOMMANDS: dict[str, tuple[str, str, str]] = {
    "gpu": ("attestation.cli.verify_gpu", "gpu", "Verify NVIDIA GPUs and NVSwitches, offline."),
}


@click.group(cls=LazyGroup, table=SUBCOMMANDS)
def verify() -> None:
    """Verify evidence offline. No socket is opened; what is missing is named, never fetched.

    \b
    Example:
      kata-gpu-kbs verify gpu --report report.txt --chain chain.pem --rim rims/ --nonce 931d8d...
    """
