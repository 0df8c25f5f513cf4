"""ResourceSlices: what this node offers to the scheduler (dra.md 2.1, 2.7, 6.2).

Everything here is asserted by the host. It steers scheduling and proves nothing; no attribute is called attested.
Every attribute exists on every device of ours: a selector that meets a missing one aborts the whole allocation.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kata_gpu.core.allocatable import Allocatable, OfferKind, board_id, foreign_functions, ppcie_board
from kata_gpu.core.claim import DRIVER
from kata_gpu.core.gpu import CcMode, Kind
from kata_gpu.core.inventory import Inventory, Tee
from kata_gpu.errors import Malformed

JsonObject = dict[str, Any]
API_VERSION = "resource.k8s.io/v1"
MAX_DEVICES = 128  # per slice
MAX_DEVICES_SPECIAL = 64  # per slice, as soon as one device has taints or consumes counters
MAX_VALUES = 32  # attributes and capacities of a device
MAX_STRING = 64  # characters of a string attribute
MAX_NAME = 32  # characters of an attribute name without its domain
TAINT = f"{DRIVER}/unfit"
COUNTERS = "board"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfit:
    """Why a device must not be allocated now. `evict`: who has it now cannot use it either."""

    code: str
    evict: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What the API server keeps. Learned from what it returns: a field behind a closed gate is silently dropped."""

    taints: bool = True
    counters: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One device of the pool and, where it must not be allocated, why."""

    device: Allocatable
    unfit: Unfit | None = None


def offers_of(inventory: Inventory, devices: Iterable[Allocatable], unfit: Mapping[str, Unfit]) -> tuple[Offer, ...]:
    """Judge each device: what others found (`unfit`, by address), then what the inventory itself shows."""
    return tuple(Offer(device=d, unfit=_judge(d, inventory, unfit)) for d in devices)


def _judge(device: Allocatable, inventory: Inventory, unfit: Mapping[str, Unfit]) -> Unfit | None:
    together = frozenset(device.addresses)
    for member in device.members:
        if found := unfit.get(str(member.function.address)):
            return found
        if not member.bound:
            return Unfit(code="not-bound")
        if member.cc_mode is None and member.modes:
            return Unfit(code="mode-unknown")
        if member.cc_mode not in {None, CcMode.OFF} and not inventory.iommufd:
            return Unfit(code="iommufd-missing")
        if foreign_functions(member, inventory, together):
            return Unfit(code="group-foreign")
    return None


def render_pool(inventory: Inventory, offers: Sequence[Offer], *, node: str, features: Features) -> list[JsonObject]:
    """Slice specs without generation and count. An empty pool is one slice without devices.

    Without taints an unfit device is left out; without counters the whole-board device is. Raises Malformed.
    """
    board = frozenset(str(d.function.address) for d in ppcie_board(inventory))
    rows = []
    grouped = features.counters and any(o.device.kind is OfferKind.GROUP for o in offers)
    for offer in offers:
        if (offer.unfit and not features.taints) or (offer.device.kind is OfferKind.GROUP and not grouped):
            continue
        row: JsonObject = {
            "name": offer.device.name,
            "attributes": render_attributes(offer, inventory),
            "capacity": {"addressableMemory": {"value": str(_largest_bar(offer.device))}},
        }
        if len(row["attributes"]) + 1 > MAX_VALUES:
            raise Malformed("slice-values", "too many attributes", where=row["name"], expected=MAX_VALUES)
        if offer.unfit:
            effect = "NoExecute" if offer.unfit.evict else "NoSchedule"
            row["taints"] = [{"key": TAINT, "value": offer.unfit.code, "effect": effect}]
        if grouped and board.issuperset(offer.device.addresses):
            row["consumesCounters"] = [
                {"counterSet": COUNTERS, "counters": {_counter(a): {"value": "1"} for a in offer.device.addresses}}
            ]
        rows.append(row)
    special = any("taints" in r or "consumesCounters" in r for r in rows)
    size = MAX_DEVICES_SPECIAL if special else MAX_DEVICES
    pages = [rows[i : i + size] for i in range(0, len(rows), size)] or [[]]
    specs: list[JsonObject] = [{"driver": DRIVER, "nodeName": node, "devices": page} for page in pages]
    if grouped:
        counters = {_counter(a): {"value": "1"} for a in sorted(board)}
        shared = [{"name": COUNTERS, "counters": counters}]
        specs.insert(0, {"driver": DRIVER, "nodeName": node, "sharedCounters": shared})
    return specs


def render_attributes(offer: Offer, inventory: Inventory) -> JsonObject:
    """Attributes of one device. Facts that no driver-less host can read (VBIOS, module id) are not made up."""
    device, first = offer.device, offer.device.members[0]
    function = first.function
    mode = device.mode
    board = ppcie_board(inventory)
    in_board = bool(board) and {str(d.function.address) for d in board}.issuperset(device.addresses)
    group = device.kind is OfferKind.GROUP
    clean = not any(foreign_functions(m, inventory, frozenset(device.addresses)) for m in device.members)
    values: dict[str, str | bool | int] = {
        "type": str(device.kind),
        "vendorID": f"0x{function.vendor:04x}",
        "deviceID": f"0x{function.device:04x}",
        "subsystemID": f"0x{function.subsystem[0]:04x}{function.subsystem[1]:04x}",
        "productName": first.product,
        "architecture": first.architecture,
        "ccCapable": first.cc_capable,
        "ccMode": str(mode) if mode is not None else ("unknown" if first.modes else "off"),
        "ccModeSource": "register" if mode is not None else "unknown",
        "ccState": _state(offer),
        "ppcieCapable": first.ppcie_capable,
        "ppcieMode": "on" if mode is CcMode.PPCIE else "off",
        "ppcieGroup": board_id(board) if in_board else "none",
        "fabric": "nvswitch" if any(d.kind is Kind.NVSWITCH for d in inventory.devices) else "none",
        "teeType": str(inventory.facts.tee),
        "teeReady": inventory.facts.tee is not Tee.NONE,
        "iommufd": inventory.iommufd,
        "vfioDriver": function.driver or "none",
        "iommuGroupClean": clean,
        "memberCount": len(device.members),
    }
    if not group:
        values["resource.kubernetes.io/pciBusID"] = str(function.address)
        values["resource.kubernetes.io/pcieRoot"] = function.pcie_root or "unknown"
        if function.numa_node is not None and function.numa_node >= 0:
            values["resource.kubernetes.io/numaNode"] = function.numa_node
    return {name: _value(name, value) for name, value in values.items()}


def _state(offer: Offer) -> str:
    if offer.unfit is None:
        return "ready"
    return "transition" if offer.unfit.code == "mode-transition" else "failed"


def _value(name: str, value: str | bool | int) -> JsonObject:
    """One typed attribute value; text is cut to what the API takes, always at the same place."""
    if len(name.rsplit("/", 1)[-1]) > MAX_NAME:
        raise Malformed("slice-attribute", "attribute name is too long", where=name, expected=MAX_NAME)
    if isinstance(value, bool):
        return {"bool": value}
    return {"int": value} if isinstance(value, int) else {"string": value[:MAX_STRING]}


def _largest_bar(device: Allocatable) -> int:
    return sum(max(m.function.bars, default=0) for m in device.members)


def _counter(address: str) -> str:
    return f"dev-{address.replace(':', '-').replace('.', '-')}"


# planning


@dataclass(frozen=True, slots=True, kw_only=True)
class SlicePlan:
    """What to do, in this order: delete, update, create. Empty means that nothing is written."""

    deletes: tuple[tuple[str, str], ...] = ()  # name, uid
    updates: tuple[JsonObject, ...] = ()
    creates: tuple[JsonObject, ...] = ()

    @property
    def writes(self) -> int:
        """Requests that this plan costs."""
        return len(self.deletes) + len(self.updates) + len(self.creates)


def plan_slices(
    current: Sequence[JsonObject],
    desired: Sequence[JsonObject],
    *,
    pool: str,
    owner: JsonObject,
    settled: Mapping[str, tuple[JsonObject, JsonObject]],
) -> SlicePlan:
    """Bring the slices of this node to `desired` (dra.md 2.7).

    One changed slice is updated in place; more, or another number of them, is a new generation of the whole pool, so
    that the scheduler never mixes two. `settled` holds, by slice UID, what we last sent and what the server made of
    it: an object that still is that is not written again.
    """
    generations = [s["spec"]["pool"]["generation"] for s in current if s["spec"]["pool"]["name"] == pool]
    newest = max(generations, default=0)
    live: list[JsonObject] = []
    obsolete: list[JsonObject] = []
    for obj in sorted(current, key=lambda s: str(s["metadata"]["name"])):
        where = obj["spec"]["pool"]
        (live if where["name"] == pool and where["generation"] == newest else obsolete).append(obj)
    surplus = live[len(desired) :]
    deletes = tuple((o["metadata"]["name"], o["metadata"]["uid"]) for o in (*obsolete, *surplus))
    paired = list(zip(live, desired, strict=False))
    changed = [i for i, (obj, want) in enumerate(paired) if not _same(obj, want, owner, settled)]
    whole = len(live) != len(desired) or len(changed) > 1
    if not whole and not changed and all(o["spec"]["pool"]["resourceSliceCount"] == len(desired) for o in live):
        return SlicePlan(deletes=deletes)
    generation = newest + 1 if whole and live else max(newest, 1)
    where = {"name": pool, "generation": generation, "resourceSliceCount": len(desired)}
    updates = tuple(_updated(obj, want, where, owner) for i, (obj, want) in enumerate(paired) if whole or i in changed)
    node = owner["name"]
    creates = tuple(
        {
            "apiVersion": API_VERSION,
            "kind": "ResourceSlice",
            "metadata": {"generateName": f"{i:05x}-{want['driver']}-{node}-", "ownerReferences": [owner]},
            "spec": {"pool": where} | copy.deepcopy(want),
        }
        for i, want in enumerate(desired)
        if i >= len(live)
    )
    return SlicePlan(deletes=deletes, updates=updates, creates=creates)


def owner_reference(node: JsonObject) -> JsonObject:
    """The Node as controller: slices are collected with it."""
    metadata = node["metadata"]
    return {"apiVersion": "v1", "kind": "Node", "name": metadata["name"], "uid": metadata["uid"], "controller": True}


def canonical(spec: JsonObject) -> JsonObject:
    """A slice spec without its pool and what the server fills in: taint times, empty members."""
    out = {k: v for k, v in spec.items() if v and k not in {"pool", "devices"}}
    out["devices"] = [_device(d) for d in spec.get("devices") or []]
    return out


def dropped(sent: JsonObject, got: JsonObject, features: Features) -> Features:
    """Features that survived the round trip of one spec."""

    def has(spec: JsonObject, field: str) -> bool:
        return any(d.get(field) for d in spec.get("devices") or [])

    lost_counters = has(sent, "consumesCounters") and not has(got, "consumesCounters")
    lost_counters |= bool(sent.get("sharedCounters")) and not got.get("sharedCounters")
    return Features(
        taints=features.taints and not (has(sent, "taints") and not has(got, "taints")),
        counters=features.counters and not lost_counters,
    )


def _same(
    obj: JsonObject, want: JsonObject, owner: JsonObject, settled: Mapping[str, tuple[JsonObject, JsonObject]]
) -> bool:
    metadata = obj["metadata"]
    if [r.get("uid") for r in metadata.get("ownerReferences") or []] != [owner["uid"]]:
        return False
    now, wanted = canonical(obj["spec"]), canonical(want)
    return now == wanted or settled.get(metadata["uid"]) == (wanted, now)


def _updated(obj: JsonObject, want: JsonObject, pool: JsonObject, owner: JsonObject) -> JsonObject:
    """The object with our spec; the time of a taint that did not change stays."""
    spec: JsonObject = {"pool": pool} | copy.deepcopy(want)
    before = {d["name"]: d for d in obj["spec"].get("devices") or []}
    for device in spec.get("devices", []):
        old = {(t["key"], t.get("value"), t["effect"]): t for t in before.get(device["name"], {}).get("taints") or []}
        for taint in device.get("taints", []):
            same = old.get((taint["key"], taint.get("value"), taint["effect"]))
            if same and same.get("timeAdded"):
                taint["timeAdded"] = same["timeAdded"]
    metadata = {k: v for k, v in obj["metadata"].items() if k != "managedFields"} | {"ownerReferences": [owner]}
    return {"apiVersion": API_VERSION, "kind": "ResourceSlice", "metadata": metadata, "spec": spec}


def _device(device: JsonObject) -> JsonObject:
    """Shares its parts with the original: this runs at every comparison."""
    out = {k: v for k, v in device.items() if v}
    if "taints" in out:
        out["taints"] = [{k: v for k, v in t.items() if v and k != "timeAdded"} for t in out["taints"]]
    return out
