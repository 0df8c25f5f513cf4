"""The requirements of the CNCF Kubernetes AI Conformance programme that concern accelerators, judged on one cluster.

Identifiers, levels and sections are those of its checklists for 1.35 to 1.37. What a cluster's objects cannot show is
left empty with a note: a person must demonstrate it. Nothing is claimed that was not looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kata_gpu.core.claim import DRIVER
from kata_gpu.core.lint.rule import Json, items, mapping

DRA_RESOURCES = ("deviceclasses", "resourceclaims", "resourceclaimtemplates", "resourceslices")
GANG_GROUPS = {
    "kueue.x-k8s.io": "Kueue",
    "scheduling.run.ai": "KAI Scheduler",
    "scheduling.volcano.sh": "Volcano",
    "scheduling.x-k8s.io": "coscheduling",
}
POLICIES = ("kata-gpu-pods", "kata-gpu-claims", "kata-gpu-class", "kata-gpu-own-node")
AGENT = "kata-gpu-node"  # DaemonSet
SYSTEM_PRIORITIES = ("system-node-critical", "system-cluster-critical")  # by default only in kube-system and by quota
DEVICE_ROOTS = ("/", "/dev", "/dev/vfio", "/sys")  # host paths that reach a device past allocation


class Level(StrEnum):
    """How binding a requirement is."""

    MUST = "MUST"
    SHOULD = "SHOULD"


class Status(StrEnum):
    """Words of the programme's reports. UNKNOWN is the empty field of its form."""

    IMPLEMENTED = "Implemented"
    PARTIAL = "Partially Implemented"
    MISSING = "Not Implemented"
    NOT_APPLICABLE = "N/A"
    UNKNOWN = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What was read from the API server."""

    version: str
    groups: frozenset[str]
    dra_v1: frozenset[str]  # resources that resource.k8s.io/v1 serves
    slices: Sequence[Json]
    claims: Sequence[Json]
    device_classes: Sequence[Json]
    runtime_classes: Sequence[Json]
    nodes: Sequence[Json]
    pods: Sequence[Json]
    daemon_sets: Sequence[Json]
    policies: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One row of the report."""

    section: str
    id: str
    description: str
    level: Level
    status: Status
    evidence: tuple[str, ...] = ()
    notes: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the programme's form has it."""
        return {
            "id": self.id,
            "description": self.description,
            "level": str(self.level),
            "status": str(self.status),
            "evidence": list(self.evidence),
            "notes": self.notes,
        }


def appraise(seen: Observed) -> tuple[Requirement, ...]:
    """Every requirement that concerns accelerators, in the order of the form."""
    return (
        _dra(seen), _runtime(seen), _sharing(), _virtual(), _gang(seen), _autoscaling(), _metrics(seen), _access(seen),
        _sandbox(seen),
    )  # fmt: skip


def report(seen: Observed, rows: Sequence[Requirement], metadata: Mapping[str, str]) -> dict[str, Any]:
    """The report as a mapping of the form's shape. `metadata` fills what only its author knows."""
    spec: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        spec.setdefault(row.section, []).append(row.to_json())
    return {"metadata": {"kubernetesVersion": seen.version, **metadata}, "spec": spec}


def _ours(seen: Observed) -> list[Json]:
    return [s for s in seen.slices if mapping(s, "spec").get("driver") == DRIVER]


def _devices(seen: Observed) -> int:
    return sum(len(items(s, "spec", "devices")) for s in _ours(seen))


def _dra(seen: Observed) -> Requirement:
    missing = [r for r in DRA_RESOURCES if r not in seen.dra_v1]
    devices = _devices(seen)
    status = Status.MISSING if missing else Status.IMPLEMENTED if devices else Status.PARTIAL
    return Requirement(
        section="accelerators", id="dra_support", level=Level.MUST, status=status,
        description="Dynamic Resource Allocation (resource.k8s.io/v1) is served and accelerators are allocated by it.",
        evidence=(f"resource.k8s.io/v1 serves {', '.join(sorted(seen.dra_v1))}",
                  f"{devices} devices of driver {DRIVER} in {len(_ours(seen))} slices"),
        notes=f"not served: {', '.join(missing)}" if missing else "" if devices else "no device is published",
    )  # fmt: skip


def _runtime(seen: Observed) -> Requirement:
    agent = _agent(seen)
    wanted, ready = agent.get("desiredNumberScheduled", 0), agent.get("numberReady", 0)
    status = Status.MISSING if not wanted else Status.IMPLEMENTED if ready == wanted else Status.PARTIAL
    return Requirement(
        section="accelerators", id="driver_runtime_management", level=Level.SHOULD, status=status,
        description="Drivers and runtime configuration on accelerator nodes are verifiably right.",
        evidence=(f"DaemonSet {AGENT}: {ready} of {wanted} ready",),
        notes="The host has no accelerator driver: the guest's is measured and attested. Node side: kata-gpu doctor.",
    )  # fmt: skip


def _sharing() -> Requirement:
    return Requirement(
        section="accelerators", id="gpu_sharing", level=Level.SHOULD, status=Status.NOT_APPLICABLE,
        description="At least one GPU sharing strategy where the accelerator supports it.",
        notes="A confidential GPU is attested and owned whole; admission refuses MIG and shared resources.",
    )  # fmt: skip


def _virtual() -> Requirement:
    return Requirement(
        section="accelerators", id="virtualized_accelerator", level=Level.SHOULD, status=Status.NOT_APPLICABLE,
        description="Virtualised accelerators are exposed and managed where they are supported.",
        notes="vGPU has no confidential mode; whole GPUs are passed to VMs.",
    )  # fmt: skip


def _gang(seen: Observed) -> Requirement:
    found = [f"{name} ({group})" for group, name in GANG_GROUPS.items() if group in seen.groups]
    return Requirement(
        section="schedulingOrchestration", id="gang_scheduling", level=Level.MUST,
        status=Status.PARTIAL if found else Status.MISSING,
        description="At least one gang scheduler can be installed and works.",
        evidence=tuple(found),
        notes="Its API is served; showing an all-or-nothing run is yours." if found else "None is served.",
    )  # fmt: skip


def _autoscaling() -> Requirement:
    return Requirement(
        section="schedulingOrchestration", id="cluster_autoscaling", level=Level.MUST, status=Status.UNKNOWN,
        description="A cluster autoscaler, where there is one, scales groups with accelerators for pending pods.",
        notes="Objects do not show it: see docs/integrations/autoscaling.md.",
    )  # fmt: skip


def _metrics(seen: Observed) -> Requirement:
    ready = _agent(seen).get("numberReady", 0)
    return Requirement(
        section="observability", id="accelerator_metrics", level=Level.MUST,
        status=Status.PARTIAL if ready else Status.MISSING,
        description="Per-accelerator metrics at a standard, machine-readable endpoint.",
        evidence=(f"{ready} agents serve /metrics: devices by state, claims, quarantine, mode changes",),
        notes="Utilisation and memory of a confidential GPU are visible in its VM only: DCGM exporter in the guest.",
    )  # fmt: skip


def _access(seen: Observed) -> Requirement:
    offered = {mapping(s, "spec").get("nodeName") for s in _ours(seen)}
    breaches = [
        *(f"admission policy {name} is not there" for name in POLICIES if name not in seen.policies),
        *(f"DeviceClass {c} selects no driver" for c in _open_classes(seen)),
        *(f"device {d} is allocated to {' and '.join(claims)}" for d, claims in _shared(seen)),
        *(f"pod {p} reaches devices of the host" for p in _reaching(seen, offered)),
    ]
    served = not [r for r in DRA_RESOURCES if r not in seen.dra_v1]
    status = Status.MISSING if not served else Status.PARTIAL if breaches else Status.IMPLEMENTED
    return Requirement(
        section="security", id="secure_accelerator_access", level=Level.MUST, status=status,
        description="Access to accelerators is isolated and mediated by resource management and container runtime.",
        evidence=(f"{len(seen.policies & set(POLICIES))} of {len(POLICIES)} admission policies",
                  f"{len(seen.claims)} claims, {len(seen.pods)} pods looked at"),
        notes="; ".join(breaches),
    )  # fmt: skip


def _open_classes(seen: Observed) -> list[str]:
    """Classes of our driver's configuration whose selectors would also match another driver's device."""
    found = []
    for obj in seen.device_classes:
        ours = any(mapping(c, "opaque").get("driver") == DRIVER for c in items(obj, "spec", "config"))
        selects = any(
            "device.driver ==" in str(mapping(s, "cel").get("expression")) for s in items(obj, "spec", "selectors")
        )
        if ours and not selects:
            found.append(str(mapping(obj, "metadata").get("name")))
    return found


def _shared(seen: Observed) -> list[tuple[str, list[str]]]:
    holders: dict[str, list[str]] = {}
    for claim in seen.claims:
        meta = mapping(claim, "metadata")
        for result in items(claim, "status", "allocation", "devices", "results"):
            if result.get("driver") == DRIVER and result.get("adminAccess") is not True:
                device = f"{result.get('pool')}/{result.get('device')}"
                holders.setdefault(device, []).append(f"{meta.get('namespace')}/{meta.get('name')}")
    return [(d, names) for d, names in sorted(holders.items()) if len(names) > 1]


def _reaching(seen: Observed, nodes: set[Any]) -> list[str]:
    """Workloads on accelerator nodes that get device nodes past allocation. The node's own software is no workload:
    network plug-ins and kube-proxy are privileged everywhere.
    """
    found = []
    for pod in seen.pods:
        meta, spec = mapping(pod, "metadata"), mapping(pod, "spec")
        if spec.get("nodeName") not in nodes or spec.get("priorityClassName") in SYSTEM_PRIORITIES:
            continue
        mounts = {str(mapping(v, "hostPath").get("path", "")).rstrip("/") or "/" for v in items(spec, "volumes")
                  if "hostPath" in v}  # fmt: skip
        both = items(spec, "containers") + items(spec, "initContainers")
        privileged = any(mapping(c, "securityContext").get("privileged") is True for c in both)
        if privileged or mounts & set(DEVICE_ROOTS) or any(m.startswith("/dev/vfio") for m in mounts):
            found.append(f"{meta.get('namespace')}/{meta.get('name')}")
    return found


def _sandbox(seen: Observed) -> Requirement:
    classes = [o for o in seen.runtime_classes if str(o.get("handler", "")).startswith("kata")]
    placed = [str(mapping(c, "metadata").get("name")) for c in classes if any(_fits(c, n) for n in seen.nodes)]
    status = Status.MISSING if not classes else Status.IMPLEMENTED if placed else Status.PARTIAL
    return Requirement(
        section="security", id="workload_sandboxing", level=Level.SHOULD, status=status,
        description="Workloads can run in a sandbox that isolates them from the host's kernel.",
        evidence=tuple(f"RuntimeClass {name}" for name in placed),
        notes="" if placed else "no RuntimeClass of Kata" if not classes else "no node fits its RuntimeClass",
    )  # fmt: skip


def _fits(runtime_class: Json, node: Json) -> bool:
    labels = mapping(node, "metadata", "labels")
    return all(labels.get(k) == v for k, v in mapping(runtime_class, "scheduling", "nodeSelector").items())


def _agent(seen: Observed) -> Mapping[str, Any]:
    found = next((d for d in seen.daemon_sets if mapping(d, "metadata").get("name") == AGENT), None)
    return mapping(found, "status")
