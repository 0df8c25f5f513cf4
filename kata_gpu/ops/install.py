"""Install and uninstall through the API server: observe, plan, apply, and plan again to prove it."""

from collections.abc import Callable, Mapping, Sequence

from kata_gpu.core.api_errors import NotFound
from kata_gpu.core.manifests.install import MANAGER, Object, Step, Verb, plan_install, plan_uninstall
from kata_gpu.core.manifests.paths import object_path
from kata_gpu.errors import Unavailable
from kata_gpu.ports import Kube

CALL_S = 15.0  # one object


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


def install(kube: Kube, objects: Sequence[Object], *, say: Callable[[Step], None]) -> tuple[Step, ...]:
    """Make the cluster as wanted. Returns the steps that were taken; raises Unavailable where they did not hold."""
    return _carry_out(kube, objects, plan_install, say)


def uninstall(kube: Kube, objects: Sequence[Object], *, say: Callable[[Step], None]) -> tuple[Step, ...]:
    """Remove what we installed. Raises Unavailable where something is left (a finalizer, say)."""
    return _carry_out(kube, objects, plan_uninstall, say)


def _carry_out(
    kube: Kube,
    objects: Sequence[Object],
    plan: Callable[[Sequence[Object], Mapping[str, Object | None]], tuple[Step, ...]],
    say: Callable[[Step], None],
) -> tuple[Step, ...]:
    steps = plan(objects, observe(kube, objects))
    for step in steps:
        say(step)
        if step.verb is Verb.DELETE:
            kube.delete(step.path, uid=step.uid, timeout_s=CALL_S)
        else:
            kube.apply(step.path, dict(step.obj), manager=MANAGER, timeout_s=CALL_S)
    left = plan(objects, observe(kube, objects))
    if left:
        raise Unavailable("install-not-converged", "the cluster is not as planned", expected="nothing left to do",
                          got="; ".join(map(str, left[:5])), hint="run the same command again")  # fmt: skip
    return steps
