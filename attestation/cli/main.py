"""Entry point of `kata-gpu-kbs`: the command table, and the one place that turns errors into exit codes."""

import os
import sys
import warnings
from contextlib import suppress

import click

from attestation import __version__
from attestation.errors import AttestationError, ExitCode
from attestation.guest.lazy_group import LazyGroup

# name -> (module, attribute, short help). Modules are imported only when their command runs: start-up stays fast.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "collateral": (
        "attestation.cli.collateral",
        "collateral",
        "Reference documents and revocation: fetch, carry, show.",
    ),
    "explain": ("attestation.cli.explain", "explain", "A result of verify as one page: proven, not proven, to do."),
    "nras": ("attestation.cli.nras", "nras", "NVIDIA-shaped attestation service and RIM mirror."),
    "image-key": ("attestation.cli.image_key", "image_key", "Sealed secrets and image layer keys for stock guests."),
    "migrate": ("attestation.cli.migrate", "migrate", "Configuration and resources of upstream's key broker."),
    "model": ("attestation.cli.model", "model", "Encrypt models for attested guests."),
    "simulate": ("attestation.cli.simulate", "simulate", "Forged evidence and a simulated VM, without hardware."),
    "verify": ("attestation.cli.verify", "verify", "Verify evidence offline: gpu, snp, tdx, evidence."),
    "key": ("attestation.cli.key", "key", "Keys, their versions and release policies."),
    "policy": ("attestation.cli.policy", "policy", "Check, test, explain and compare release policies."),
    "reference": ("attestation.cli.reference", "reference", "Reference values with expiry and provenance."),
    "user": ("attestation.cli.user", "user", "Administrators and their tokens."),
    "root-key": ("attestation.cli.root_key", "root_key", "Put the root key where the broker demands it."),
    "snapshot": ("attestation.cli.snapshot", "snapshot", "Copy the embedded store while it is in use."),
    "token-key": ("attestation.cli.token_key", "token_key", "The key that signs tokens: request a certificate."),
    "audit": ("attestation.cli.audit", "audit", "Who got which key; verify and export the log."),
    "backup": ("attestation.cli.backup", "backup", "One encrypted file with everything, and back."),
    "store": ("attestation.cli.store_verify", "store", "Whether the rows are those that the audit log names."),
    "revoke": ("attestation.cli.revoke", "revoke", "Refuse an identity or firmware from now on."),
    "lease": ("attestation.cli.revoke", "lease", "Who holds which key at present."),
    "tenant": ("attestation.cli.tenant", "tenant", "Limits of a repository."),
    "serve": ("attestation.cli.serve", "serve", "Serve keys to attested guests, and the admin API."),
}


def run(group: click.Group, argv: list[str] | None = None) -> int:
    """Run a command line; errors go to stderr as one clear line, never as a traceback. Returns the exit code."""
    # What `cryptography` finds odd in hostile certificates is judged by our findings, not printed between them.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"attestation\.")
    try:
        result = group.main(args=argv, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        return ExitCode.NEGATIVE
    except click.ClickException as exc:
        exc.show()
        return ExitCode.USAGE
    except AttestationError as exc:
        click.echo(f"error[{exc.code}]: {exc}", err=True)
        return exc.exit_code
    except BrokenPipeError:
        return ExitCode.NEGATIVE
    except OSError as exc:  # nothing that a command foresaw: above all, no room where its output goes
        click.echo(f"error[io]: {exc.filename or 'output'}: {exc.strerror or exc}", err=True)
        _drop_output()
        return ExitCode.UNAVAILABLE
    return int(result) if isinstance(result, int) else ExitCode.OK


def _drop_output() -> None:
    """Standard output took no more: what is buffered goes nowhere, or Python would fail on it again at its exit."""
    with suppress(OSError, ValueError):  # a test's stream has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kata-gpu-kbs")
def cli() -> None:
    """Attestation service and key broker for confidential GPUs.

    Results go to stdout, logs to stderr. Exit codes: 0 ok, 1 negative result, 2 usage or bad input, 3 in use,
    4 reboot needed, 5 rolled back, 6 timeout, 7 locked out of band, 8 unavailable.

    \b
    Example:
      kata-gpu-kbs verify gpu --report report.bin --chain chain.pem --rim rims/ --nonce 4cff...
      kata-gpu-kbs serve --store /var/lib/kbs --collateral /var/lib/collateral
      kata-gpu-kbs audit tail --store /var/lib/kbs
    """


def main() -> None:
    """Console script."""
    sys.exit(run(cli))
