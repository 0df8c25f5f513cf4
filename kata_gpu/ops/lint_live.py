"""What the linter's cluster rules look up, read from the API server; what is linted together counts as applied."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kata_gpu.core.lint.cluster import Cluster
from kata_gpu.core.lint.lint import lint
from kata_gpu.core.lint.rule import Json, Violation, mapping
from kata_gpu.ports import Kube

REQUEST_S = 30.0  # a page of 500 nodes
_RUNTIME_CLASSES = "/apis/node.k8s.io/v1/runtimeclasses"
_DRA = "/apis/resource.k8s.io/v1"


def lint_live(objects: Sequence[Any], kube: Kube, *, namespace: str) -> tuple[Violation, ...]:
    """All violations, cluster rules included. Objects without a namespace are taken to be for `namespace`.

    Raises Unavailable and the errors of `core.api_errors`; nothing is written.
    """
    groups: dict[str, list[Any]] = {}
    for obj in objects:
        groups.setdefault(str(mapping(obj, "metadata").get("namespace") or namespace), []).append(obj)
    runtime_classes = _read(kube, _RUNTIME_CLASSES) | _given(objects, "RuntimeClass")
    device_classes = _read(kube, f"{_DRA}/deviceclasses") | _given(objects, "DeviceClass")
    nodes = kube.list("/api/v1/nodes", timeout_s=REQUEST_S)[0]
    found: list[Violation] = []
    for name, group in groups.items():
        base = f"{_DRA}/namespaces/{name}"
        cluster = Cluster(
            runtime_classes=runtime_classes,
            device_classes=device_classes,
            claims=_read(kube, f"{base}/resourceclaims") | _given(group, "ResourceClaim"),
            claim_templates=_read(kube, f"{base}/resourceclaimtemplates") | _given(group, "ResourceClaimTemplate"),
            nodes=nodes,
        )
        found += lint(group, cluster)
    return tuple(found)


def _read(kube: Kube, path: str) -> dict[str, Json]:
    """A collection by name. Lists leave `kind` out of their items."""
    return {str(o["metadata"]["name"]): o for o in kube.list(path, timeout_s=REQUEST_S)[0]}


def _given(objects: Iterable[Any], kind: str) -> dict[str, Json]:
    return {
        str(mapping(o, "metadata").get("name")): o for o in objects if isinstance(o, Mapping) and o.get("kind") == kind
    }
