"""`kata-gpu install` and `kata-gpu uninstall`: the toolkit on a cluster, without Helm."""

import json
from pathlib import Path
from typing import Any

import click

from kata_gpu.errors import ExitCode

_KUBECONFIG = click.option(
    "--kubeconfig", type=click.Path(path_type=Path), help="Kubeconfig file; without it the pod's service account."
)
_WAIT = click.option("--wait", "wait_s", type=click.FloatRange(0, 3600), default=60, show_default=True,
                     help="Seconds for deletions to end: a namespace, a volume in use.")  # fmt: skip
_SERVER = click.option("--server", default="", hidden=True, help="Plain URL of an API server, for tests.")


def _options(command: click.decorators.FC) -> click.decorators.FC:
    for option in reversed(
        (
            _KUBECONFIG,
            _SERVER,
            click.option("--namespace", default="kata-gpu", show_default=True, help="Namespace of the installation."),
            click.option("--default-tee", type=click.Choice(["none", "snp", "tdx"]), default="none", show_default=True,
                         help="What the RuntimeClass kata-nvidia-gpu stands for."),
            click.option("--with-broker", is_flag=True, help="The key broker too (SQLite, one replica)."),
            click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True,
                         help="Form of the result."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _prepare(
    kubeconfig: Path | None, server: str, namespace: str, default_tee: str, with_broker: bool, *, add_init_data: bool,
    with_nvidia: bool, drain: bool,
) -> Any:  # fmt: skip
    from kata_gpu.core.manifests.install import wanted
    from kata_gpu.core.manifests.values import VALUES
    from kata_gpu.host.kube import KubeApi
    from runtimeclass.model import Tee

    objects = wanted(
        VALUES | {"namespace": namespace},
        default_tee=Tee(default_tee),
        with_broker=with_broker,
        add_init_data=add_init_data,
        with_nvidia=with_nvidia,
        drain=drain,
    )
    return KubeApi.connect(kubeconfig=kubeconfig, server=server), objects


def _report(steps: Any, output: str, done: str) -> None:
    if output == "json":
        click.echo(json.dumps([{"verb": str(s.verb), "path": s.path} for s in steps]))
    else:
        click.echo(f"{done}: {len(steps)} objects" if steps else "nothing to do")


@click.command()
@click.option("--dry-run/--apply", "dry_run", default=True, help="Print the plan (default), or carry it out.")
@click.option("--add-init-data", is_flag=True, help="Add init-data from a ConfigMap to pods without (Kubernetes 1.36).")
@click.option(
    "--with-nvidia", is_flag=True, help="Class and rules for nodes where NVIDIA's DRA driver owns allocation."
)
@click.option("--drain", is_flag=True, help="Evict pods for a mode change: `drain: evict`, and the right to do it.")
@_WAIT
@_options
def install(
    dry_run: bool, add_init_data: bool, with_nvidia: bool, drain: bool, wait_s: float, kubeconfig: Path | None,
    server: str, namespace: str, default_tee: str, with_broker: bool, output: str,
) -> int:  # fmt: skip
    """Install on a cluster: namespace, classes, admission policies, node component, and the broker on request.

    \b
    Example:
      kata-gpu install --kubeconfig ~/.kube/config --default-tee snp --dry-run
      kata-gpu install --kubeconfig ~/.kube/config --default-tee snp --apply
    """
    from kata_gpu.core.manifests.install import obsolete, plan_install
    from kata_gpu.core.manifests.values import VALUES
    from kata_gpu.ops import install as ops

    gone = obsolete(VALUES | {"namespace": namespace}, drain=drain)
    kube, objects = _prepare(kubeconfig, server, namespace, default_tee, with_broker, add_init_data=add_init_data,
                             with_nvidia=with_nvidia, drain=drain)  # fmt: skip
    if dry_run:
        steps = plan_install(objects, ops.observe(kube, [*objects, *gone]))
        if output == "text":
            for step in steps:
                click.echo(f"  {step}")
        _report(steps, output, "plan, nothing changed")
        return ExitCode.OK
    _report(ops.install(kube, objects, say=_say, wait_s=wait_s, obsolete=gone), output, "installed")
    return ExitCode.OK


@click.command()
@click.option("--verify", is_flag=True, help="Only look: is anything of ours left?")
@_WAIT
@_options
def uninstall(
    verify: bool, wait_s: float, kubeconfig: Path | None, server: str, namespace: str, default_tee: str,
    with_broker: bool, output: str,
) -> int:  # fmt: skip
    """Remove everything that `install` made. With --verify only look: exit code 1 where something is left.

    The node's own state is `kata-gpu node reset`, the Kata drop-in `config.d/60-kata-gpu.toml`.

    \b
    Example:
      kata-gpu uninstall --kubeconfig ~/.kube/config --with-broker
      kata-gpu uninstall --kubeconfig ~/.kube/config --with-broker --verify
    """
    from kata_gpu.core.manifests.install import plan_uninstall
    from kata_gpu.ops import install as ops

    # What was optional at installation is looked for in any case; only the broker's data needs to be asked for.
    kube, objects = _prepare(kubeconfig, server, namespace, default_tee, with_broker, add_init_data=True,
                             with_nvidia=True, drain=True)  # fmt: skip
    if verify:
        left = plan_uninstall(objects, ops.observe(kube, objects))
        if output == "text":
            for step in left:
                click.echo(f"  still there: {step.path}")
        _report(left, output, "not clean")
        return ExitCode.NEGATIVE if left else ExitCode.OK
    _report(ops.uninstall(kube, objects, say=_say, wait_s=wait_s), output, "removed")
    return ExitCode.OK


def _say(step: object) -> None:
    click.echo(f"  {step}", err=True)
