"""Install and uninstall through the API server: observe, plan, apply, and plan again to prove it."""

import time
from collections.abc import Callable, Mapping, Sequence

from kata_gpu.core.api_errors import NotFound
from kata_gpu.core.manifests.install import (
    MANAGER,
    Object,
    Step,
    Verb,
    is_going,
    is_ours,
    plan_install,
    plan_uninstall,
)
from kata_gpu.core.manifests.paths import object_path
from kata_gpu.errors import Unavailable
from kata_gpu.ports import Kube

CALL_S = 15.0  # one object
POLL_S = 0.5  # while the cluster's controllers finish deletions
WAIT_S = 60.0  # default of `--wait`: more than a pod's grace period


def observe(kube: Kube, objects: Sequence[Object]) -> dict[str, Object | None]:
    """What is at every path now."""
    found: dict[str, Object | None] = {}
    for obj in objects:
        path = object_path(obj)
        try:
            found[path] = kube.get(path, timeout_s=CALL_S)
        except NotFound:
            found[path] = None
    return found


def install(
    kube: Kube,
    objects: Sequence[Object],
    *,
    say: Callable[[Step], None],
    wait_s: float = WAIT_S,
    obsolete: Sequence[Object] = (),
) -> tuple[Step, ...]:
    """Make the cluster as wanted, without what is `obsolete`. Returns the steps that were taken; raises Unavailable
    where they did not hold.

    Waits first for the end of an earlier deletion: the server lets nobody create in a namespace that is going.
    """
    _settle(kube, objects, wait_s)
    return _carry_out(kube, objects, plan_install, say, also=obsolete)


def uninstall(
    kube: Kube, objects: Sequence[Object], *, say: Callable[[Step], None], wait_s: float = WAIT_S
) -> tuple[Step, ...]:
    """Remove what we installed, and wait until it is gone. Raises Unavailable where something is left."""
    return _carry_out(kube, objects, plan_uninstall, say, settle_s=wait_s)


def _settle(kube: Kube, objects: Sequence[Object], wait_s: float) -> None:
    """Until nothing of ours is being deleted."""
    until = time.monotonic() + wait_s
    while going := {p: o for p, o in observe(kube, objects).items() if o and is_ours(o) and is_going(o)}:
        if time.monotonic() >= until:
            held = "; ".join(f"{p} ({', '.join(_held_by(o)) or 'grace period'})" for p, o in going.items())
            raise Unavailable("install-deleting", "deleted, but not gone yet", expected=f"gone in {wait_s:g} s",
                              got=held, hint="controllers end it; look with uninstall --verify")  # fmt: skip
        time.sleep(POLL_S)


def _held_by(obj: Object) -> list[str]:
    return [*obj["metadata"].get("finalizers", ()), *obj.get("spec", {}).get("finalizers", ())]


def _carry_out(
    kube: Kube,
    objects: Sequence[Object],
    plan: Callable[[Sequence[Object], Mapping[str, Object | None]], tuple[Step, ...]],
    say: Callable[[Step], None],
    settle_s: float | None = None,
    also: Sequence[Object] = (),
) -> tuple[Step, ...]:
    steps = plan(objects, observe(kube, [*objects, *also]))
    for step in steps:
        say(step)
        if step.verb is Verb.DELETE:
            kube.delete(step.path, uid=step.uid, timeout_s=CALL_S)
        elif step.verb is not Verb.WAIT:
            kube.apply(step.path, dict(step.obj), manager=MANAGER, timeout_s=CALL_S)
    if settle_s is not None:
        _settle(kube, objects, settle_s)
    left = plan(objects, observe(kube, [*objects, *also]))
    if left:
        raise Unavailable("install-not-converged", "the cluster is not as planned", expected="nothing left to do",
                          got="; ".join(map(str, left[:5])), hint="run the same command again")  # fmt: skip
    return steps
