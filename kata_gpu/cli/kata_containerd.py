"""`kata-gpu kata containerd check|render`: containerd's handler entries and CDI."""

import json
from pathlib import Path

import click

from kata_gpu.core.kata.containerd import Flavour, Handler, Version, paths
from kata_gpu.core.kata.containerd import check as check_layers
from kata_gpu.core.kata.containerd import render as render_text
from kata_gpu.errors import ExitCode
from kata_gpu.host.containerd_files import read_layers
from kata_gpu.host.kata_files import KataFiles

HANDLERS = ("kata-qemu-nvidia-gpu", "kata-qemu-nvidia-gpu-snp", "kata-qemu-nvidia-gpu-tdx")

_handler = click.option(
    "--handler", "handlers", multiple=True, metavar="NAME", default=HANDLERS, show_default=True,
    help="Repeat for several.",
)  # fmt: skip
_flavour = click.option(
    "--flavour",
    type=click.Choice([f.value for f in Flavour]),
    default=Flavour.PLAIN.value,
    show_default=True,
    help="Distribution.",
)
_root = click.option("--host-root", type=click.Path(path_type=Path), default=Path("/"), help="Root of another host.")


@click.group()
def containerd() -> None:
    """Check and render containerd's entries for the Kata handlers.

    \b
    Example:
      kata-gpu kata containerd check --handler kata-qemu-nvidia-gpu-snp
      kata-gpu kata containerd render --flavour rke2 --handler kata-qemu-nvidia-gpu-snp
    """


@containerd.command()
@_handler
@_flavour
@_root
@click.option("--config", type=click.Path(), help="Main configuration file instead of the flavour's own.")
@click.option(
    "--output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the result."
)
def check(handlers: tuple[str, ...], flavour: str, host_root: Path, config: str | None, output: str) -> int:
    """Judge the effective configuration: main file and imports, as containerd merges them.

    \b
    Example:
      kata-gpu kata containerd check --flavour k3s --handler kata-qemu-nvidia-gpu-tdx
    """
    layers = read_layers(host_root, config or paths(Flavour(flavour), Version.V3).main)
    findings = check_layers(layers, handlers)
    ok = all(f.ok for f in findings)
    if output == "json":
        files = [layer.path for layer in layers]
        click.echo(json.dumps({"ok": ok, "files": files, "findings": [f.to_json() for f in findings]}, indent=1))
        return ExitCode.OK if ok else ExitCode.NEGATIVE
    click.echo(f"{len(layers)} files, first {layers[0].path}")
    for f in findings:
        if f.ok:
            click.echo(f"  ok    {f.key}")
            continue
        click.echo(f"  WRONG {f.key} = {f.got}, expected {f.expected}")
        click.echo(f"        symptom: {f.symptom}")
    if not ok:
        click.echo("fix: kata-gpu kata containerd render, then restart containerd")
    return ExitCode.OK if ok else ExitCode.NEGATIVE


@containerd.command()
@_handler
@_flavour
@_root
@click.option("--config-version", type=click.Choice(["2", "3"]), default="3", show_default=True,
              help="3 for containerd 2, 2 for containerd 1.7.")  # fmt: skip
@click.option("--snapshotter", default="", help="Of these handlers, such as nydus-for-kata-tee.")
def render(
    handlers: tuple[str, ...], flavour: str, host_root: Path, config_version: str, snapshotter: str
) -> int:  # fmt: skip
    """Print the entries and name the file that they belong to. Writes nothing: a restart of containerd is yours.

    \b
    Example:
      kata-gpu kata containerd render --handler kata-qemu-nvidia-gpu-snp > /etc/containerd/conf.d/60-kata-gpu.toml
    """
    files = KataFiles(host_root)
    entries = [
        Handler(name=h, config_path=f"/{files.locate(h).relative_to(host_root)}", snapshotter=snapshotter)
        for h in handlers
    ]
    version, where = Version(int(config_version)), Flavour(flavour)
    click.echo(render_text(entries, version, where), nl=False)
    click.echo(f"for {paths(where, version).target}", err=True)
    return ExitCode.OK
