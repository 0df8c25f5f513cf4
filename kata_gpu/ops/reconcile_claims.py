"""Promises that nobody will ever call in: claims that are gone from the API and from kubelet (dra.md 6.4).

Kubelet normally unprepares. It does not when its own state was lost. Such an entry is ended here: after a grace time,
never at once, and never while a process has the device open.
"""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta

from kata_gpu.core.api_errors import NotFound
from kata_gpu.core.checkpoint import ClaimEntry
from kata_gpu.errors import InUse, KataGpuError
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.modes import MODE_CHANGE
from kata_gpu.ops.prepare import RESET_S, ClaimPreparer
from kata_gpu.ops.unread import read_unread
from kata_gpu.ports import ClaimStore, Kube, NodeDevices

GRACE = timedelta(minutes=10)  # far beyond kubelet's retries of an Unprepare
GET_S = 5.0
UNPREPARE_S = 40.0
LOCK_S = 5.0


class ClaimReconciler:
    """Remembers since when a claim has been missing. One GET per promised claim and round."""

    def __init__(
        self,
        store: ClaimStore,
        kube: Kube,
        preparer: ClaimPreparer,
        devices: NodeDevices,
        listed: Callable[[], frozenset[str]],
    ) -> None:
        """`listed` gives the CDI ids in kubelet's PodResources, or raises Unavailable."""
        self._store = store
        self._kube = kube
        self._preparer = preparer
        self._devices = devices
        self._listed = listed
        self._missing: dict[str, datetime] = {}

    def run(self, now: datetime) -> tuple[str, ...]:
        """UIDs of the claims that were ended. Raises Unavailable where API or kubelet cannot be asked."""
        entries = self._store.load().claims
        gone = [e for e in entries if self._is_gone(e)]
        in_use = self._listed() if gone else frozenset()
        stale = [e for e in gone if not any(d.cdi_id in in_use for d in e.devices)]
        self._missing = {e.ref.uid: self._missing.get(e.ref.uid, now) for e in stale}
        ended = []
        for entry in stale:
            if now - self._missing[entry.ref.uid] < GRACE:
                continue
            try:
                self._preparer.unprepare(entry.ref.uid, Deadline.after(UNPREPARE_S))
            except InUse:
                continue
            del self._missing[entry.ref.uid]
            ended.append(entry.ref.uid)
        return tuple(ended)

    def heal(self) -> tuple[str, ...]:
        """Addresses that are offered again: in nobody's hands by every witness, and a reset went well just now."""
        with self._store.locked(LOCK_S):
            checkpoint = self._store.load()
            aside = [q.address for q in checkpoint.quarantine if q.reason != MODE_CHANGE]
            aside = [a for a in aside if checkpoint.holder(a) is None]
            if not aside:
                return ()
            inventory = self._devices.observe()
            names = {str(d.function.address): d.name for d in inventory.devices}
            in_use = self._listed()
            open_by = self._devices.holders(inventory, aside)
            healed = []
            for address in aside:
                if address in open_by or address not in names or any(i.endswith(names[address]) for i in in_use):
                    continue
                with suppress(KataGpuError):
                    self._devices.reset(address, deadline_s=RESET_S)
                    healed.append(address)
            if healed:
                self._store.save(checkpoint.released(healed))
            return tuple(healed)

    def read_modes(self) -> None:
        """Know the mode of every device that can be read: what died after a bind left one unread."""
        with self._store.locked(LOCK_S):
            read_unread(self._devices, self._devices.observe(), self._store.load())

    def _is_gone(self, entry: ClaimEntry) -> bool:
        path = f"/apis/resource.k8s.io/v1/namespaces/{entry.ref.namespace}/resourceclaims/{entry.ref.name}"
        try:
            found = self._kube.get(path, timeout_s=GET_S)
        except NotFound:
            return True
        return bool(found["metadata"]["uid"] != entry.ref.uid)
