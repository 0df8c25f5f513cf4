"""Any RuntimeClass object against the table and our invariants."""

from collections.abc import Mapping
from typing import Any

from runtimeclass.model import Tee, table
from runtimeclass.render import LABEL_GROUP, render_object


def problems(obj: Mapping[str, Any]) -> tuple[str, ...]:
    """What is wrong with a RuntimeClass of ours, one sentence each; empty when it is one that we would render.

    Never raises for any JSON-like mapping.
    """
    metadata = obj.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    row = next((r for r in table() if r.name == name), None)
    if row is None:
        return (f"{name!r} is not a RuntimeClass of this toolkit",)
    allowed = [row.resolve(tee) for tee in (Tee.NONE, Tee.SNP, Tee.TDX)]
    handlers = sorted({r.handler for r in allowed})
    found = []
    if obj.get("apiVersion") != "node.k8s.io/v1" or obj.get("kind") != "RuntimeClass":
        found.append("expected apiVersion node.k8s.io/v1 and kind RuntimeClass")
    match = next((r for r in allowed if r.handler == obj.get("handler")), None)
    if match is None:
        return (*found, f"handler: expected one of {', '.join(handlers)}, got {obj.get('handler')!r}")
    want = render_object(match)
    selector = _mapping(obj, "scheduling", "nodeSelector")
    for key, value in want["scheduling"]["nodeSelector"].items():
        if selector.get(key) != value:
            found.append(f"scheduling.nodeSelector.{key}: expected {value!r}, got {selector.get(key)!r}")
    overhead = _mapping(obj, "overhead", "podFixed")
    found += [f"overhead.podFixed.{key}: missing, the scheduler would overcommit the node"
              for key in want["overhead"]["podFixed"] if key not in overhead]  # fmt: skip
    labels = _mapping(obj, "metadata", "labels")
    key = f"{LABEL_GROUP}/confidential"
    if labels.get(key) != want["metadata"]["labels"][key]:
        found.append(f"metadata.labels.{key}: expected {want['metadata']['labels'][key]!r}, got {labels.get(key)!r}")
    return tuple(found)


def _mapping(obj: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    node: Any = obj
    for part in path:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}
