"""Bring the node to its policy without taking a GPU from anybody: cordon, drain as budgets allow, switch, uncordon.

Level-triggered: every call looks at the node and does the next thing, so that a killed agent goes on where it was.
A mode belongs to the node and is never changed for a claim (dra.md 6.2).
"""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from kata_gpu.core.api_errors import Conflict, NotFound, Refused, TooMany
from kata_gpu.core.checkpoint import ClaimEntry
from kata_gpu.core.node_policy import Drain, NodePolicy
from kata_gpu.core.plan import Plan, plan_setup
from kata_gpu.errors import KataGpuError
from kata_gpu.ops.node import Node, observe_node
from kata_gpu.ops.setup import setup
from kata_gpu.ports import ClaimStore, Kube

CORDONED_BY = "config.kata-gpu.dev/cordoned"  # annotation: we cordoned, so we may uncordon
MODE_CHANGE = "a mode change is under way"  # reason in the checkpoint while a switch runs
REQUEST_S = 10.0
LOCK_S = 30.0  # a claim may be in the middle of a bind
MAX_ATTEMPTS = 5  # per policy; then a person must look
FIRST_RETRY = timedelta(seconds=30)  # doubled per attempt: 30 s to 8 min


class Phase(StrEnum):
    """Where a mode change is."""

    SETTLED = "settled"
    WAITING = "waiting"  # for pods to end
    FAILED = "failed"  # all attempts are used


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeState:
    """What the last call found. `changing` are addresses that must not be allocated now."""

    phase: Phase
    changing: frozenset[str] = frozenset()
    reason: str = ""


class ModeChanger:
    """One per agent. `drain`, or a policy with `drain: evict`: evict pods that hold a device which must change.

    Otherwise wait for them.
    """

    def __init__(
        self,
        node: Node,
        store: ClaimStore,
        kube: Kube,
        *,
        name: str,
        drain: bool,
        quiet: AbstractContextManager[object] | None = None,
    ) -> None:
        """`quiet` is held while looking at the host, never while changing it."""
        self._quiet = quiet or nullcontext()
        self._node = node
        self._store = store
        self._kube = kube
        self._path = f"/api/v1/nodes/{name}"
        self._drain = drain
        self._policy: NodePolicy | None = None
        self._attempts = 0
        self._not_before: datetime | None = None
        self._error = ""

    def pending(self, policy: NodePolicy) -> frozenset[str]:
        """Addresses that the policy wants changed. Raises what planning raises: an impossible policy."""
        return frozenset(str(a) for a in self._plan(policy).touched)

    def _plan(self, policy: NodePolicy) -> Plan:
        with self._quiet:
            observed = observe_node(self._node)
        return plan_setup(observed, policy)

    def step(self, policy: NodePolicy, now: datetime) -> ModeState:
        """Do the next thing that can be done now. The caller has taken `changing` out of the pool before."""
        if policy != self._policy:
            self._policy, self._attempts, self._not_before, self._error = policy, 0, None, ""
        plan = self._plan(policy)
        if not plan.actions:
            return self._settle()
        changing = frozenset(str(a) for a in plan.touched)  # none where only CDI files are to be written
        if self._attempts >= MAX_ATTEMPTS:
            return ModeState(phase=Phase.FAILED, changing=changing, reason=self._error)
        if self._not_before is not None and now < self._not_before:
            return ModeState(phase=Phase.WAITING, changing=changing, reason=f"retry later: {self._error}")
        holders = self._reserve(changing, now)
        if holders:
            self._cordon()
            blocked = self._evict(holders) if self._drain or policy.drain is Drain.EVICT else "waiting for pods to end"
            names = ", ".join(sorted(str(h.ref) for h in holders))
            return ModeState(phase=Phase.WAITING, changing=changing, reason=f"{blocked}: {names}")
        try:
            setup(self._node, policy)
        except KataGpuError as exc:
            self._not_before = now + FIRST_RETRY * 2**self._attempts
            self._attempts += 1
            self._error = str(exc)
            phase = Phase.FAILED if self._attempts >= MAX_ATTEMPTS else Phase.WAITING
            return ModeState(phase=phase, changing=changing, reason=self._error)
        return self._settle()

    def _settle(self) -> ModeState:
        self._attempts, self._not_before, self._error = 0, None, ""
        with self._store.locked(LOCK_S):
            checkpoint = self._store.load()
            ours = [q.address for q in checkpoint.quarantine if q.reason == MODE_CHANGE]
            if ours:
                self._store.save(checkpoint.released(ours))
        self._uncordon()
        return ModeState(phase=Phase.SETTLED)

    def _reserve(self, changing: frozenset[str], now: datetime) -> tuple[ClaimEntry, ...]:
        """Keep new claims away through the checkpoint, which Prepare reads under the same lock.

        Returns who has a device already; then nothing is reserved.
        """
        with self._store.locked(LOCK_S):
            checkpoint = self._store.load()
            holders = tuple(c for c in checkpoint.claims if c.exclusive & changing)
            reserved = checkpoint
            for address in sorted(changing) if not holders else ():
                reserved = reserved.with_quarantine(address, MODE_CHANGE, now)
            if reserved != checkpoint:
                self._store.save(reserved)
            return holders

    def _evict(self, holders: Collection[ClaimEntry]) -> str:
        """Ask for each pod to go; a disruption budget without room is respected and asked again at the next call."""
        for entry in holders:
            path = f"/api/v1/namespaces/{entry.ref.namespace}/pods/{entry.pod}"
            body = {
                "apiVersion": "policy/v1",
                "kind": "Eviction",
                "metadata": {"name": entry.pod, "namespace": entry.ref.namespace},
            }
            try:
                self._kube.create(f"{path}/eviction", body, timeout_s=REQUEST_S)
            except TooMany as exc:
                return f"a disruption budget holds the drain back ({exc.got})"
            except Refused as exc:
                return f"pods are not evicted: is ClusterRole kata-gpu-node-evict bound? ({exc.got})"
            except (NotFound, Conflict):
                continue
        return "draining"

    def _cordon(self) -> None:
        node = self._kube.get(self._path, timeout_s=REQUEST_S)
        if node.get("spec", {}).get("unschedulable"):
            return
        patch = {"metadata": {"annotations": {CORDONED_BY: "true"}}, "spec": {"unschedulable": True}}
        self._kube.merge(self._path, patch, timeout_s=REQUEST_S)

    def _uncordon(self) -> None:
        """Only what we cordoned ourselves; an operator's cordon stays."""
        node = self._kube.get(self._path, timeout_s=REQUEST_S)
        if CORDONED_BY in (node["metadata"].get("annotations") or {}):
            patch = {"metadata": {"annotations": {CORDONED_BY: None}}, "spec": {"unschedulable": None}}
            self._kube.merge(self._path, patch, timeout_s=REQUEST_S)
