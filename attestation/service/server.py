"""Serving: both listeners in one process, bound before anything is announced, drained when told to stop."""

import asyncio
import contextlib
import errno
import gc
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import structlog
import uvicorn

from attestation.errors import Misconfigured
from attestation.ops.world import World
from attestation.service.address import is_loopback
from attestation.service.app import Service
from attestation.service.kbs import Clock
from attestation.service.protocol import BoundedProtocol
from attestation.service.tls import TlsListener
from attestation.service.upkeep import Upkeep

log = structlog.get_logger()
DRAIN_S = 20  # for requests in flight; upstream's guests wait 60 s, kubelet kills after 45 s (deploy)
BACKLOG = 1024
# The loop that accepts and refuses waits this long for busy workers: with CPython's 5 ms it starves under overload and
# with it everything else (tests/attestation/service/test_overload.py).
SWITCH_S = 0.0005
GC_ALLOCATIONS = 50_000  # between young collections; CPython's default of 700 is for scripts


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A bound socket and the address that a client uses."""

    socket: socket.socket
    url: str


def listen(address: str, *, tls: bool = False) -> Listener:
    """Bind `host:port`; port 0 takes a free one. Without TLS on loopback only: cookies and admin tokens travel here."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Misconfigured("listen-address", "bad address", expected="host:port", got=address[:80])
    if not tls and not is_loopback(host):
        raise Misconfigured(
            "listen-plaintext",
            "plain http off loopback",
            where=address,
            expected="--tls-cert and --tls-key, or 127.0.0.1",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, int(port)))
    except OSError as exc:
        bound.close()
        hint = (
            "a free port: `ss -ltnp` says who has this one"
            if exc.errno == errno.EADDRINUSE
            else "an address of this machine"
        )
        raise Misconfigured("listen-address", f"cannot listen: {exc.strerror}", where=address, expected=hint) from exc
    bound.listen(BACKLOG)
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    return Listener(socket=bound, url=f"{'https' if tls else 'http'}://{shown}:{bound.getsockname()[1]}")


class _Server(uvicorn.Server):
    """Signals belong to `serve`, which stops both listeners."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """How to serve. Readiness goes first, and listeners stay `drain_delay_s` longer, until balancers have noticed."""

    guest: Listener
    admin: Listener
    guest_tls: TlsListener | None = None
    admin_tls: TlsListener | None = None
    drain_delay_s: float = 0.0


def serve(
    service: Service, world: World, how: Serving, *, clock: Clock, ready: Callable[[Callable[[], None]], None]
) -> None:
    """Run until SIGTERM or SIGINT, then drain. Once both listeners answer, `ready` gets a way to stop them.

    SIGHUP reads certificates and collateral again; both are also looked at every few seconds.
    """
    import uvloop

    # What was loaded until now lives as long as the process: the collector need not walk it again and again, and a
    # handshake allocates a few thousand objects that die by reference counting.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS)
    sys.setswitchinterval(SWITCH_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(service, world, how, clock, ready))
    service.close()


async def _serve(
    service: Service, world: World, how: Serving, clock: Clock, ready: Callable[[Callable[[], None]], None]
) -> None:

    class GuestProtocol(BoundedProtocol):
        """Refuses guests early."""

        instead = staticmethod(service.turn_away)
        networks: ClassVar[Counter[str]] = Counter()

    class OfficeProtocol(BoundedProtocol):
        """Administrators keep their connections, whatever guests open."""

        networks: ClassVar[Counter[str]] = Counter()

    servers = [
        _server(service.guest, how.guest_tls, GuestProtocol),
        _server(service.admin, how.admin_tls, OfficeProtocol),
    ]
    for name, server in zip(("guests", "administrators"), servers, strict=True):
        service.metrics.connections.labels(listener=name).set_function(partial(_connections, server))
    loop = asyncio.get_running_loop()
    drain = asyncio.Event()
    upkeep = Upkeep(service, world, guests=how.guest_tls, administrators=how.admin_tls, clock=clock)

    def told() -> None:
        if drain.is_set():  # told twice: do not wait for balancers
            _stop(servers)
        drain.set()

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told)
        loop.add_signal_handler(signal.SIGHUP, upkeep.now)
    tasks = [
        asyncio.create_task(server.serve(sockets=[listener.socket]))
        for server, listener in zip(servers, (how.guest, how.admin), strict=True)
    ]
    background = [asyncio.create_task(upkeep.run()), asyncio.create_task(_drain(drain, service, servers, how))]
    while not all(server.started for server in servers) and not any(task.done() for task in tasks):  # noqa: ASYNC110 - flags
        await asyncio.sleep(0.01)

    def stop_from_anywhere() -> None:
        loop.call_soon_threadsafe(told)

    ready(stop_from_anywhere)
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in background:
            task.cancel()


async def _drain(told: asyncio.Event, service: Service, servers: list[_Server], how: Serving) -> None:
    """Readiness false, time for balancers to see it, then no new connections; what is in flight finishes."""
    await told.wait()
    service.health.draining = True
    log.info("drain.started", inside=service.inside)
    await asyncio.sleep(how.drain_delay_s)
    _stop(servers)


def _connections(server: _Server) -> int:
    return len(server.server_state.connections)


def _stop(servers: list[_Server]) -> None:
    for server in servers:
        server.should_exit = True


def _server(app: Any, tls: TlsListener | None, protocol: type[BoundedProtocol]) -> _Server:
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=75,
        ssl_context_factory=(lambda _config, _default: tls.context) if tls else None,
    )
    return _Server(config)
