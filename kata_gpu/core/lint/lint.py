"""Every rule over a set of objects: pods, workloads with a pod template, claims and claim templates."""

from collections.abc import Iterable
from typing import Any

from kata_gpu.core.lint import claim, pod
from kata_gpu.core.lint.cluster import Cluster, appraise_cluster
from kata_gpu.core.lint.content import appraise_init_data
from kata_gpu.core.lint.rule import Json, Rule, Scope, Violation, mapping

_TEMPLATED = {"Deployment", "StatefulSet", "DaemonSet", "Job", "ReplicaSet", "ReplicationController"}
_CLAIMS = {"ResourceClaim", "ResourceClaimTemplate"}


def pod_of(obj: Json) -> Json | None:
    """The pod that an object makes, or None where it makes none."""
    kind = obj.get("kind")
    if kind == "Pod":
        return obj
    if kind == "CronJob":
        return mapping(obj, "spec", "jobTemplate", "spec", "template") or None
    return mapping(obj, "spec", "template") or None if kind in _TEMPLATED else None


def lint(objects: Iterable[Any], cluster: Cluster | None = None) -> tuple[Violation, ...]:
    """All violations, in the order of objects and rules. Objects of other kinds are passed over; nothing is raised."""
    found: list[Violation] = []
    for obj in objects:
        if not isinstance(obj, dict):
            continue
        subject = f"{obj.get('kind')}/{mapping(obj, 'metadata').get('name', '?')}"
        if obj.get("kind") in _CLAIMS:
            found += _apply(claim.RULES, obj, subject)
        elif (made := pod_of(obj)) is not None:
            found += _apply(pod.RULES, made, subject)
            found += appraise_init_data(made, subject)
            if cluster is not None:
                found += appraise_cluster(made, cluster, subject)
    return tuple(found)


def _apply(rules: Iterable[Rule], obj: Json, subject: str) -> list[Violation]:
    return [
        Violation(rule=r.id, scope=Scope.OBJECT, subject=subject, message=r.message, symptom=r.symptom)
        for r in rules
        if not r.holds(obj)
    ]
