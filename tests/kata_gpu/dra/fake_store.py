"""What an API server keeps, with the rules that a client can trip over: versions, conflicts, ownership, validation.

Objects are plain dicts. Rules are those of Kubernetes 1.34 to 1.36 for the few resources that the driver uses; the
`envtest` suite runs the same tests against a real kube-apiserver to keep this honest.
"""

import copy
import re
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from tests.kata_gpu.dra.fake_kinds import KINDS, ApiError, Kind, Object
from tests.kata_gpu.dra.fake_rules import validate

Events = list[tuple[int, str, Object]]
__all__ = ["KINDS", "ApiError", "Kind", "Object", "Store"]
HISTORY = 1000  # events kept for watches; older versions answer 410


# Lists that server-side apply merges by key (listType=map); all others are atomic.
MAP_LISTS: dict[str, tuple[str, ...]] = {"conditions": ("type",), "status.devices": ("driver", "pool", "device")}
NAMESPACES, PODS = KINDS["v1", "namespaces"], KINDS["v1", "pods"]
# Kinds whose objects are kept by a controller's finalizer after their deletion.
HELD = {KINDS["v1", "persistentvolumeclaims"]: ["kubernetes.io/pvc-protection"], NAMESPACES: ["kubernetes"]}
Ownership = dict[str, set[tuple[str, ...]]]


class Store:
    """All objects. Thread-safe; every change has its own resourceVersion."""

    def __init__(self) -> None:
        self.lock = threading.Condition()
        self.version = 100
        self.oldest = 100
        self.objects: dict[Kind, dict[tuple[str, str], Object]] = defaultdict(dict)
        self.events: dict[Kind, list[tuple[int, str, Object]]] = defaultdict(list)
        self.owners: dict[str, Ownership] = defaultdict(dict)
        self.drop: set[str] = set()  # feature gates that are off: "taints", "counters"
        self.controllers = True  # a controller manager empties and finishes namespaces that are deleted
        self.requests: Counter[tuple[str, str]] = Counter()
        self.admit: Callable[[Kind, Object, str], str | None] = lambda _kind, _obj, _user: None
        for name in ("default", "kube-node-lease", "kube-public", "kube-system"):
            self.create(NAMESPACES, "", {"metadata": {"name": name}})
        self.requests.clear()

    # reading

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """A copy, or 404."""
        self.requests["get", kind.resource] += 1
        with self.lock:
            found = copy.deepcopy(self._find(kind, namespace, name))
            managers = self.owners.get(found["metadata"]["uid"], {})
            if managers:
                found["metadata"]["managedFields"] = [{"manager": m, "operation": "Apply"} for m in sorted(managers)]
            return found

    def list(self, kind: Kind, namespace: str = "", fields: str = "", labels: str = "") -> tuple[list[Object], int]:
        """Copies of what matches, and the version of this list."""
        self.requests["list", kind.resource] += 1
        with self.lock:
            found = [
                copy.deepcopy(o)
                for (ns, _), o in sorted(self.objects[kind].items())
                if (not namespace or ns == namespace) and matches(o, fields) and labelled(o, labels)
            ]
            return found, self.version

    def since(self, kind: Kind, version: int, fields: str = "", labels: str = "") -> Events:
        """Events after `version`, or 410."""
        with self.lock:
            if version < self.oldest:
                raise ApiError(410, "Expired", f"too old resource version: {version} ({self.oldest})")
            return [
                (v, t, copy.deepcopy(o))
                for v, t, o in self.events[kind]
                if v > version and matches(o, fields) and labelled(o, labels)
            ]

    def compact(self) -> None:
        """Forget history: every open watch and older version is Gone."""
        with self.lock:
            self.version += 1
            self.oldest = self.version
            self.events.clear()
            self.lock.notify_all()

    # writing

    def create(self, kind: Kind, namespace: str, body: Object, user: str = "") -> Object:
        """POST."""
        self.requests["create", kind.resource] += 1
        with self.lock:
            obj = copy.deepcopy(body)
            meta = obj.setdefault("metadata", {})
            if not meta.get("name") and meta.get("generateName"):
                meta["name"] = f"{meta['generateName'][:58]}{uuid.uuid4().hex[:5]}"
            name = meta.get("name") or ""
            if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
                raise ApiError(422, "Invalid", f"metadata.name: Invalid value: {name!r}")
            if (namespace, name) in self.objects[kind]:
                raise ApiError(409, "AlreadyExists", f"{kind.resource} {name!r} already exists")
            if kind.namespaced:
                meta["namespace"] = namespace
            self._in_namespace(kind, namespace)
            obj |= {"apiVersion": kind.api, "kind": kind.kind}
            meta |= {"uid": str(uuid.uuid4()), "generation": 1, "creationTimestamp": "2026-11-21T00:00:00Z"}
            if kind.status and kind.api != "v1":
                obj.pop("status", None)
            self._store(kind, namespace, obj, None, "ADDED", user)
            return copy.deepcopy(obj)

    def replace(self, kind: Kind, namespace: str, name: str, body: Object, *, status: bool = False) -> Object:
        """PUT, with optimistic locking when the body carries a resourceVersion."""
        self.requests["update", kind.resource] += 1
        with self.lock:
            old = self._find(kind, namespace, name)
            self._precondition(old, body.get("metadata", {}))
            return self._change(kind, namespace, old, copy.deepcopy(body), status)

    def merge(self, kind: Kind, namespace: str, name: str, patch: Object, *, status: bool = False) -> Object:
        """JSON merge patch, RFC 7386."""
        self.requests["patch", kind.resource] += 1
        with self.lock:
            old = self._find(kind, namespace, name)
            self._precondition(old, patch.get("metadata", {}))
            return self._change(kind, namespace, old, merge_patch(copy.deepcopy(old), patch), status)

    def debug(self, namespace: str, pod: str, containers: Sequence[Object]) -> Object:
        """Debug containers of a running pod."""
        return self.merge(PODS, namespace, pod, {"spec": {"ephemeralContainers": containers}})

    def apply(
        self, kind: Kind, namespace: str, name: str, body: Object, manager: str, *, force: bool, status: bool = False
    ) -> Object:
        """Server-side apply: fields have owners, another owner's different value is a conflict unless forced."""
        self.requests["apply", kind.resource] += 1
        with self.lock:
            old = self.objects[kind].get((namespace, name))
            applied = leaves({k: v for k, v in body.items() if k not in {"apiVersion", "kind", "metadata"}})
            applied |= leaves(
                {k: body.get("metadata", {})[k] for k in ("labels", "annotations") if k in body.get("metadata", {})},
                ("metadata",),
            )
            if old is None:
                if status:
                    raise ApiError(404, "NotFound", f"{kind.resource} {name!r} not found")
                created = copy.deepcopy(body)
                created.setdefault("metadata", {})["name"] = name
                result = self.create(kind, namespace, created)
                self.owners[result["metadata"]["uid"]][manager] = set(applied)
                return result
            if body.get("metadata", {}).get("uid", old["metadata"]["uid"]) != old["metadata"]["uid"]:
                raise ApiError(422, "Invalid", "metadata.uid: field is immutable")
            owners = self.owners[old["metadata"]["uid"]]
            manager = f"{manager}/status" if status else manager  # each subresource has its own entry
            present = leaves(old)
            for other, paths in owners.items():
                taken = {p for p in paths & applied.keys() if other != manager and present.get(p) != applied[p]}
                if taken and not force:
                    raise ApiError(
                        409, "Conflict", f"Apply failed with 1 conflict: conflict with {other!r}: {min(taken)}"
                    )
                paths -= taken
            new = copy.deepcopy(old)
            for path in owners.get(manager, set()) - applied.keys():
                if not any(path in p for o, p in owners.items() if o != manager):
                    remove(new, path)
            for path, value in applied.items():
                put(new, path, value)
            owners[manager] = set(applied)
            return self._change(kind, namespace, old, new, status)

    def delete(self, kind: Kind, namespace: str, name: str, options: Object | None = None) -> None:
        """DELETE with preconditions."""
        self.requests["delete", kind.resource] += 1
        with self.lock:
            old = self._find(kind, namespace, name)
            self._precondition(old, (options or {}).get("preconditions", {}))
            if kind in HELD and not self.controllers:
                self._terminate(kind, namespace, old)
                return
            if kind is NAMESPACES:
                for inner in KINDS.values():
                    for space, obj in [(ns, o) for (ns, _), o in self.objects[inner].items() if ns == name]:
                        self._remove(inner, space, obj)
            self._remove(kind, namespace, old)

    def delete_collection(self, kind: Kind, fields: str = "") -> int:
        """DELETE of everything that matches."""
        self.requests["deletecollection", kind.resource] += 1
        with self.lock:
            gone = [(ns, o) for (ns, _), o in self.objects[kind].items() if matches(o, fields)]
            for namespace, obj in gone:
                self._remove(kind, namespace, obj)
            return len(gone)

    # inner

    def _there(self, resource: str, name: str) -> Object | None:
        return next((self.objects[k].get(("", name)) for k in KINDS.values() if k.resource == resource), None)

    def _in_namespace(self, kind: Kind, namespace: str) -> None:
        """What the admission of namespaces refuses: an absent one, and one that is going away."""
        if not kind.namespaced:
            return
        space = self._there("namespaces", namespace)
        if space is None:
            raise ApiError(404, "NotFound", f'namespaces "{namespace}" not found')
        if "deletionTimestamp" in space["metadata"]:
            raise ApiError(
                403, "Forbidden", f"unable to create in namespace {namespace} because it is being terminated"
            )

    def _find(self, kind: Kind, namespace: str, name: str) -> Object:
        try:
            return self.objects[kind][namespace, name]
        except KeyError:
            raise ApiError(404, "NotFound", f'{kind.resource} "{name}" not found') from None

    @staticmethod
    def _precondition(old: Object, wanted: Object) -> None:
        for field in ("uid", "resourceVersion"):
            if wanted.get(field) and wanted[field] != old["metadata"][field]:
                raise ApiError(409, "Conflict", f"the object has been modified: {field} {old['metadata'][field]}")

    def _change(self, kind: Kind, namespace: str, old: Object, new: Object, status: bool) -> Object:
        kept = copy.deepcopy(old)
        meta = new.get("metadata", {})
        if status:
            kept["status"] = new.get("status", {})
        else:
            for field in ("labels", "annotations", "ownerReferences", "finalizers"):
                if meta.get(field):
                    kept["metadata"][field] = meta[field]
                else:
                    kept["metadata"].pop(field, None)
            for field in (set(new) | set(kept)) - {"apiVersion", "kind", "metadata"}:
                if field == "status" and kind.status:
                    continue
                if field in new:
                    kept[field] = new[field]
                else:
                    kept.pop(field, None)
        self._store(kind, namespace, kept, old, "MODIFIED", "")
        return copy.deepcopy(kept)

    def _store(self, kind: Kind, namespace: str, obj: Object, old: Object | None, event: str, user: str) -> None:
        validate(kind, obj, old, self.drop, self._there)
        if message := self.admit(kind, obj, user):
            raise ApiError(422, "Invalid", message)
        if old is not None:
            if {k: v for k, v in old.items() if k != "metadata"} == {
                k: v for k, v in obj.items() if k != "metadata"
            } and all(
                old["metadata"].get(f) == obj["metadata"].get(f) for f in ("labels", "annotations", "ownerReferences")
            ):
                return  # a no-op write changes no version
            if old.get("spec") != obj.get("spec"):
                obj["metadata"]["generation"] = old["metadata"]["generation"] + 1
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self.objects[kind][namespace, obj["metadata"]["name"]] = obj
        self._emit(kind, event, obj)

    def _remove(self, kind: Kind, namespace: str, obj: Object) -> None:
        del self.objects[kind][namespace, obj["metadata"]["name"]]
        self.owners.pop(obj["metadata"]["uid"], None)
        self.version += 1
        last = copy.deepcopy(obj)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._emit(kind, "DELETED", last)

    def _terminate(self, kind: Kind, namespace: str, old: Object) -> None:
        if kind is NAMESPACES and "deletionTimestamp" in old["metadata"]:
            raise ApiError(409, "Conflict", "The system is ensuring all content is removed from this namespace.")
        going = copy.deepcopy(old)
        going["metadata"] |= {"deletionTimestamp": "2026-11-21T00:00:00Z", "finalizers": HELD[kind]}
        self._store(kind, namespace, going, None, "MODIFIED", "")

    def finish_deletions(self) -> None:
        """What the controllers do in the end."""
        with self.lock:
            self.controllers = True
            for kind in HELD:
                for (namespace, name), obj in list(self.objects[kind].items()):
                    if "deletionTimestamp" in obj["metadata"]:
                        self.delete(kind, namespace, name)

    def _emit(self, kind: Kind, event: str, obj: Object) -> None:
        log = self.events[kind]
        log.append((self.version, event, copy.deepcopy(obj)))
        if len(log) > HISTORY:
            self.oldest = max(self.oldest, log[len(log) - HISTORY][0])
            del log[: len(log) - HISTORY]
        self.lock.notify_all()


def matches(obj: Object, selector: str) -> bool:
    """Field selector: `a.b=x,c!=y`."""
    for term in filter(None, selector.split(",")):
        path, negated, value = re.fullmatch(r"([^!=]+)(!?)==?(.*)", term).groups()  # type: ignore[union-attr]
        here: Any = obj
        for part in path.split("."):
            here = here.get(part, {}) if isinstance(here, dict) else {}
        if ((here or "") == value) == bool(negated):
            return False
    return True


def labelled(obj: Object, selector: str) -> bool:
    """Label selector with equality only."""
    labels = obj["metadata"].get("labels", {})
    return all(labels.get(t.partition("=")[0]) == t.partition("=")[2] for t in filter(None, selector.split(",")))


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merge_patch(out.get(key), value)
    return out


def _keys(path: tuple[str, ...]) -> tuple[str, ...] | None:
    return MAP_LISTS.get(path[-1]) or MAP_LISTS.get(".".join(path[-2:]))


def leaves(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every owned field: maps and keyed lists are entered, the rest is one value."""
    if isinstance(value, dict) and value:
        return {p: v for k, inner in value.items() for p, v in leaves(inner, (*path, k)).items()}
    if isinstance(value, list) and path and (keys := _keys(path)):
        return {
            p: v
            for item in value
            for p, v in leaves(item, (*path, "k:" + "|".join(str(item.get(k)) for k in keys))).items()
        }
    return {path: value} if path else {}


def put(obj: Any, path: tuple[str, ...], value: Any) -> None:
    """Set one field."""
    for depth, part in enumerate(path[:-1]):
        if part.startswith("k:"):
            keys = _keys(path[:depth]) or ()
            wanted = part[2:].split("|")
            found = next((i for i in obj if [str(i.get(k)) for k in keys] == wanted), None)
            if found is None:
                found = dict(zip(keys, wanted, strict=True))
                obj.append(found)
            obj = found
        else:
            obj = obj.setdefault(part, [] if path[depth + 1].startswith("k:") else {})
    obj[path[-1]] = value


def remove(obj: Any, path: tuple[str, ...]) -> None:
    """Take one field out, and a keyed item that has nothing but its keys left."""
    for depth, part in enumerate(path[:-1]):
        if part.startswith("k:"):
            keys = _keys(path[:depth]) or ()
            found = next((i for i in obj if [str(i.get(k)) for k in keys] == part[2:].split("|")), None)
            if found is None:
                return
            if path[depth + 1] in keys:
                obj.remove(found)
                return
            obj = found
        else:
            obj = obj.get(part)
            if obj is None:
                return
    obj.pop(path[-1], None)
