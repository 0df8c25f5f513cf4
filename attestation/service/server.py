"""Serving: both listeners in one process, bound before anything is announced, drained when told to stop."""

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from attestation.errors import Misconfigured
from attestation.ops.world import World
from attestation.service.app import Service
from attestation.service.kbs import Clock

log = structlog.get_logger()
MAX_HEAD_BYTES = 256 * 1024  # a foreign token with verbose claims of 8 GPUs is 170 KiB (keybroker.md 0, fact 6)
DRAIN_S = 20
SWEEP_S = 60.0
BACKLOG = 1024


class BoundedHeadProtocol(HttpToolsProtocol):
    """httptools reads a head of any size; this one answers 431 and closes once it passes the cap."""

    _head_bytes = 0
    _in_head = True

    def data_received(self, data: bytes) -> None:
        """Feed the parser, then look at how long an unfinished head has become."""
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._in_head else 0
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            body = b'{"type":"about:blank","title":"request head too large","status":431}'
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
                b"connection: close\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
            )
            self.transport.close()

    def on_headers_complete(self) -> None:
        """The head ends here; body bytes are bounded by the endpoints."""
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Another request may follow on this connection."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_complete()


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """A bound socket and the address that a client uses."""

    socket: socket.socket
    url: str


def listen(address: str, *, tls: bool = False) -> Listener:
    """Bind `host:port`; port 0 takes a free one."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Misconfigured("listen-address", "bad address", expected="host:port", got=address[:80])
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, int(port)))
    except OSError as exc:
        bound.close()
        raise Misconfigured("listen-address", f"cannot listen: {exc.strerror}", where=address) from exc
    bound.listen(BACKLOG)
    shown = f"[{host}]" if family == socket.AF_INET6 else host
    return Listener(socket=bound, url=f"{'https' if tls else 'http'}://{shown}:{bound.getsockname()[1]}")


class _Server(uvicorn.Server):
    """Signals belong to `serve`, which stops both listeners."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files."""

    certificate: str
    key: str


def serve(
    service: Service,
    world: World,
    *,
    guest: Listener,
    admin: Listener,
    clock: Clock,
    tls: Tls | None = None,
    ready: Callable[[Callable[[], None]], None],
) -> None:
    """Run until SIGTERM or SIGINT, then drain. Once both listeners answer, `ready` gets a way to stop them."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(service, world, guest, admin, clock, tls, ready))
    service.close()


async def _serve(
    service: Service,
    world: World,
    guest: Listener,
    admin: Listener,
    clock: Clock,
    tls: Tls | None,
    ready: Callable[[Callable[[], None]], None],
) -> None:
    servers = [_server(app, tls) for app in (service.guest, service.admin)]
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for server in servers:
            server.should_exit = True

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
    tasks = [
        asyncio.create_task(server.serve(sockets=[listener.socket]))
        for server, listener in zip(servers, (guest, admin), strict=True)
    ]
    sweeper = asyncio.create_task(_sweep(world, clock))
    while not all(server.started for server in servers) and not any(task.done() for task in tasks):  # noqa: ASYNC110 - flags
        await asyncio.sleep(0.01)

    def stop_from_anywhere() -> None:
        loop.call_soon_threadsafe(stop)

    ready(stop_from_anywhere)
    try:
        await asyncio.gather(*tasks)
    finally:
        sweeper.cancel()


def _server(app: Any, tls: Tls | None) -> _Server:
    config = uvicorn.Config(
        app,
        http=BoundedHeadProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=75,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
    )
    return _Server(config)


async def _sweep(world: World, clock: Clock) -> None:
    """Delete what has expired, once a minute."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_S)
        now = clock()
        gone = await loop.run_in_executor(None, world.sessions.sweep, now)
        await loop.run_in_executor(None, world.attestations.sweep, now)
        log.debug("sessions.swept", count=gone)
