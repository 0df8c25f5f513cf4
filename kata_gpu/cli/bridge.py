"""`kata-gpu bridge run`: the PodResources bridge as a process of its own."""

import signal
import threading
from pathlib import Path

import click

from kata_gpu.cli.world import kubelet_root_option, require_kubelet
from kata_gpu.core.podresources import BRIDGE_SOCKET

HEAL_S = 5.0  # between looks at the socket file


@click.group()
def bridge() -> None:
    """Hand DRA devices to unmodified Kata.

    \b
    Example:
      kata-gpu bridge run --socket /run/kata-gpu/kata-pod-resources.sock
    """


@bridge.command()
@click.option("--socket", "path", type=click.Path(path_type=Path), default=Path(BRIDGE_SOCKET), show_default=True,
              help="Socket that Kata's pod_resource_api_sock names.")  # fmt: skip
@kubelet_root_option
@click.option("--allow", multiple=True, help="Driver whose devices are handed on; repeat for several.")
@click.option("--kata-config", type=click.Path(path_type=Path, exists=True, dir_okay=False), multiple=True,
              help="Kata configuration to check for support of its own.")  # fmt: skip
def run(path: Path, kubelet_root: Path, allow: tuple[str, ...], kata_config: tuple[Path, ...]) -> None:
    """Serve until told to stop. The socket file stays behind: without it Kata starts VMs without their GPU.

    \b
    Example:
      kata-gpu bridge run --socket /run/kata-gpu/kata-pod-resources.sock
    """
    import structlog

    from kata_gpu.cli.agent_log import configure_log
    from kata_gpu.core.claim import DRIVER
    from kata_gpu.core.podresources import refuse_native_support
    from kata_gpu.dra.bridge import WORKERS, Bridge, promised_by
    from kata_gpu.dra.socket import UnixServer
    from kata_gpu.host.claim_file import ClaimFileReader

    configure_log()
    for file in kata_config:
        refuse_native_support(file.read_text(), where=str(file))
    require_kubelet(kubelet_root)
    reader = ClaimFileReader(kubelet_root / "plugins" / DRIVER)
    served = Bridge(
        kubelet_root / "pod-resources" / "kubelet.sock", frozenset(allow or (DRIVER,)), promised_by(reader.load)
    )
    server = UnixServer(path, served.register, workers=WORKERS)
    server.start()
    structlog.get_logger("bridge").info("bridge.serving", socket=str(path), kubelet=str(kubelet_root))
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(HEAL_S):
        if server.lost:
            server.start()
    server.stop(KUBELET_GRACE_S)
    served.close()


KUBELET_GRACE_S = 5.0  # calls in flight
