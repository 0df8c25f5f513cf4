"""Keep this node's ResourceSlices as they should be, and learn what the API server keeps (dra.md 2.5, 2.7)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kata_gpu.core.api_errors import Conflict, NotFound
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.slices import (
    Features,
    Offer,
    SlicePlan,
    canonical,
    dropped,
    owner_reference,
    plan_slices,
    render_pool,
)
from kata_gpu.ports import JsonObject, Kube

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
REQUEST_S = 10.0
MAX_ROUNDS = 4  # one to write, one per feature that the server drops, one after a lost race


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Outcome of one sync."""

    writes: int
    features: Features


class SlicePublisher:
    """Owner of the slices of one driver on one node; never touches others."""

    def __init__(self, kube: Kube, node: str, *, driver: str = DRIVER) -> None:
        self._kube = kube
        self._node = node
        self._driver = driver
        self._settled: dict[str, tuple[JsonObject, JsonObject]] = {}
        self._features = Features()

    @property
    def selector(self) -> str:
        """Field selector of our slices."""
        return f"spec.nodeName={self._node},spec.driver={self._driver}"

    def read(self) -> tuple[list[JsonObject], str]:
        """Our slices and the version to watch from."""
        return self._kube.list(SLICES, field_selector=self.selector, timeout_s=REQUEST_S)

    def sync(
        self, inventory: Inventory, offers: Sequence[Offer], current: Sequence[JsonObject] | None = None
    ) -> Published:
        """Write what differs, and nothing where nothing does.

        `current` is what a watch knows; it is read again after a lost race. Raises what the API answers: Refused is
        for the operator (RBAC, admission), Unavailable for the next try.
        """
        return self.sync_specs(
            lambda features: render_pool(inventory, offers, node=self._node, features=features), current
        )

    def sync_specs(
        self, render: Callable[[Features], list[JsonObject]], current: Sequence[JsonObject] | None = None
    ) -> Published:
        """The same for specs that somebody else renders for the features that the server keeps."""
        node = self._kube.get(f"/api/v1/nodes/{self._node}", timeout_s=REQUEST_S)
        owner = owner_reference(node)
        writes = 0
        known = list(current) if current is not None else None
        for _ in range(MAX_ROUNDS):
            slices = self.read()[0] if known is None else known
            features = self._features
            plan = plan_slices(slices, render(features), pool=self._node, owner=owner, settled=self._settled)
            try:
                writes += self._apply(plan)
            except (Conflict, NotFound):
                known = None
                continue
            if self._features == features:
                break
            known = None
        return Published(writes=writes, features=self._features)

    def _apply(self, plan: SlicePlan) -> int:
        for name, uid in plan.deletes:
            self._kube.delete(f"{SLICES}/{name}", uid=uid, timeout_s=REQUEST_S)
            self._settled.pop(uid, None)
        for obj in plan.updates:
            got = self._kube.replace(f"{SLICES}/{obj['metadata']['name']}", obj, timeout_s=REQUEST_S)
            self._learn(obj, got)
        for obj in plan.creates:
            self._learn(obj, self._kube.create(SLICES, obj, timeout_s=REQUEST_S))
        return plan.writes

    def _learn(self, sent: JsonObject, got: dict[str, Any]) -> None:
        self._settled[got["metadata"]["uid"]] = (canonical(sent["spec"]), canonical(got["spec"]))
        self._features = dropped(sent["spec"], got["spec"], self._features)
