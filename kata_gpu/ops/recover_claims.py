"""Start-up, and a checkpoint that is gone: find out what this node has promised, whatever is left (dra.md 6.4).

A checkpoint that cannot be read is set aside, never a reason to crash: kubelet still has pods to end. It is rebuilt
from what three witnesses say, as is one that somebody removed under running pods; a device that they disagree about is
offered to nobody.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol

from kata_gpu.core.allocatable import allocatables
from kata_gpu.core.checkpoint import Checkpoint, ClaimEntry, ClaimState, HeldDevice
from kata_gpu.core.claim import ClaimRef, parse_allocation
from kata_gpu.core.claim_cdi import claim_of, device_id, file_name, parse_claim_file
from kata_gpu.errors import KataGpuError, Malformed, Unavailable
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.prepare import Node
from kata_gpu.ports import CdiFiles, ClaimStore, JsonObject, Kube, NodeDevices

LIST_S = 10.0


class RecoverableStore(ClaimStore, Protocol):
    """A store that can put a broken file away and show the generation before it."""

    def load_previous(self) -> Checkpoint | None:
        """The generation before, or None."""
        ...

    def lost(self) -> bool:
        """Whether there is no checkpoint at all."""
        ...

    def set_aside(self) -> str:
        """Move the unreadable file; its new name."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What start-up did. `set_aside` is the new name of a broken checkpoint, or empty."""

    set_aside: str = ""
    orphans: tuple[str, ...] = ()
    rebuilt: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()


def recover(
    node: Node,
    *,
    store: RecoverableStore,
    kube: Kube,
    devices: NodeDevices,
    cdi: CdiFiles,
    listed: Callable[[], frozenset[str]],
    now: datetime,
    deadline: Deadline,
) -> Recovered:
    """Leave a readable checkpoint, where none was an empty one, and no CDI file without a promise behind.

    `listed` gives the CDI ids that kubelet's PodResources shows, or raises Unavailable. Raises Misconfigured for a
    checkpoint of a newer driver, which stays untouched.
    """
    with store.locked(deadline.remaining("claim lock")):
        if store.lost():  # or never written: then there is nothing to be found
            return _rebuild(node, store, kube, devices, cdi, listed, now, deadline, "")
        try:
            checkpoint = store.load()
        except Malformed:
            name = store.set_aside()
            return _rebuild(node, store, kube, devices, cdi, listed, now, deadline, name)
        known = {file_name(c.ref.uid) for c in checkpoint.claims}
        orphans = tuple(n for n in cdi.names() if n not in known)
        for orphan in orphans:
            cdi.remove(orphan)
        return Recovered(orphans=orphans)


def _rebuild(
    node: Node,
    store: RecoverableStore,
    kube: Kube,
    devices: NodeDevices,
    cdi: CdiFiles,
    listed: Callable[[], frozenset[str]],
    now: datetime,
    deadline: Deadline,
    set_aside: str,
) -> Recovered:
    """Witnesses: CDI files (who was prepared), kubelet (who is in use), the API (who was given what).

    An entry comes back when a CDI file exists and nothing contradicts it. Every address of a contradiction, and every
    device that a process holds without a claim, is quarantined.
    """
    inventory = devices.observe()
    addresses = {a.name: a.addresses for a in allocatables(inventory)}
    files = _files(cdi)
    in_use = _listed(listed)
    allocated = _allocated(node, kube, deadline)
    before = store.load_previous() or Checkpoint()
    checkpoint = replace(Checkpoint(), quarantine=before.quarantine)
    doubtful: dict[str, str] = {}
    rebuilt = []
    for uid, names in files.items():
        previous = before.entry(uid)
        named = allocated.get(uid) if allocated is not None else None
        if named is not None:
            ref, held, pod = named
        elif previous is not None:
            ref, held, pod = previous.ref, previous.devices, previous.pod
        else:
            ref, held = ClaimRef(namespace="unknown", name="unknown", uid=uid), _from_file(node, uid, names, addresses)
            pod = ""
        if named is None or {h.device for h in held if not h.admin} != set(names):
            why = "the API does not confirm its claim" if named is None else "the API names other devices"
            doubtful |= dict.fromkeys((a for n in names for a in addresses.get(n, ())), f"rebuilt: {why}")
        held = tuple(replace(h, addresses=() if h.admin else addresses.get(h.device, ())) for h in held)
        entry = ClaimEntry(
            ref=ref,
            state=ClaimState.PREPARED,
            boot_id=node.boot_id,
            devices=held,
            since=now,
            pod=pod,
        )
        for address in entry.exclusive:
            if checkpoint.holder(address):
                doubtful[address] = "rebuilt: two claims name it"
        checkpoint = checkpoint.with_entry(entry)
        rebuilt.append(uid)
    free = [a for own in addresses.values() for a in own if not checkpoint.holder(a)]
    open_by = devices.holders(inventory, free)
    for name, own in addresses.items():
        for address in own:
            if checkpoint.holder(address):
                continue
            if address in open_by:
                doubtful[address] = f"rebuilt: open without a claim by {', '.join(open_by[address])}"
            elif any(i.endswith(f"-{name}") for i in in_use):
                doubtful[address] = "rebuilt: kubelet lists it, no file of ours does"
    for address, reason in doubtful.items():
        checkpoint = checkpoint.with_quarantine(address, reason, now)
    store.save(checkpoint)
    return Recovered(set_aside=set_aside, rebuilt=tuple(rebuilt), quarantined=tuple(sorted(doubtful)))


def _files(cdi: CdiFiles) -> dict[str, tuple[str, ...]]:
    """Claim UID -> device names. A file that is not readable as ours counts as a claim without devices: none."""
    out: dict[str, tuple[str, ...]] = {}
    for name in cdi.names():
        uid = claim_of(name) or ""
        try:
            out[uid] = tuple(parse_claim_file(cdi.read(name) or b"", uid).devices)
        except Malformed:
            cdi.remove(name)
    return out


def _listed(listed: Callable[[], frozenset[str]]) -> frozenset[str]:
    try:
        return listed()
    except Unavailable:
        return frozenset()


def _allocated(
    node: Node, kube: Kube, deadline: Deadline
) -> Mapping[str, tuple[ClaimRef, tuple[HeldDevice, ...], str]] | None:
    """Claims with devices of ours on this node by UID, or None where the API cannot be asked now."""
    try:
        items, _ = kube.list(
            "/apis/resource.k8s.io/v1/resourceclaims", timeout_s=deadline.remaining("claim list", at_most=LIST_S)
        )
    except KataGpuError:
        return None
    found = {}
    for item in items:
        if (claim := own_allocation(item, node)) is not None:
            found[claim[0].uid] = claim
    return found


def own_allocation(item: JsonObject, node: Node) -> tuple[ClaimRef, tuple[HeldDevice, ...], str] | None:
    """The claim, what it got from us on this node, and its pod where it has one; None for claims that are not ours."""
    metadata = item.get("metadata") or {}
    status = item.get("status") or {}
    allocation = status.get("allocation")
    if not allocation:
        return None
    try:
        ref = ClaimRef(namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])
        results = parse_allocation(allocation, driver=node.driver, pool=node.pool, where=str(ref))
    except (Malformed, KeyError):
        return None
    held = tuple(
        HeldDevice(
            request=r.request,
            pool=r.pool,
            device=r.device,
            addresses=(),
            cdi_id="" if r.admin else device_id(ref.uid, r.device),
            share_id=r.share_id,
            admin=r.admin,
        )
        for r in results
    )
    pods = [str(c.get("name")) for c in status.get("reservedFor") or ()]
    return (ref, held, pods[0] if len(pods) == 1 else "") if held else None


def _from_file(
    node: Node, uid: str, names: tuple[str, ...], addresses: Mapping[str, tuple[str, ...]]
) -> tuple[HeldDevice, ...]:
    """What a CDI file alone tells: devices without their requests."""
    return tuple(
        HeldDevice(request="", pool=node.pool, device=n, addresses=addresses.get(n, ()), cdi_id=device_id(uid, n))
        for n in names
    )
