"""Rules that unpack the pod's init-data: the agent policy in it must allow as many GPUs as the pod gets."""

from kata_gpu.core.kata.agent_policy import parse_policy_data, vfio_counts
from kata_gpu.core.kata.initdata import ANNOTATION, appraise_initdata, parse_any
from kata_gpu.core.lint.pod import PASSTHROUGH_RESOURCES, PGPU, annotations, limits
from kata_gpu.core.lint.rule import Json, Scope, Violation, items, mapping
from kata_gpu.errors import Malformed


def appraise_init_data(pod: Json, subject: str) -> tuple[Violation, ...]:
    """What is wrong with the init-data annotation of a pod; nothing where the pod has none."""
    value = annotations(pod).get(ANNOTATION)
    if not isinstance(value, str) or not value:
        return ()

    def broken(rule: str, message: str, symptom: str) -> Violation:
        return Violation(rule=rule, scope=Scope.CONTENT, subject=subject, message=message, symptom=symptom)

    try:
        document = parse_any(value.encode(), where=ANNOTATION)
        data = parse_policy_data(document.data.get("policy.rego", ""))
    except Malformed as exc:
        why = f"{exc} (`kata-gpu initdata build --annotation` prints the value)"
        return (broken("init-data-malformed", why, "the VM does not start, or starts without its configuration"),)
    found = [broken(f"init-data-{p.code}", p.what, p.symptom) for p in appraise_initdata(document)]
    wanted = _devices_wanted(pod)
    if data is not None and wanted and not any(vfio_counts(data)):
        found.append(
            broken(
                "policy-allows-no-gpu",
                f"the pod gets GPUs from {wanted}, its agent policy allows none: genpolicy counts only {PGPU} limits; "
                "use `kata-gpu initdata build --vfio-devices`, or a DeviceClass with extendedResourceName",
                "CreateContainer is denied by the guest's policy",
            )
        )
    return tuple(found)


def _devices_wanted(pod: Json) -> str:
    for name in PASSTHROUGH_RESOURCES:
        if any(name in lim for lim in limits(pod)):
            return f"{name} limits"
    return "resource claims" if items(mapping(pod, "spec"), "resourceClaims") else ""
