"""A round-robin balancer of TCP connections that knows nothing of TLS, HTTP or health."""

import socket
import threading
from contextlib import suppress
from itertools import cycle
from socketserver import BaseRequestHandler, ThreadingTCPServer

BLOCK = 1 << 16


class Balancer(ThreadingTCPServer):
    """Each connection goes to the next port, alive or not: what is dead is for the client to notice."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, ports: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self._turn = cycle(range(len(ports)))
        self.ports = ports
        self.taken: list[int] = []  # index of the replica of each connection
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int(self.server_address[1])

    def next(self) -> int:
        """The port for a new connection."""
        self.taken.append(next(self._turn))
        return self.ports[self.taken[-1]]

    def close(self) -> None:
        """Stop taking connections."""
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Relay(BaseRequestHandler):
    server: Balancer

    def handle(self) -> None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.server.next())) as replica:
            back = threading.Thread(target=_copy, args=(replica, self.request), daemon=True)
            back.start()
            _copy(self.request, replica)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(BLOCK):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
