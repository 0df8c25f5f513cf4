"""`kata-gpu agent run`: the node agent."""

import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kata_gpu.cli.world import CDI_DIR, kubelet_root_option, require_kubelet, sim_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from kata_gpu.core.node_policy import NodePolicy
    from kata_gpu.dra.other_process import OtherProcess


@click.group()
def agent() -> None:
    """Run the node agent.

    \b
    Example:
      kata-gpu agent run --node-name "$NODE_NAME" --policy /etc/kata-gpu/node-policy.yaml
    """


@agent.command()
@click.option("--node-name", required=True, envvar="NODE_NAME", help="Name of this Node object.")
@click.option("--instance", default="", envvar="POD_UID", help="Pod UID, for rolling updates (maxSurge 1).")
@click.option("--policy", "policy_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="The node policy, read again at every pass; without it modes stay.")  # fmt: skip
@click.option("--drain", is_flag=True, help="Evict pods (within their disruption budgets) for a mode change.")
@click.option("--kubeconfig", type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="FILE",
              help="Without it the pod's service account is used.")  # fmt: skip
@click.option(
    "--server",
    default="",
    metavar="URL",
    help="API server without credentials, for tests: https, or http on this machine.",
)
@kubelet_root_option
@click.option("--cdi-dir", type=click.Path(path_type=Path), default=CDI_DIR, show_default=True, help="CDI directory.")
@click.option("--state-dir", type=click.Path(path_type=Path), help="State of the node's verbs.")
@click.option("--bridge", type=click.Path(path_type=Path), metavar="SOCKET",
              help="PodResources bridge that pods depend on: while it is down, devices are tainted.")  # fmt: skip
@click.option("--listen", default="127.0.0.1:8085", show_default=True, metavar="HOST:PORT",
              help="Metrics and probes.")  # fmt: skip
@click.option("--mode", type=click.Choice(["auto", "standalone", "nvidia-dra", "device-plugin"]), default="auto",
              show_default=True, help="Who gives GPUs away here; auto looks for NVIDIA's DRA driver.")  # fmt: skip
@sim_option
def run(
    *,
    mode: str,
    node_name: str,
    instance: str,
    policy_file: Path | None,
    drain: bool,
    kubeconfig: Path | None,
    server: str,
    kubelet_root: Path,
    cdi_dir: Path,
    state_dir: Path | None,
    bridge: Path | None,
    listen: str,
    sim: Path | None,
) -> None:
    """Serve kubelet, publish ResourceSlices, keep modes and labels; until told to stop.

    \b
    Example:
      kata-gpu agent run --node-name "$NODE_NAME" --instance "$POD_UID" --policy /etc/kata-gpu/node-policy.yaml
    """
    from kata_gpu.cli.agent_log import configure_log
    from kata_gpu.cli.world import open_node
    from kata_gpu.dra.runner import AgentProcess, AgentSettings
    from kata_gpu.host.kube import KubeApi
    from kata_gpu.host.real import RealHost
    from kata_gpu.host.simkernel.kernel import SimKernel
    from kata_gpu.ops.owners import Mode, choose_mode

    host, _, port = listen.rpartition(":")
    if not port.isdecimal():
        raise click.BadParameter("expected HOST:PORT", param_hint="--listen")
    configure_log()
    require_kubelet(kubelet_root)
    node = replace(open_node(sim=sim, state_dir=state_dir, cdi_dir=None), progress=_progress())
    settings = AgentSettings(
        node=node_name,
        kubelet_root=kubelet_root,
        cdi=cdi_dir,
        instance=instance,
        bridge=bridge,
        listen=(host.strip("[]"), int(port)),
        drain=drain,
    )
    chosen = choose_mode(Mode(mode), RealHost(), str(kubelet_root))
    kube = KubeApi.connect(kubeconfig=kubeconfig, server=server)
    uevents = node.host.uevents if isinstance(node.host, SimKernel) else None
    policy = partial(_policy, policy_file)
    process: AgentProcess | OtherProcess
    if chosen is Mode.STANDALONE:
        process = AgentProcess(settings, node, kube, policy, uevents=uevents)
    else:
        from kata_gpu.dra.other_process import open_process

        process = open_process(chosen, settings, node, kube, policy, uevents=uevents)
    _on_signal(process.stop)
    process.run()


def _on_signal(stop: "Callable[[], None]") -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())


def _progress() -> "Callable[[str], None]":
    """Steps of a mode change as log events."""
    import structlog

    log = structlog.get_logger("node")
    return lambda line: log.info("node-step", step=" ".join(line.split()))


def _policy(file: Path | None) -> "NodePolicy | None":
    """Read at every pass: a ConfigMap changes under us."""
    from kata_gpu.core.node_policy import parse_policy
    from kata_gpu.core.yaml12 import load
    from kata_gpu.errors import Misconfigured

    if file is None:
        return None
    try:
        text = file.read_bytes()
    except OSError as exc:
        raise Misconfigured("policy-file", "cannot read the node policy", where=str(file), got=exc.strerror) from exc
    return parse_policy(load(text, where=str(file)), where=str(file))
