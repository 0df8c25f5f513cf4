"""DRA device health v1alpha1: the complete list on every message, refreshed before kubelet forgets it (dra.md 1.4)."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import grpc

from kata_gpu.dra._pb import dra_health_v1alpha1_pb2 as pb
from kata_gpu.dra._pb import dra_health_v1alpha1_pb2_grpc as rpc

REFRESH_S = 10.0  # kubelet turns a silent device into Unknown after TIMEOUT_S
TIMEOUT_S = 30  # kubelet's default, said aloud
MAX_MESSAGE = 1024  # bytes; kubelet cuts there, perhaps inside a character
MAX_STREAMS = 4  # kubelet holds one; two while it reconnects


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceHealth:
    """One device. `healthy` None is unknown."""

    device: str
    healthy: bool | None
    message: str = ""


class Health(rpc.DRAResourceHealthServicer):
    """Streams what `update` was last told. Each stream ends with its client, with no thread left behind."""

    def __init__(self, pool: str, now: Callable[[], datetime], *, refresh_s: float = REFRESH_S) -> None:
        self._pool = pool
        self._now = now
        self._refresh_s = refresh_s
        self._changed = threading.Condition()
        self._devices: tuple[DeviceHealth, ...] = ()
        self._version = 0
        self._streams = 0
        self._closed = False

    def register(self, server: grpc.Server) -> None:
        """Serve on the DRA socket."""
        rpc.add_DRAResourceHealthServicer_to_server(self, server)

    def update(self, devices: tuple[DeviceHealth, ...]) -> None:
        """All devices of the node; a change is sent at once."""
        with self._changed:
            if devices != self._devices:
                self._devices = devices
                self._version += 1
                self._changed.notify_all()

    def close(self) -> None:
        """End all streams."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def streams(self) -> int:
        """Streams being served."""
        return self._streams

    def NodeWatchResources(self, request: Any, context: Any) -> Iterator[pb.NodeWatchResourcesResponse]:  # noqa: ARG002, N802
        """Kubelet's stream."""
        with self._changed:
            if self._streams >= MAX_STREAMS:
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many health streams")
            self._streams += 1

        def wake() -> None:
            with self._changed:
                self._changed.notify_all()

        try:
            if not context.add_callback(wake):
                return
            while context.is_active() and not self._closed:
                with self._changed:
                    seen, devices = self._version, self._devices
                yield self._message(devices)
                self._wait(seen, context)
        finally:
            with self._changed:
                self._streams -= 1

    def _wait(self, seen: int, context: Any) -> None:
        """Until there is news, the stream ends, or it is time to say the same again."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._version != seen or self._closed or not context.is_active(), timeout=self._refresh_s
            )

    def _message(self, devices: tuple[DeviceHealth, ...]) -> pb.NodeWatchResourcesResponse:
        at = int(self._now().timestamp())
        states = {None: pb.UNKNOWN, True: pb.HEALTHY, False: pb.UNHEALTHY}
        return pb.NodeWatchResourcesResponse(
            devices=[
                pb.DeviceHealth(
                    device=pb.DeviceIdentifier(pool_name=self._pool, device_name=d.device),
                    health=states[d.healthy],
                    last_updated_time=at,
                    health_check_timeout_seconds=TIMEOUT_S,
                    message=cut(d.message),
                )
                for d in devices
            ]
        )


def cut(message: str) -> str:
    """At most MAX_MESSAGE bytes of valid UTF-8."""
    data = message.encode(errors="replace")
    return message if len(data) <= MAX_MESSAGE else data[: MAX_MESSAGE - 3].decode(errors="ignore") + "..."
