"""The node agent: one loop that looks at policy, devices, claims and API, and brings each to what it should be.

Every pass runs every step; a step that fails is retried at a later pass with growing distance and keeps no other step
from running. Prepare and Unprepare are not here: they work whatever state this loop is in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from kata_gpu.core.allocatable import allocatables
from kata_gpu.core.checkpoint import Checkpoint
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.labels import render_labels
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.slices import Offer, Unfit, offers_of
from kata_gpu.errors import KataGpuError
from kata_gpu.ops.claim_status import ClaimStatus
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.modes import MODE_CHANGE, ModeChanger, ModeState, Phase
from kata_gpu.ops.prepare import ClaimPreparer
from kata_gpu.ops.publish import SlicePublisher
from kata_gpu.ops.reconcile_claims import ClaimReconciler
from kata_gpu.ops.report import NodeReporter
from kata_gpu.ports import ClaimStore, JsonObject, NodeDevices

PERIOD = timedelta(seconds=10)  # between passes without news
FULL_COMPARE = timedelta(minutes=10)  # slices and claims against the API, without any event
FIRST_BACKOFF = timedelta(seconds=2)
MAX_BACKOFF = timedelta(minutes=5)
REFRESH_S = 5.0
ADVISORY = frozenset({"condition", "events", "status"})  # steps that only tell: no pod is worse off while they fail
MAX_CONDITION = 512  # characters; the whole list is in `kata-gpu status`


class SliceView(Protocol):
    """What a watch knows of our slices."""

    def known(self) -> list[JsonObject] | None:
        """Our slices, or None where the watch does not know them now."""
        ...

    def changed(self) -> bool:
        """Whether an event came since the last call."""
        ...


@dataclass(slots=True)
class Retry:
    """When a step may run again."""

    failures: int = 0
    not_before: datetime | None = None
    error: KataGpuError | None = None

    def due(self, now: datetime) -> bool:
        """Whether its waiting time is over."""
        return self.not_before is None or now >= self.not_before

    def run(self, work: Callable[[], object], now: datetime) -> bool:
        """Run when due. True when it ran and succeeded."""
        if not self.due(now):
            return False
        try:
            work()
        except KataGpuError as exc:
            self.not_before = now + min(FIRST_BACKOFF * 2 ** min(self.failures, 16), MAX_BACKOFF)
            self.failures += 1
            self.error = exc
            return False
        self.failures, self.not_before, self.error = 0, None, None
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The node after a pass, for health stream, metrics and readiness."""

    offers: tuple[Offer, ...] = ()
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    modes: ModeState = field(default_factory=lambda: ModeState(phase=Phase.SETTLED))
    problems: dict[str, str] = field(default_factory=dict)
    published: bool = False
    writes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the loop drives."""

    devices: NodeDevices
    store: ClaimStore
    preparer: ClaimPreparer
    publisher: SlicePublisher
    reconciler: ClaimReconciler
    reporter: NodeReporter
    status: ClaimStatus
    slices: SliceView
    modes: ModeChanger | None
    policy: Callable[[], NodePolicy | None]
    bridge_up: Callable[[], bool]
    dead: Callable[[Inventory], frozenset[str]]
    recover: Callable[[], object] = lambda: None  # the checkpoint, where somebody has removed it


class Agent:
    """Call `step` when something happened, or after PERIOD."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        steps = ("recover", "observe", "refresh", "claims", "policy", "slices", "labels", *ADVISORY)
        self._retries = {name: Retry() for name in steps}
        self._offers: tuple[Offer, ...] | None = None
        self._compared: datetime | None = None
        self._reconciled: datetime | None = None
        self._modes = ModeState(phase=Phase.SETTLED)
        self._inventory: Inventory | None = None
        self._checkpoint = Checkpoint()
        self._published = False
        self._writes = 0

    def step(self, now: datetime) -> Picture:
        """One pass."""
        parts = self._parts
        self._retries["recover"].run(parts.recover, now)
        self._retries["observe"].run(self._observe, now)
        inventory = self._inventory
        if inventory is not None:
            self._retries["refresh"].run(lambda: parts.preparer.refresh(Deadline.after(REFRESH_S)), now)
            self._retries["claims"].run(lambda: self._claims(now), now)
            self._retries["policy"].run(lambda: self._policy(now), now)
            self._retries["slices"].run(lambda: self._publish(now), now)
            self._retries["labels"].run(lambda: parts.reporter.labels(render_labels(self._inventory or inventory)), now)
            self._retries["status"].run(
                lambda: parts.status.run(self._checkpoint, self._inventory or inventory, now), now
            )
        self._retries["condition"].run(lambda: self._condition(now), now)
        self._retries["events"].run(lambda: self._events(now), now)
        return Picture(
            offers=self._offers or (),
            checkpoint=self._checkpoint,
            modes=self._modes,
            problems=self._problems(),
            published=self._published,
            writes=self._writes,
        )

    def _observe(self) -> None:
        self._inventory = self._parts.devices.observe()
        self._checkpoint = self._parts.store.load()

    def _claims(self, now: datetime) -> None:
        if self._reconciled is None or now - self._reconciled >= FULL_COMPARE:
            self._parts.reconciler.run(now)
            self._parts.reconciler.heal()
            self._parts.reconciler.read_modes()
            self._reconciled = now
            self._observe()

    def _policy(self, now: datetime) -> None:
        """Take what must change out of the pool first, then change it."""
        changer, policy = self._parts.modes, self._parts.policy()
        if changer is None or policy is None:
            return
        pending = changer.pending(policy)
        if pending:
            self._modes = ModeState(phase=Phase.WAITING, changing=pending, reason="mode change pending")
            self._publish(now)
        self._modes = changer.step(policy, now)
        if pending or self._modes.changing:
            self._observe()

    def _publish(self, now: datetime) -> None:
        inventory = self._inventory
        if inventory is None:
            return
        offers = offers_of(inventory, allocatables(inventory), self._unfit(inventory))
        due = self._compared is None or now - self._compared >= FULL_COMPARE
        if offers == self._offers and self._published and not due and not self._parts.slices.changed():
            return
        current = None if due else self._parts.slices.known()
        self._published = False
        self._writes += self._parts.publisher.sync(inventory, offers, current=current).writes
        self._published = True
        self._offers = offers
        if due:
            self._compared = now

    def _unfit(self, inventory: Inventory) -> dict[str, Unfit]:
        """Later lines win: what is worse for a running pod is said last."""
        addresses = [str(d.function.address) for d in inventory.devices]
        out = {} if self._parts.bridge_up() else dict.fromkeys(addresses, Unfit(code="bridge-down"))
        out |= {str(d.function.address): Unfit(code="device-problem") for d in inventory.devices if d.problem}
        code = "mode-failed" if self._modes.phase is Phase.FAILED else "mode-transition"
        out |= dict.fromkeys(self._modes.changing, Unfit(code=code))
        out |= {q.address: Unfit(code="quarantined") for q in self._checkpoint.quarantine if q.reason != MODE_CHANGE}
        if self._retries["observe"].error is not None:  # this inventory is an old one, and Prepare refuses
            out |= dict.fromkeys(addresses, Unfit(code="state-unreadable"))
        out |= dict.fromkeys(self._parts.dead(inventory), Unfit(code="device-dead", evict=True))
        return out

    def _problems(self) -> dict[str, str]:
        return {name: str(r.error) for name, r in self._retries.items() if r.error is not None}

    def _condition(self, now: datetime) -> None:
        problems = {n: e for n, e in self._problems().items() if n not in ADVISORY}
        self._parts.reporter.condition(*verdict(problems, self._modes, self._offers or ()), now)

    def _events(self, now: datetime) -> None:
        reporter = self._parts.reporter
        for reason, holds, message in (
            ("SlicesRefused", (error := self._retries["slices"].error) is not None, str(error)),
            ("PolicyRefused", (failed := self._retries["policy"].error) is not None, str(failed)),
            ("ModeFailed", self._modes.phase is Phase.FAILED, self._modes.reason),
        ):
            if holds:
                reporter.event(reason, message, now, warning=True)
            else:
                reporter.forget(reason)


def verdict(problems: Mapping[str, str], modes: ModeState, offers: Sequence[Offer]) -> tuple[bool, str, str]:
    """Status, reason and message of the node's condition."""
    unfit = [f"{o.device.name}: {o.unfit.code}" for o in offers if o.unfit]
    if problems:
        name = min(problems)
        ready, reason, message = False, "StepFailing", f"{name}: {problems[name]}"
    elif modes.phase is not Phase.SETTLED:
        ready, reason, message = False, f"Mode{modes.phase.capitalize()}", modes.reason
    elif unfit:
        ready, reason, message = False, "DevicesUnfit", "; ".join(unfit)
    else:
        ready, reason, message = True, "Ready", f"{len(offers)} devices offered"
    return ready, reason, message[:MAX_CONDITION]
