"""`kata-gpu kata check|render|diff`: Kata's effective configuration, what is wrong with it, and our drop-in."""

import difflib
import json
from pathlib import Path

import click

from kata_gpu.cli.kata_containerd import containerd
from kata_gpu.core.kata.check import check as check_effective
from kata_gpu.core.kata.dropin import FILE_NAME, render_dropin
from kata_gpu.core.kata.effective import Effective, Runtime, merge
from kata_gpu.core.kata.settings import DEFAULT_TIMEOUT_S, Needs, Tee
from kata_gpu.core.kata.timeouts import KUBELET_DEFAULT_S, Timeouts, solve
from kata_gpu.core.podresources import BRIDGE_SOCKET
from kata_gpu.errors import ExitCode, Misconfigured
from kata_gpu.host.kata_files import KataFiles

_HANDLERS = ("kata-qemu-nvidia-gpu", "kata-qemu-nvidia-gpu-snp", "kata-qemu-nvidia-gpu-tdx")


@click.group()
def kata() -> None:
    """Check and complete the configuration of Kata Containers on this node.

    \b
    Example:
      kata-gpu kata check --handler kata-qemu-nvidia-gpu-snp
      kata-gpu kata diff --handler kata-qemu-nvidia-gpu-snp --devices 12
      kata-gpu kata render --handler kata-qemu-nvidia-gpu-snp --write
      kata-gpu kata containerd check
    """


kata.add_command(containerd)


def _options(command: click.decorators.FC) -> click.decorators.FC:
    for option in reversed(
        (
            click.option("--handler", metavar="NAME", help=f"containerd's handler, such as {_HANDLERS[1]}."),
            click.option(
                "--config", type=click.Path(path_type=Path), help="Base configuration file instead of a handler."
            ),
            click.option(
                "--tee",
                type=click.Choice([t.value for t in Tee]),
                help="TEE of the handler; taken from its name by default.",
            ),
            click.option("--devices", type=int, default=1, show_default=True, help="Most VFIO devices one VM gets."),
            click.option("--bridge-socket", default=BRIDGE_SOCKET, show_default=True, help="PodResources bridge."),
            click.option(
                "--timeout",
                "timeout_s",
                type=int,
                default=DEFAULT_TIMEOUT_S,
                show_default=True,
                help="Seconds that Kata waits for a VM with its GPUs.",
            ),
            click.option(
                "--host-root", type=click.Path(path_type=Path), default=Path("/"), help="Root of another host."
            ),
        )
    ):
        command = option(command)
    return command


def _tee(name: str | None, explicit: str | None) -> Tee:
    if explicit is not None:
        return Tee(explicit)
    return next((t for t in (Tee.SNP, Tee.TDX) if f"-{t}" in (name or "")), Tee.NONE)


def _load(
    handler: str | None, config: Path | None, tee: str | None, devices: int, bridge: str, timeout_s: int, root: Path
) -> tuple[KataFiles, Path, Effective, Needs]:
    files = KataFiles(root)
    if (handler is None) == (config is None):
        raise Misconfigured("kata-target", "name one configuration", expected="either --handler or --config")
    base = config if config is not None else files.locate(handler or "")
    needs = Needs(tee=_tee(handler or base.name, tee), devices=devices, bridge_socket=bridge, timeout_s=timeout_s)
    return files, base, merge(files.layers(base)), needs


@kata.command()
@_options
@click.option("--kubelet-timeout", type=int, default=KUBELET_DEFAULT_S, show_default=True,
              help="Kubelet's runtimeRequestTimeout in seconds.")  # fmt: skip
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)
def check(
    handler: str | None, config: Path | None, tee: str | None, devices: int, bridge_socket: str, timeout_s: int,
    host_root: Path, kubelet_timeout: int, output: str,
) -> int:  # fmt: skip
    """Judge the effective configuration: every requirement, the file that set it, and the symptom of a wrong value.

    \b
    Example:
      kata-gpu kata check --handler kata-qemu-nvidia-gpu-snp --devices 12 --kubelet-timeout 1500
    """
    _files, _base, effective, needs = _load(handler, config, tee, devices, bridge_socket, timeout_s, host_root)
    findings = check_effective(effective, needs)
    corrections = solve(_timeouts(effective, kubelet_timeout), boot_s=timeout_s)
    ok = all(f.ok for f in findings) and not corrections
    if output == "json":
        click.echo(
            json.dumps(
                {
                    "ok": ok,
                    "runtime": effective.runtime,
                    "layers": effective.layers,
                    "findings": [f.to_json() for f in findings],
                    "timeouts": [
                        {"name": c.name, "got_s": c.got_s, "want_s": c.want_s, "why": c.why} for c in corrections
                    ],
                },
                indent=1,
            )
        )
        return ExitCode.OK if ok else ExitCode.NEGATIVE
    click.echo(f"{effective.runtime} runtime, {len(effective.layers)} files, last {effective.layers[-1]}")
    for f in findings:
        if f.ok:
            click.echo(f"  ok    {f.key} = {f.got}")
            continue
        click.echo(f"  WRONG {f.key} = {f.got}, expected {f.expected}" + (f"  (set in {f.source})" if f.source else ""))
        click.echo(f"        symptom: {f.symptom}")
        click.echo(
            f"        fix: {'kata-gpu kata render --write' if f.fixed_by_dropin else 'another handler or base file'}"
        )
    for c in corrections:
        click.echo(f"  WRONG {c.name} = {c.got_s} s, needs {c.want_s} s: {c.why}")
    return ExitCode.OK if ok else ExitCode.NEGATIVE


def _timeouts(effective: Effective, kubelet_s: int) -> Timeouts:
    rust = effective.runtime is Runtime.RUST

    def number(key: str) -> int:
        origin = effective.get(key)
        return origin.value if origin is not None and type(origin.value) is int else 0

    dial = number("agent.kata.reconnect_timeout_ms") // 1000 if rust else number("agent.kata.dial_timeout")
    create = number("agent.kata.create_container_timeout" if rust else "runtime.create_container_timeout")
    return Timeouts(kubelet_s=kubelet_s, create_container_s=create, dial_s=dial)


@kata.command()
@_options
@click.option("--write", is_flag=True, help=f"Write config.d/{FILE_NAME} beside the base file, instead of stdout.")
def render(
    handler: str | None, config: Path | None, tee: str | None, devices: int, bridge_socket: str, timeout_s: int,
    host_root: Path, write: bool,
) -> int:  # fmt: skip
    """Render the one drop-in of this toolkit; with --write put it in place.

    \b
    Example:
      kata-gpu kata render --handler kata-qemu-nvidia-gpu-snp --devices 12 --write
    """
    files, base, effective, needs = _load(handler, config, tee, devices, bridge_socket, timeout_s, host_root)
    text = render_dropin(needs, effective.runtime)
    if not write:
        click.echo(text, nl=False)
    elif files.read_dropin(base) == text:
        click.echo("already in place, nothing written")
    else:
        click.echo(f"wrote {files.write_dropin(base, text)}")
    return ExitCode.OK


@kata.command()
@_options
def diff(
    handler: str | None, config: Path | None, tee: str | None, devices: int, bridge_socket: str, timeout_s: int,
    host_root: Path,
) -> int:  # fmt: skip
    """Show what `render --write` would change. Exit code 0 when nothing, 1 when something.

    \b
    Example:
      kata-gpu kata diff --handler kata-qemu-nvidia-gpu-tdx
    """
    files, base, effective, needs = _load(handler, config, tee, devices, bridge_socket, timeout_s, host_root)
    old = files.read_dropin(base) or ""
    new = render_dropin(needs, effective.runtime)
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), f"a/{FILE_NAME}", f"b/{FILE_NAME}", lineterm="")
    text = "\n".join(lines)
    if not text:
        return ExitCode.OK
    click.echo(text)
    return ExitCode.NEGATIVE
