"""A watch on this node's ResourceSlices: what the publisher compares with, and the wake-up when somebody else writes.

Memory is bounded by the selector: only slices of this driver on this node are ever held. 410 and dropped connections
lead to a new list; the desired state lives elsewhere and is never lost with a watch.
"""

import random
import threading
from collections.abc import Callable

import structlog

from kata_gpu.core.api_errors import Gone
from kata_gpu.errors import KataGpuError
from kata_gpu.ops.publish import SLICES, SlicePublisher
from kata_gpu.ports import JsonObject, Kube

WATCH_S = 300.0  # the server ends a watch then; client-go uses 5 to 10 minutes
FIRST_RETRY_S = 1.0
MAX_RETRY_S = 60.0


class SliceWatch:
    """`SliceView` kept by a thread of its own."""

    def __init__(self, kube: Kube, publisher: SlicePublisher, wake: Callable[[], None]) -> None:
        self._kube = kube
        self._publisher = publisher
        self._wake = wake
        self._lock = threading.Lock()
        self._slices: dict[str, JsonObject] | None = None
        self._news = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slice-watch", daemon=True)
        self._log = structlog.get_logger("watch")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End at the next event or timeout; the thread is a daemon and holds nothing."""
        self._stop.set()

    def known(self) -> list[JsonObject] | None:
        """Our slices as of the last event, or None while no watch is open."""
        with self._lock:
            return None if self._slices is None else list(self._slices.values())

    def changed(self) -> bool:
        """Whether something happened since the last call."""
        with self._lock:
            news, self._news = self._news, False
            return news

    def _run(self) -> None:
        delay = FIRST_RETRY_S
        while not self._stop.is_set():
            try:
                self.follow()
                delay = FIRST_RETRY_S
            except Gone:
                delay = FIRST_RETRY_S
            except KataGpuError as exc:
                self._log.warning("watch-lost", code=exc.code, retry_s=round(delay, 1))
                delay = min(delay * 2, MAX_RETRY_S)
            with self._lock:
                self._slices = None
            self._stop.wait(delay * random.uniform(0.5, 1.5))  # noqa: S311 - jitter: 5,000 nodes must not come at once

    def follow(self, *, timeout_s: float = WATCH_S) -> None:
        """List, then watch until the server ends it, again and again while it ends well. Raises on any loss."""
        items, version = self._publisher.read()
        with self._lock:
            self._slices = {o["metadata"]["name"]: o for o in items}
            self._news = True
        self._wake()
        while not self._stop.is_set():
            for event in self._kube.watch(
                SLICES, resource_version=version, field_selector=self._publisher.selector, timeout_s=timeout_s
            ):
                version = self._take(event) or version
                if self._stop.is_set():
                    return

    def _take(self, event: JsonObject) -> str:
        obj = event.get("object") or {}
        metadata = obj.get("metadata") or {}
        if event.get("type") != "BOOKMARK":
            with self._lock:
                slices = self._slices if self._slices is not None else {}
                if event["type"] == "DELETED":
                    slices.pop(metadata["name"], None)
                else:
                    slices[metadata["name"]] = obj
                self._slices, self._news = slices, True
            self._wake()
        return str(metadata.get("resourceVersion", ""))
