"""Upstream's reference value service over gRPC, on our store (`attestation/service/proto/reference.proto`).

Anybody who reaches it may ask; values are no secret. Upstream lets anybody register as well. Here a registration needs
an administrator's token in `authorization`, or the Unix socket, which only the broker's user can open.
"""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import grpc

from attestation.broker.roles import Principal
from attestation.errors import AttestationError, Denied, Malformed, Misconfigured, Unavailable, Untrusted
from attestation.ops.administer import authenticate_admin
from attestation.ops.references import register_message
from attestation.ops.world import World
from attestation.service._pb import reference_pb2 as pb
from attestation.service._pb import reference_pb2_grpc
from attestation.service.address import is_loopback
from attestation.service.kbs import Clock

MAX_MESSAGE_BYTES = 2 * 1024 * 1024
THREADS = 4
MAX_WAITING = 64
STOP_S = 5.0
_STATUS: tuple[tuple[type[AttestationError], grpc.StatusCode], ...] = (
    (Malformed, grpc.StatusCode.INVALID_ARGUMENT),
    (Untrusted, grpc.StatusCode.UNAUTHENTICATED),
    (Denied, grpc.StatusCode.PERMISSION_DENIED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
)


class ReferenceValues(reference_pb2_grpc.ReferenceValueProviderServiceServicer):
    """`local` is the principal of a Unix socket; None asks for a token."""

    def __init__(self, world: World, *, clock: Clock, local: Principal | None) -> None:
        self._world, self._clock, self._local = world, clock, local

    def QueryReferenceValue(  # noqa: N802 - the protocol's name
        self, request: pb.ReferenceValueQueryRequest, context: grpc.ServicerContext
    ) -> pb.ReferenceValueQueryResponse:
        """The value in force as JSON; no result where there is none or it has expired."""
        try:
            value = self._world.references.raw(request.reference_value_id, self._clock())
        except AttestationError as exc:
            _abort(context, exc)
        if value is None:
            return pb.ReferenceValueQueryResponse()
        return pb.ReferenceValueQueryResponse(reference_value_results=json.dumps(value, separators=(",", ":")))

    def RegisterReferenceValue(  # noqa: N802 - the protocol's name
        self, request: pb.ReferenceValueRegisterRequest, context: grpc.ServicerContext
    ) -> pb.ReferenceValueRegisterResponse:
        """New values, by whoever may change what concerns every repository."""
        now = self._clock()
        try:
            who = self._local or authenticate_admin(self._world, _bearer(context), now=now)
            register_message(self._world, who, request.message, now=now)
        except AttestationError as exc:
            _abort(context, exc)
        return pb.ReferenceValueRegisterResponse()


@contextmanager
def serving(
    world: World, address: str, *, clock: Clock, local: Principal, tls: tuple[bytes, bytes] | None = None
) -> Iterator[str]:
    """Serve while the block runs; gives the address with its port. `tls` is certificate chain and key, PEM."""
    socket = address.removeprefix("unix:") if address.startswith("unix:") else None
    server = grpc.server(
        ThreadPoolExecutor(THREADS, thread_name_prefix="rvps"),
        options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=MAX_WAITING,
    )
    servicer = ReferenceValues(world, clock=clock, local=local if socket else None)
    reference_pb2_grpc.add_ReferenceValueProviderServiceServicer_to_server(servicer, server)
    bound = _bind_unix(server, Path(socket)) if socket else _bind_tcp(server, address, tls)
    server.start()
    try:
        yield bound
    finally:
        server.stop(STOP_S).wait()


def _bind_unix(server: grpc.Server, path: Path) -> str:
    before = os.umask(0o177)  # the socket is 0600 from the moment it exists
    try:
        path.unlink(missing_ok=True)
        server.add_insecure_port(f"unix:{path.absolute()}")
    except (RuntimeError, OSError) as exc:
        raise Misconfigured("rvps-listen", "cannot listen", where=str(path)) from exc
    finally:
        os.umask(before)
    return f"unix:{path}"


def _bind_tcp(server: grpc.Server, address: str, tls: tuple[bytes, bytes] | None) -> str:
    host, _, _ = address.rpartition(":")
    if tls is None and not is_loopback(host):
        raise Misconfigured(
            "rvps-plaintext", "tokens travel to this listener", where=address, expected="a certificate, or loopback"
        )
    try:
        if tls is None:
            port = server.add_insecure_port(address)
        else:
            chain, key = tls
            port = server.add_secure_port(address, grpc.ssl_server_credentials([(key, chain)]))
    except (RuntimeError, ValueError) as exc:
        raise Misconfigured("rvps-listen", "cannot listen", where=address, expected="host:port") from exc
    return f"{host}:{port}"


def _bearer(context: grpc.ServicerContext) -> str | None:
    for name, value in context.invocation_metadata():
        if name == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:].strip() or None
    return None


def _abort(context: grpc.ServicerContext, exc: AttestationError) -> NoReturn:
    code = next((code for kind, code in _STATUS if isinstance(exc, kind)), grpc.StatusCode.INTERNAL)
    context.abort(code, f"{exc.code}: {exc.what}")
