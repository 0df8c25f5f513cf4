"""`kata-gpu-kbs verify`: one subcommand per kind of evidence, imported when it runs."""

import click

from attestation.guest.lazy_group import LazyGroup

SUBCOMMANDS: dict[str, tuple[str, str, str]] = {
    "nras": ("attestation.cli.verify_nras", "nras", "Verify an answer of NVIDIA's attestation service, offline."),
    "gpu": ("attestation.cli.verify_gpu", "gpu", "Verify NVIDIA GPUs and NVSwitches, offline."),
    "snp": ("attestation.cli.verify_snp", "snp", "Verify an AMD SEV-SNP report, offline."),
    "tdx": ("attestation.cli.verify_tdx", "tdx", "Verify an Intel TDX quote, offline."),
    "evidence": ("attestation.cli.verify_evidence", "evidence", "Verify a guest's CPU and GPUs together, offline."),
}


@click.group(cls=LazyGroup, table=SUBCOMMANDS)
def verify() -> None:
    """Verify evidence offline. No socket is opened; what is missing is named, never fetched.

    \b
    Example:
      kata-gpu-kbs verify gpu --report report.txt --chain chain.pem --rim rims/ --nonce 931d8d...
    """
