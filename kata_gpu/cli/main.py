"""Entry point of `kata-gpu`: the command table, and the one place that turns errors into exit codes."""

import importlib
import sys

import click

from kata_gpu import __version__
from kata_gpu.errors import ExitCode, KataGpuError

# name -> (module, attribute, short help). Modules are imported only when their command runs: start-up stays fast.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "install": ("kata_gpu.cli.install", "install", "Install on a cluster, without Helm."),
    "uninstall": ("kata_gpu.cli.install", "uninstall", "Remove an installation and prove it."),
    "conformance": ("kata_gpu.cli.conformance", "conformance", "Kubernetes AI conformance of a cluster."),
    "bind": ("kata_gpu.cli.vfio", "bind", "Bring devices and their companions to VFIO."),
    "cc": ("kata_gpu.cli.cc", "cc", "Query, set and verify the confidential-computing mode."),
    "cdi": ("kata_gpu.cli.cdi", "cdi", "Check the CDI files of this node."),
    "gc": ("kata_gpu.cli.vfio", "gc", "Remove stale CDI entries, name orphaned holders."),
    "node": ("kata_gpu.cli.node", "node", "Bring this node to its policy: plan, setup, status, reset."),
    "recover": ("kata_gpu.cli.vfio", "recover", "Undo what a killed run left half done."),
    "release": ("kata_gpu.cli.vfio", "release", "Give devices back to the drivers they came from."),
    "sim": ("kata_gpu.cli.sim", "sim", "Simulated hosts, to try everything without a GPU."),
    "vfio": ("kata_gpu.cli.vfio", "vfio", "VFIO bindings and who holds them."),
    "agent": ("kata_gpu.cli.agent", "agent", "Run the node agent: DRA driver, slices, modes, metrics."),
    "bridge": ("kata_gpu.cli.bridge", "bridge", "Hand DRA devices to unmodified Kata."),
    "claims": ("kata_gpu.cli.claims", "claims", "List the claims that this node has promised devices to."),
    "dra": ("kata_gpu.cli.dra", "dra", "Render DeviceClasses and the objects beside NVIDIA's DRA driver."),
    "status": ("kata_gpu.cli.status", "status", "One table: device, mode, binding, claim, pod, health, reason."),
    "measure": ("kata_gpu.cli.measure", "measure", "Compute expected launch measurements (SNP, TDX)."),
    "lint": ("kata_gpu.cli.lint", "lint", "Check pods and claims before the cluster does."),
    "initdata": ("kata_gpu.cli.initdata", "initdata", "Build and check init-data, the measured document of a pod."),
    "kata": ("kata_gpu.cli.kata", "kata", "Check and complete the configuration of Kata Containers."),
    "bundle": ("kata_gpu.cli.bundle", "bundle", "Write a redacted support bundle of this host."),
    "doctor": ("kata_gpu.cli.doctor", "doctor", "Check this host, and say how to fix what is wrong."),
    "explain": ("kata_gpu.cli.explain", "explain", "Explain log lines of Kata, QEMU, kernel and containerd."),
    "gpus": ("kata_gpu.cli.gpus", "gpus", "List GPUs and NVSwitches of this host."),
}

_CHANGING = frozenset({"bind", "cc", "node", "recover", "release"})  # what they do in steps is in the state directory


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def __init__(self, *, table: dict[str, tuple[str, str, str]], **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self._table = table

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Names in alphabetical order."""
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module that holds the command."""
        row = self._table.get(cmd_name)
        if row is None:
            from difflib import get_close_matches

            for near in get_close_matches(cmd_name, self._table, n=1):
                ctx.fail(f"No such command {cmd_name!r}. Did you mean {near!r}?")
            return None
        command = getattr(importlib.import_module(row[0]), row[1])
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help from the table, so that `--help` imports nothing."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._table[name][2]) for name in sorted(self._table)])


def run(group: click.Group, argv: list[str] | None = None) -> int:
    """Run a command line; errors go to stderr as one clear line, never as a traceback. Returns the exit code."""
    from kata_gpu.cli.terminal import drop_output

    try:
        result = group.main(args=argv, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.Abort:
        click.echo("interrupted", err=True)
        if not _CHANGING.isdisjoint((sys.argv[1:] if argv is None else argv)[:1]):
            click.echo("  fix: `kata-gpu recover` undoes what was half done, and so does the next setup", err=True)
        return ExitCode.NEGATIVE
    except click.ClickException as exc:
        exc.show()
        return ExitCode.USAGE
    except KataGpuError as exc:
        click.echo(f"error[{exc.code}]: {exc}", err=True)
        if exc.hint:
            click.echo(f"  fix: {exc.hint}", err=True)
        return exc.exit_code
    except BrokenPipeError:
        return ExitCode.NEGATIVE
    except OSError as exc:  # nothing that a command foresaw: above all, no room where its output goes
        click.echo(f"error[io]: {exc.filename or 'output'}: {exc.strerror or exc}", err=True)
        drop_output()
        return ExitCode.UNAVAILABLE
    return int(result) if isinstance(result, int) else ExitCode.OK


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="kata-gpu")
def cli() -> None:
    """Confidential GPU containers for Kata: this node.

    Results go to stdout, logs to stderr. Exit codes: 0 ok, 1 negative result, 2 usage or bad input, 3 in use,
    4 reboot needed, 5 rolled back, 6 timeout, 7 locked out of band, 8 unavailable.

    \b
    Example:
      kata-gpu doctor --profile gpu,snp
      kata-gpu node setup --cc-mode on --dry-run
    """


def main() -> None:
    """Console script."""
    from kata_gpu.cli.terminal import guard_output

    guard_output()
    sys.exit(run(cli))
