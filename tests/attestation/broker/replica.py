"""Replicas as processes that can be killed. A parent has imported everything and forks: a restart takes milliseconds."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from attestation.cli.platform import platform_verifier
from attestation.cli.verification import BUILTIN
from attestation.ops.open_world import WorldOptions, open_world
from attestation.service.app import Service, ServiceLimits
from attestation.service.server import Serving, listen, serve
from tests.attestation.broker.broker import NOW

UNLIMITED = ServiceLimits(rate_per_s=1e9, burst=10**9, chip_rate_per_s=1e9, chip_burst=10**9)


class Replicas:
    """Any number of replicas on one store. `kill` and `start` by index; the address of each stays the same."""

    def __init__(self, parent: "subprocess.Popen[str]", count: int) -> None:
        self._parent = parent
        self._ports = [_free_port() for _ in range(count)]
        self._pids: list[int] = [0] * count
        for index in range(count):
            self.start(index)

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    def start(self, index: int) -> None:
        """Returns when it listens."""
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.write(f"{self._ports[index]}\n")
        self._parent.stdin.flush()
        line = self._parent.stdout.readline().split()
        assert line[:1] == ["ready"], line
        self._pids[index] = int(line[1])

    def kill(self, index: int) -> None:
        """SIGKILL: no handler runs, no buffer is flushed."""
        os.kill(self._pids[index], signal.SIGKILL)

    def close(self) -> None:
        for index in range(len(self._pids)):
            self.kill(index)


@contextmanager
def replicas(store: str, root_key: Path, count: int, log: Path) -> Iterator[Replicas]:
    """Started, and killed at the end."""
    with log.open("w") as stderr:
        parent = subprocess.Popen(
            [sys.executable, "-m", "tests.attestation.broker.replica", store, str(root_key)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=Path(__file__).resolve().parents[3],
        )
    try:
        made = Replicas(parent, count)
        try:
            yield made
        finally:
            made.close()
    finally:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.close()
        parent.stdout.close()
        parent.wait(20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _serve(store: str, root_key: str, port: str) -> None:
    verifier = platform_verifier(collateral=None, simulated_roots=BUILTIN)
    world = open_world(WorldOptions(store=store, root_key=Path(root_key), simulated=True), verifier, now=NOW)
    service = Service(world, clock=lambda: NOW, limits=UNLIMITED)
    serve(
        service,
        world,
        Serving(guest=listen(f"127.0.0.1:{port}"), admin=listen("127.0.0.1:0")),
        clock=lambda: NOW,
        ready=lambda _stop: print("ready", os.getpid(), flush=True),
    )


def main(store: str, root_key: str) -> None:
    """Fork a replica for each line, which is its port."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    while line := sys.stdin.readline():
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _serve(store, root_key, line.strip())
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
