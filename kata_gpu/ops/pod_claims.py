"""Who has which device where kubelet's device manager gives them away: kubelet's own list, as a `ClaimStore`.

For `ModeChanger`, which asks who holds a device and keeps new holders away. No promise of ours is kept on disk: kubelet
remembers its allocations, and a reservation needs to live no longer than the process that changes the mode.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from kata_gpu.core.checkpoint import Checkpoint, ClaimEntry, ClaimState, HeldDevice
from kata_gpu.core.claim import ClaimRef
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import TimedOut

_UNTOLD = datetime.fromtimestamp(0, UTC)  # kubelet does not say since when


class PodClaims:
    """`allocated` gives device -> `namespace/pod`, or raises Unavailable: then nobody can say that a device is free."""

    def __init__(self, allocated: Callable[[], Mapping[PciAddress, str]]) -> None:
        self._allocated = allocated
        self._reserved = Checkpoint()
        self._lock = threading.Lock()

    @contextmanager
    def locked(self, deadline_s: float) -> Iterator[None]:
        """Between threads of this process. Raises TimedOut."""
        if not self._lock.acquire(timeout=deadline_s):
            raise TimedOut("claim-lock", "another thread changes reservations", expected=f"within {deadline_s:.0f} s")
        try:
            yield
        finally:
            self._lock.release()

    def load(self) -> Checkpoint:
        """Pods as claims of their name, and what is reserved."""
        pods: dict[str, list[str]] = {}
        for address, pod in self._allocated().items():
            pods.setdefault(pod, []).append(str(address))
        return replace(self._reserved, claims=tuple(_entry(pod, sorted(own)) for pod, own in sorted(pods.items())))

    def save(self, checkpoint: Checkpoint) -> None:
        """Keep the reservations; pods are kubelet's."""
        self._reserved = replace(checkpoint, claims=())


def _entry(pod: str, addresses: list[str]) -> ClaimEntry:
    namespace, _, name = pod.partition("/")
    held = tuple(HeldDevice(request="", pool="", device=a, addresses=(a,)) for a in addresses)
    ref = ClaimRef(namespace=namespace, name=name, uid=addresses[0].replace(":", "-").replace(".", "-"))
    return ClaimEntry(ref=ref, state=ClaimState.PREPARED, boot_id="", devices=held, since=_UNTOLD, pod=name)
