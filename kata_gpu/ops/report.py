"""What the agent says about its node in the API: labels, one condition, events. Written only when they change."""

import hashlib
from collections.abc import Mapping
from datetime import datetime

from kata_gpu.ports import JsonObject, Kube

MANAGER = "kata-gpu-agent"
CONDITION = "ConfidentialGpuReady"
REQUEST_S = 10.0
MAX_MESSAGE = 1024  # of an event, Kubernetes API


class NodeReporter:
    """Remembers what it wrote; after a restart one write at most repeats what is there."""

    def __init__(self, kube: Kube, node: str) -> None:
        self._kube = kube
        self._node = node
        self._path = f"/api/v1/nodes/{node}"
        self._labels: dict[str, str] | None = None
        self._condition: tuple[bool, str, str] | None = None
        self._events: set[str] = set()

    def labels(self, labels: Mapping[str, str]) -> bool:
        """Server-side apply of our labels; leaving one out removes it. True when something was written."""
        wanted = dict(labels)
        if wanted == self._labels:
            return False
        body: JsonObject = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": self._node, "labels": wanted}}
        self._kube.apply(self._path, body, manager=MANAGER, timeout_s=REQUEST_S)
        self._labels = wanted
        return True

    def condition(self, ready: bool, reason: str, message: str, now: datetime) -> bool:
        """The node's condition; its transition time changes with its status only."""
        wanted = (ready, reason, message)
        if wanted == self._condition:
            return False
        current = self._kube.get(self._path, timeout_s=REQUEST_S)
        rows: list[JsonObject] = (current.get("status") or {}).get("conditions") or []
        known: JsonObject = next((c for c in rows if c["type"] == CONDITION), {})
        status = "True" if ready else "False"
        if (known.get("status"), known.get("reason"), known.get("message")) == (status, reason, message):
            self._condition = wanted
            return False
        at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        row = {
            "type": CONDITION,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": known.get("lastTransitionTime", at) if known.get("status") == status else at,
        }
        body: JsonObject = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": self._node},
            "status": {"conditions": [row]},
        }
        self._kube.apply(f"{self._path}/status", body, manager=MANAGER, timeout_s=REQUEST_S)
        self._condition = wanted
        return True

    def event(self, reason: str, message: str, now: datetime, *, warning: bool) -> bool:
        """One event about the node per new fact; the same fact again is silent until `forget`."""
        key = f"{reason}:{message}"
        if key in self._events:
            return False
        digest = hashlib.sha256(key.encode()).hexdigest()[:10]
        at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        body: JsonObject = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{self._node}.{digest}.", "namespace": "default"},
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": self._node},
            "reason": reason,
            "message": message[:MAX_MESSAGE],
            "type": "Warning" if warning else "Normal",
            "source": {"component": MANAGER, "host": self._node},
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }
        self._kube.create("/api/v1/namespaces/default/events", body, timeout_s=REQUEST_S)
        self._events.add(key)
        return True

    def forget(self, reason: str) -> None:
        """The fact is over: the next time is news again."""
        self._events = {e for e in self._events if not e.startswith(f"{reason}:")}
