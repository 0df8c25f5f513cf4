"""What an API server refuses, drops and fills in, for the resources that the driver uses: dra.md 2.

Each rule was seen on kube-apiserver 1.36.2; the `envtest` suite runs the same tests there.
"""

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from tests.kata_gpu.dra.fake_kinds import ApiError, Kind, Object

ADMIN_ACCESS = "resource.kubernetes.io/admin-access"  # label of namespaces whose claims may have it
Lookup = Callable[[str, str], Object | None]  # (resource, name) of a cluster-wide object


def validate(kind: Kind, obj: Object, old: Object | None, drop: set[str], there: Lookup) -> None:
    """Refuse `obj` with the status code of the real server. `drop` names feature gates that are off."""
    match kind.resource:
        case "resourceslices":
            validate_slice(obj, old, drop)
        case "resourceclaims":
            _claim_spec(obj["metadata"]["namespace"], obj["spec"], there)
            _allocation(obj, old)
        case "resourceclaimtemplates":
            _claim_spec(obj["metadata"]["namespace"], obj["spec"]["spec"], there)
        case "runtimeclasses":
            _canonical(obj.get("overhead", {}).get("podFixed", {}))
        case "pods":
            _pod(obj, there)


def _invalid(what: str, field: str, why: str) -> ApiError:
    return ApiError(422, "Invalid", f"{what} is invalid: {field}: {why}")


def _requests(spec: Object) -> Iterable[Object]:
    return spec.get("devices", {}).get("requests") or []


def _claim_spec(namespace: str, spec: Object, there: Lookup) -> None:
    _defaults(spec)
    labels = (there("namespaces", namespace) or {"metadata": {}})["metadata"].get("labels", {})
    if any(r.get("exactly", {}).get("adminAccess") for r in _requests(spec)) and labels.get(ADMIN_ACCESS) != "true":
        raise ApiError(
            403, "Forbidden", f"admin access to devices requires the `{ADMIN_ACCESS}: true` label on the namespace"
        )


def _defaults(spec: Object) -> None:
    for request in _requests(spec):
        exactly = request.get("exactly", {})
        if exactly and exactly.setdefault("allocationMode", "ExactCount") == "ExactCount":
            exactly["count"] = exactly.get("count") or 1


def _allocation(obj: Object, old: Object | None) -> None:
    """Set once, and only with requests of this claim."""
    new, before = (o.get("status", {}).get("allocation") if o else None for o in (obj, old))
    if before is not None and new is not None and new != before:
        raise _invalid("ResourceClaim.resource.k8s.io", "status.allocation", "field is immutable")
    names = {r["name"] for r in _requests(obj["spec"])}
    names |= {f"{r['name']}/{s['name']}" for r in _requests(obj["spec"]) for s in r.get("firstAvailable", ())}
    for index, result in enumerate((new or {}).get("devices", {}).get("results", ())):
        if result["request"] not in names:
            where = f"status.allocation.devices.results[{index}].request"
            raise _invalid("ResourceClaim.resource.k8s.io", where, "must be the name of a request in the claim")
    _device_status(obj, new or {})


def _device_status(obj: Object, allocation: Object) -> None:
    """An entry per allocated device at most, within its bounds."""
    given = {_allocated(r) for r in allocation.get("devices", {}).get("results", ())}
    for index, row in enumerate(obj.get("status", {}).get("devices") or ()):
        where = f"status.devices[{index}]"
        if _allocated(row) not in given:
            raise _invalid("ResourceClaim.resource.k8s.io", where, "must be an allocated device in the claim")
        if len(row.get("conditions") or ()) > 8:
            raise _invalid("ResourceClaim.resource.k8s.io", f"{where}.conditions", "Too many")
        if len(json.dumps(row.get("data"))) > 10 << 10:
            raise _invalid(
                "ResourceClaim.resource.k8s.io", f"{where}.data", "Too long: may not be more than 10240 bytes"
            )


def _allocated(row: Object) -> tuple[Any, ...]:
    return row.get("driver"), row.get("pool"), row.get("device"), row.get("shareID")


def _canonical(quantities: Object) -> None:
    """Binary multiples are written in the largest unit that keeps them whole."""
    for key, value in quantities.items():
        for smaller, larger in (("Ki", "Mi"), ("Mi", "Gi"), ("Gi", "Ti")):
            if value.endswith(smaller) and int(value[:-2]) % 1024 == 0:
                value = f"{int(value[:-2]) // 1024}{larger}"
        quantities[key] = value


def _pod(obj: Object, there: Lookup) -> None:
    runtime = obj.get("spec", {}).get("runtimeClassName")
    if runtime and there("runtimeclasses", runtime) is None:
        raise ApiError(403, "Forbidden", f'pod rejected: RuntimeClass "{runtime}" not found')
    containers = obj.get("spec", {}).get("containers")
    if not containers:
        raise _invalid("Pod", "spec.containers", "Required value")
    for index, container in enumerate(containers):
        for field in ("name", "image"):
            if not container.get(field):
                raise _invalid("Pod", f"spec.containers[{index}].{field}", "Required value")


def validate_slice(obj: Object, old: Object | None, drop: set[str]) -> None:
    """dra.md 2.1: what the API server refuses, drops and fills in."""

    def invalid(field: str, why: str) -> ApiError:
        return ApiError(422, "Invalid", f"ResourceSlice.resource.k8s.io is invalid: {field}: {why}")

    spec = obj.get("spec")
    if not isinstance(spec, dict):
        raise invalid("spec", "Required value")
    devices = spec.get("devices") or []
    if "counters" in drop:
        spec.pop("sharedCounters", None)
    for device in devices:
        if "counters" in drop:
            device.pop("consumesCounters", None)
        if "taints" in drop:
            device.pop("taints", None)
    special = any(d.get("taints") or d.get("consumesCounters") for d in devices)
    if len(devices) > (64 if special else 128):
        raise invalid("spec.devices", f"Too many: {len(devices)}")
    if devices and spec.get("sharedCounters"):
        raise invalid("spec", "only one of devices and sharedCounters can be set")
    if sum(bool(spec.get(k)) for k in ("nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection")) != 1:
        raise invalid("spec", "exactly one of nodeName, nodeSelector, allNodes, perDeviceNodeSelection is required")
    if spec.get("pool", {}).get("resourceSliceCount", 0) <= 0:
        raise invalid("spec.pool.resourceSliceCount", "must be greater than zero")
    if old is not None:
        for field, before, after in (
            ("driver", old["spec"]["driver"], spec.get("driver")),
            ("nodeName", old["spec"].get("nodeName"), spec.get("nodeName")),
            ("pool.name", old["spec"]["pool"]["name"], spec["pool"].get("name")),
        ):
            if before != after:
                raise invalid(f"spec.{field}", "field is immutable")
    names = [d.get("name") for d in devices]
    if len(set(names)) != len(names):
        raise invalid("spec.devices", "Duplicate value")
    for index, device in enumerate(devices):
        where = f"spec.devices[{index}]"
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", device.get("name", "")):
            raise invalid(f"{where}.name", "must be a DNS label")
        attributes = device.get("attributes", {})
        if len(attributes) + len(device.get("capacity", {})) > 32:
            raise invalid(where, "the total number of attributes and capacities must not exceed 32")
        for key, value in attributes.items():
            if len(key.rsplit("/", 1)[-1]) > 32 or not re.fullmatch(r"[A-Za-z_]\w*", key.rsplit("/", 1)[-1]):
                raise invalid(f"{where}.attributes", f"name {key!r}")
            if len(value) != 1 or next(iter(value)) not in {"int", "bool", "string", "version"}:
                raise invalid(f"{where}.attributes[{key}]", "exactly one value must be specified")
            if any(isinstance(v, str) and len(v) > 64 for v in value.values()):
                raise invalid(f"{where}.attributes[{key}]", "Too long: may not be more than 64 bytes")
        if len(device.get("taints", [])) > 16:
            raise invalid(f"{where}.taints", "Too many")
        before = {d["name"]: d for d in (old or {}).get("spec", {}).get("devices") or []}.get(device["name"], {})
        for taint in device.get("taints", []):
            same = next((t for t in before.get("taints", []) if _taint(t) == _taint(taint)), None)
            taint.setdefault("timeAdded", same["timeAdded"] if same else "2026-11-21T00:00:00Z")


def _taint(taint: Object) -> tuple[Any, ...]:
    return taint.get("key"), taint.get("value"), taint.get("effect")
