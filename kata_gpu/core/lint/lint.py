"""Every rule over a set of objects: pods, workloads with a pod template, claims and claim templates."""

from collections.abc import Iterable
from typing import Any

from kata_gpu.core.lint import claim, pod
from kata_gpu.core.lint.cluster import Cluster, appraise_cluster
from kata_gpu.core.lint.content import appraise_init_data
from kata_gpu.core.lint.rule import Json, Rule, Scope, Violation, items, mapping

_TEMPLATED = {"Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "ReplicaSet", "ReplicationController"}
_CLAIMS = {"ResourceClaim", "ResourceClaimTemplate"}


def pods_of(obj: Json) -> dict[str, Json]:
    """The pods that an object makes, by what tells them apart; none for other objects."""
    kind = obj.get("kind")
    if kind == "Pod":
        return {"": obj}
    if kind == "PodCliqueSet":
        return {f"/{c.get('name', '?')}": _of_clique(c) for c in items(obj, "spec", "template", "cliques")}
    way = ("spec", "jobTemplate", "spec", "template") if kind == "CronJob" else ("spec", "template")
    template = mapping(obj, *way)
    return {"": template} if template and kind in _TEMPLATED else {}


def _of_clique(clique: Json) -> Json:
    """Grove puts labels and annotations beside the spec, not into a template."""
    metadata = {k: clique[k] for k in ("labels", "annotations") if k in clique}
    return {"metadata": metadata, "spec": mapping(clique, "spec", "podSpec")}


def lint(objects: Iterable[Any], cluster: Cluster | None = None) -> tuple[Violation, ...]:
    """All violations, in the order of objects and rules. Objects of other kinds are passed over; nothing is raised."""
    found: list[Violation] = []
    for obj in objects:
        if not isinstance(obj, dict):
            continue
        subject = f"{obj.get('kind')}/{mapping(obj, 'metadata').get('name', '?')}"
        if obj.get("kind") in _CLAIMS:
            found += _apply(claim.RULES, obj, subject)
        for part, made in pods_of(obj).items():
            found += _apply(pod.RULES, made, f"{subject}{part}")
            found += appraise_init_data(made, f"{subject}{part}")
            if cluster is not None:
                found += appraise_cluster(made, cluster, f"{subject}{part}")
    return tuple(found)


def _apply(rules: Iterable[Rule], obj: Json, subject: str) -> list[Violation]:
    return [
        Violation(rule=r.id, scope=Scope.OBJECT, subject=subject, message=r.message, symptom=r.symptom)
        for r in rules
        if not r.holds(obj)
    ]
