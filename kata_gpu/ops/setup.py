"""`node setup`, `node reset` and the smaller verbs: observe, plan, apply, plan again to prove that nothing is left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kata_gpu.core.gpu import CcMode
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.pci import PciAddress
from kata_gpu.core.plan import Observed, Plan, plan_bind, plan_mode, plan_release, plan_reset, plan_setup
from kata_gpu.errors import Unavailable
from kata_gpu.host.owners import require_sole_owner
from kata_gpu.ops.apply import apply
from kata_gpu.ops.node import Node, observe_node
from kata_gpu.ops.recover import recover

Planner = Callable[[Observed], Plan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was planned, what a run before it left to undo, and how the node is now."""

    plan: Plan
    recovered: str
    now: Observed
    applied: bool


def run(node: Node, planner: Planner, *, dry_run: bool) -> Outcome:
    """Plan and apply under the node's lock; with `dry_run` only plan, writing nothing at all.

    Raises InUse naming another manager of the devices, what planning raises, and what `apply` raises.
    """
    require_sole_owner(node.host)
    if dry_run:
        left = node.journal.open_transaction()
        observed = observe_node(node)
        recovered = f"would first undo: {left}" if left is not None else ""
        return Outcome(plan=planner(observed), recovered=recovered, now=observed, applied=False)
    with node.locked():
        recovered = recover(node)
        observed = observe_node(node)
        plan = apply(node, planner(observed), observed)
        now = observe_node(node) if plan.actions else observed
        left_over = planner(now)
    if left_over.actions:
        raise Unavailable(
            "not-converged",
            "the plan was carried out and the node still differs from the policy",
            got="; ".join(str(a) for a in left_over.actions),
        )
    return Outcome(plan=plan, recovered=recovered, now=now, applied=bool(plan.actions))


def setup(node: Node, policy: NodePolicy, *, dry_run: bool = False) -> Outcome:
    """Bring the node to its policy."""
    return run(node, lambda observed: plan_setup(observed, policy), dry_run=dry_run)


def reset(node: Node, *, keep_mode: bool = False, dry_run: bool = False) -> Outcome:
    """Give every device of ours back."""
    return run(node, lambda observed: plan_reset(observed, keep_mode=keep_mode), dry_run=dry_run)


def bind(node: Node, addresses: Sequence[PciAddress], *, dry_run: bool = False) -> Outcome:
    """Bring devices to VFIO."""
    return run(node, lambda observed: plan_bind(observed, addresses), dry_run=dry_run)


def release(node: Node, addresses: Sequence[PciAddress], *, dry_run: bool = False) -> Outcome:
    """Give devices back to where they came from."""
    return run(node, lambda observed: plan_release(observed, addresses), dry_run=dry_run)


def set_mode(node: Node, addresses: Sequence[PciAddress], mode: CcMode, *, dry_run: bool = False) -> Outcome:
    """Switch the CC mode of bound devices as one set."""
    return run(node, lambda observed: plan_mode(observed, addresses, mode), dry_run=dry_run)
