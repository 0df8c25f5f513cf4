"""What `kata-gpu install` does to a cluster: a plan over what is there, the same one for dry run and for real.

An object is ours when the server says that our field manager owns fields of it. Uninstalling plans the deletion of
exactly those, in reverse order; planning again afterwards proves that nothing is left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kata_gpu.core.manifests import broker, classes, node
from kata_gpu.core.manifests.paths import object_path
from kata_gpu.core.manifests.quantity import same_quantity
from kata_gpu.core.manifests.template import Document, fill
from kata_gpu.errors import Misconfigured
from runtimeclass.model import Tee

MANAGER = "kata-gpu-install"
QUANTITIES = frozenset({"limits", "requests", "podFixed"})  # maps whose values the server writes in its own way
Object = Mapping[str, Any]


class Verb(StrEnum):
    """What happens to one object."""

    CREATE = "create"
    CHANGE = "change"
    DELETE = "delete"
    WAIT = "wait for the end of"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call to the API server, or none where it has been made. `obj` is empty for a deletion."""

    verb: Verb
    path: str
    obj: Object
    uid: str = ""  # of the object that is deleted

    def __str__(self) -> str:
        return f"{self.verb} {self.path}"


def wanted(
    values: Mapping[str, Any],
    *,
    default_tee: Tee,
    with_broker: bool,
    add_init_data: bool = False,
    with_nvidia: bool = False,
    drain: bool = False,
) -> tuple[Object, ...]:
    """Every object of an installation, in apply order. `drain`: the policy says `evict`, and the agent may."""
    documents: tuple[Document, ...] = (node.NAMESPACE, *classes.documents(default_tee))
    documents += (*(classes.MUTATION if add_init_data else ()), *(classes.NVIDIA if with_nvidia else ()))
    documents += (*node.DOCUMENTS, *(node.EVICTION if drain else ()))
    if with_broker:
        documents += (*broker.COMMON, broker.SQLITE_VOLUME, broker.SQLITE)
    chosen = {"node": values["node"] | {"policy": values["node"]["policy"] | {"drain": "evict" if drain else "never"}}}
    return tuple(fill(d.obj, {**values, **chosen}) for d in documents)


def obsolete(values: Mapping[str, Any], *, drain: bool) -> tuple[Object, ...]:
    """What an earlier installation may have left and this one takes back: the right to evict."""
    return () if drain else tuple(fill(d.obj, values) for d in node.EVICTION)


def plan_install(objects: Sequence[Object], observed: Mapping[str, Object | None]) -> tuple[Step, ...]:
    """Steps that make the cluster as wanted; none where it is. `observed` maps every path to the object there; what it
    holds beyond the paths of `objects` is not wanted any more, and deleted where it is ours.

    Raises Misconfigured for a namespace that somebody else made and that does not allow the agent yet: with a field of
    it we would own it, and uninstalling would delete it with all that others have in it.
    """
    steps = []
    for obj in objects:
        path = object_path(obj)
        there = observed[path]
        if there is None or is_going(there):
            steps.append(Step(verb=Verb.CREATE, path=path, obj=obj))
        elif not _covers(there, obj):
            if obj["kind"] == "Namespace" and not is_ours(there):
                labels = ",".join(f"{k}={v}" for k, v in obj["metadata"]["labels"].items())
                raise Misconfigured(
                    "install-namespace",
                    "the namespace is somebody else's",
                    where=path,
                    expected=f"no such namespace, or one with {labels}",
                    hint=f"another --namespace; or kubectl label namespace {obj['metadata']['name']} {labels}",
                )
            steps.append(Step(verb=Verb.CHANGE, path=path, obj=obj))
    kept = {object_path(obj) for obj in objects}
    steps += [
        Step(verb=Verb.DELETE, path=path, obj={}, uid=str(there["metadata"].get("uid", "")))
        for path, there in observed.items()
        if path not in kept and there is not None and is_ours(there) and not is_going(there)
    ]
    return tuple(steps)


def plan_uninstall(objects: Sequence[Object], observed: Mapping[str, Object | None]) -> tuple[Step, ...]:
    """Deletions of what we installed, in reverse order. Objects of the same name that are not ours stay.

    What is being deleted already (a namespace until its controller has emptied it, a claimed volume until no pod uses
    it) is only waited for: a second deletion of a namespace is a conflict.
    """
    steps = []
    for obj in reversed(objects):
        path = object_path(obj)
        there = observed[path]
        if there is not None and is_ours(there):
            verb = Verb.WAIT if is_going(there) else Verb.DELETE
            steps.append(Step(verb=verb, path=path, obj={}, uid=str(there["metadata"].get("uid", ""))))
    return tuple(steps)


def is_ours(obj: Object) -> bool:
    """Whether our field manager owns fields of the object."""
    return any(entry.get("manager") == MANAGER for entry in obj["metadata"].get("managedFields") or [])


def is_going(obj: Object) -> bool:
    """Whether the object has been deleted, and only its finalizers keep it."""
    return "deletionTimestamp" in obj["metadata"]


def _covers(there: Any, want: Any, *, quantities: bool = False) -> bool:
    """Every field that we set has our value; what the server or others added does not matter."""
    if isinstance(want, Mapping):
        return isinstance(there, Mapping) and all(
            k in there and _covers(there[k], v, quantities=k in QUANTITIES or (quantities and isinstance(v, str)))
            for k, v in want.items()
        )
    if isinstance(want, (list, tuple)):
        return (
            isinstance(there, list)
            and len(there) == len(want)
            and all(_covers(t, w) for t, w in zip(there, want, strict=True))
        )
    return bool(there == want) or (quantities and same_quantity(there, want))
