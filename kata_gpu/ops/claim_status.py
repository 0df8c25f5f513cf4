"""Keep `status.devices` of the claims that this node has prepared, by server-side apply (dra.md 2.6, 6.2).

The agent's loop does it after the fact, so that no Prepare waits for it or fails with it. A claim is written once, and
again only when what is said about its devices changes.
"""

from datetime import datetime

from kata_gpu.core.api_errors import NotFound, Refused
from kata_gpu.core.checkpoint import Checkpoint, ClaimState
from kata_gpu.core.claim import ClaimRef
from kata_gpu.core.claim_status import render_claim_status
from kata_gpu.core.inventory import Inventory
from kata_gpu.ops.report import MANAGER
from kata_gpu.ports import JsonObject, Kube

REQUEST_S = 5.0


class ClaimStatus:
    """Remembers what it said; after a restart it says the same again, which the server takes as no change."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._said: dict[str, JsonObject] = {}

    def run(self, checkpoint: Checkpoint, inventory: Inventory, now: datetime) -> int:
        """Number of claims written. One that is refused keeps no other from being written; it is raised at the end."""
        claims = {c.ref.uid: c for c in checkpoint.claims if c.state is ClaimState.PREPARED}
        self._said = {uid: said for uid, said in self._said.items() if uid in claims}
        written, refused = 0, None
        for uid, entry in claims.items():
            timeless = render_claim_status(entry, inventory, entry.since)
            body = render_claim_status(entry, inventory, now)
            if body is None or timeless is None or timeless == self._said.get(uid):
                continue
            try:
                written += self._apply(entry.ref, body)
            except Refused as exc:
                refused = exc
                continue
            self._said[uid] = timeless
        if refused is not None:
            raise refused
        return written

    def _apply(self, ref: ClaimRef, body: JsonObject) -> bool:
        """False where the claim is deleted, or replaced by another of its name: nobody is there to be told."""
        path = f"/apis/resource.k8s.io/v1/namespaces/{ref.namespace}/resourceclaims/{ref.name}"
        try:
            if self._kube.get(path, timeout_s=REQUEST_S)["metadata"]["uid"] != ref.uid:
                return False
            self._kube.apply(f"{path}/status", body, manager=MANAGER, timeout_s=REQUEST_S)
        except NotFound:
            return False
        return True
