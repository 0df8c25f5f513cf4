"""Entry point of `kata-gpu-guest`: lazy commands, and the one place that turns errors into exit codes.

In a pod the same line that goes to stderr goes to the termination message file, so that `kubectl describe pod` shows
why an init container stopped. Kubelet reads at most 4096 bytes of it.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import click

from attestation import __version__
from attestation.errors import AttestationError, ExitCode
from attestation.guest.lazy_group import LazyGroup

if TYPE_CHECKING:
    from attestation.guest.machine import Machine

TERMINATION_LOG = "/dev/termination-log"  # Kubernetes' default terminationMessagePath
MAX_TERMINATION_BYTES = 4096  # kubelet cuts there

# name -> (module, attribute, short help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "evidence": ("attestation.guest.commands.evidence", "evidence", "Collect evidence of this VM."),
    "key": ("attestation.guest.commands.key", "key", "Get a key from the broker."),
    "model": ("attestation.guest.commands.model", "model", "Decrypt, verify, read or serve an encrypted model."),
    "ready": ("attestation.guest.commands.ready", "ready", "Let the GPUs work once they are attested."),
}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kata-gpu-guest")
@click.option(
    "--termination-log",
    type=click.Path(path_type=Path, dir_okay=False),
    default=TERMINATION_LOG,
    show_default=True,
    help="Write the reason of a failure here too, if the file exists.",
)
def cli(termination_log: Path) -> None:
    """Evidence, key and weights inside a confidential VM.

    Results go to stdout, logs to stderr. Exit codes: 0 ok, 1 refused or not authentic, 2 usage or bad input,
    6 timeout, 8 unavailable (try again).

    \b
    Example:
      kata-gpu-guest model decrypt /models/llama.kgm /weights --key kbs:///models/llama/key \\
          --init-data /run/initdata.toml
    """


def run(argv: list[str] | None = None, *, machine: "Machine | None" = None) -> int:
    """Run a command line; errors go to stderr and the termination message as one clear line. Returns the exit code.

    `machine` is where evidence comes from: this VM, unless a test has another one.
    """
    with suppress(ValueError):  # only the main thread of a process may; anything else is a test
        signal.signal(signal.SIGTERM, _stop)
    arguments = sys.argv[1:] if argv is None else argv
    log = _termination_log(arguments)
    try:
        result = cli.main(args=arguments, standalone_mode=False, obj=machine)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _fail(log, "interrupted", ExitCode.NEGATIVE)
    except click.ClickException as exc:
        exc.show()
        _leave(log, exc.format_message())
        return ExitCode.USAGE
    except AttestationError as exc:
        return _fail(log, f"error[{exc.code}]: {exc}", exc.exit_code)
    except BrokenPipeError:
        return ExitCode.NEGATIVE
    except OSError as exc:  # nothing that a command foresaw: above all, no room where its output goes
        _drop_output()
        where = exc.filename or "output"
        return _fail(log, f"error[io]: {where}: {exc.strerror or exc}", ExitCode.UNAVAILABLE)
    return int(result) if isinstance(result, int) else ExitCode.OK


def _stop(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Kubelet's SIGTERM unwinds like Ctrl-C: what was half done is removed."""
    raise KeyboardInterrupt


def _termination_log(arguments: list[str]) -> Path:
    """The file, even when the command line is wrong elsewhere and never parsed."""
    for at, argument in enumerate(arguments):
        if argument.startswith("--termination-log="):
            return Path(argument.partition("=")[2])
        if argument == "--termination-log" and at + 1 < len(arguments):
            return Path(arguments[at + 1])
    return Path(TERMINATION_LOG)


def _fail(log: Path, line: str, code: ExitCode) -> ExitCode:
    click.echo(line, err=True)
    _leave(log, line)
    return code


def _drop_output() -> None:
    """Standard output took no more: what is buffered goes nowhere, or Python would fail on it again at its exit."""
    with suppress(OSError, ValueError):  # a test's stream has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _leave(log: Path, line: str) -> None:
    with suppress(OSError):
        if log.is_file():
            log.write_bytes(line.encode("utf-8", "replace")[:MAX_TERMINATION_BYTES])


def main() -> None:
    """Console script. A crash writes no plaintext and no key to a disk."""
    from attestation.hardening import forbid_dumps

    forbid_dumps()
    sys.exit(run())
