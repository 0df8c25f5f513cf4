"""NodePrepareResources and NodeUnprepareResources for one claim (dra.md 1.3, 1.6, 6.2).

The order makes every crash harmless: intent is on disk before the host is touched, the CDI file is there before
`prepared` is, and the answer is given last. Prepare again finishes what it finds; Unprepare undoes it. A GPU stays on
VFIO between claims and its mode is never changed here: that is a node operation.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from kata_gpu.core.allocatable import Allocatable, allocatables
from kata_gpu.core.cdi import node_paths
from kata_gpu.core.checkpoint import Checkpoint, ClaimEntry, ClaimState, HeldDevice
from kata_gpu.core.claim import Claim, ClaimRef, ResetPolicy, parse_claim
from kata_gpu.core.claim_cdi import device_id, file_name, render_claim
from kata_gpu.core.fitness import require_fit, require_mode
from kata_gpu.core.inventory import Inventory
from kata_gpu.errors import InUse, KataGpuError, Misconfigured, TimedOut, Unavailable
from kata_gpu.ops.consumer import require_vm
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ops.unread import read_unread
from kata_gpu.ports import CdiFiles, ClaimStore, Kube, NodeDevices

GET_CLAIM_S = 10.0  # one GET; the rest of kubelet's 45 s belongs to the host
BIND_S = 15.0  # driver_override, unbind, probe and the node of one device
RESET_S = 10.0  # FLR is 100 ms by PCIe, the boot of a data centre GPU a few seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who we are: immutable facts of this process."""

    driver: str
    pool: str
    boot_id: str


class ClaimPreparer:
    """Both calls over the ports. Stateless between calls: two instances may run during an update."""

    def __init__(
        self,
        node: Node,
        *,
        store: ClaimStore,
        kube: Kube,
        devices: NodeDevices,
        cdi: CdiFiles,
        now: Callable[[], datetime],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is told when a device may have to be offered differently (gone, wrong mode, quarantined)."""
        self._node = node
        self._store = store
        self._kube = kube
        self._devices = devices
        self._cdi = cdi
        self._now = now
        self._on_change = on_change

    def prepare(self, ref: ClaimRef, deadline: Deadline) -> tuple[HeldDevice, ...]:
        """The devices of the claim, usable when this returns. The same claim gets the same answer, without new work."""
        with self._store.locked(deadline.remaining("claim lock")):
            checkpoint = self._store.load()
            entry = checkpoint.entry(ref.uid)
            if entry and entry.state is ClaimState.PREPARED and entry.boot_id == self._node.boot_id:
                self._refresh_cdi(entry)
                return entry.devices
            body = self._kube.get(
                f"/apis/resource.k8s.io/v1/namespaces/{ref.namespace}/resourceclaims/{ref.name}",
                timeout_s=deadline.remaining("claim lookup", at_most=GET_CLAIM_S),
            )
            claim = parse_claim(body, ref, driver=self._node.driver, pool=self._node.pool)
            require_vm(claim, self._kube, deadline)
            inventory = read_unread(self._devices, self._devices.observe(), checkpoint)
            try:
                wanted = require_fit(claim, inventory, checkpoint)
                addresses = tuple(a for w in wanted.values() for a in w.addresses)
                self._require_free(inventory, addresses)
                inventory = self._devices.verify(inventory, addresses)  # opens the devices: they had to be free
                wanted = require_fit(claim, inventory, checkpoint)
            except (Misconfigured, Unavailable, InUse):
                self._on_change()
                raise
            return self._take(claim, wanted, inventory, checkpoint, deadline)

    def unprepare(self, uid: str, deadline: Deadline) -> None:
        """Nothing of the claim is left on this host when this returns. Needs the checkpoint only, never the API."""
        with self._store.locked(deadline.remaining("claim lock")):
            checkpoint = self._store.load()
            entry = checkpoint.entry(uid)
            if entry is None:
                return
            present: tuple[str, ...] = ()
            if entry.boot_id == self._node.boot_id:
                inventory = self._devices.observe()
                here = {str(d.function.address) for d in inventory.devices}
                present = tuple(sorted(entry.exclusive & here))
                self._require_free(inventory, present)
            self._cdi.remove(file_name(uid))
            for address in present if entry.needs_reset or entry.state is ClaimState.PREPARING else ():
                checkpoint = self._reset_or_quarantine(address, checkpoint, deadline)
            self._store.save(checkpoint.without(uid))
        self._on_change()

    def refresh(self, deadline: Deadline) -> None:
        """Bring CDI files in line with the device nodes of now: a rebind gives a device another number.

        One claim that cannot be helped does not keep the others waiting; its error is raised at the end.
        """
        with self._store.locked(deadline.remaining("claim lock")):
            failed: list[KataGpuError] = []
            for entry in self._store.load().claims:
                if entry.state is ClaimState.PREPARED and entry.boot_id == self._node.boot_id:
                    try:
                        self._refresh_cdi(entry)
                    except KataGpuError as exc:
                        failed.append(exc)
        if failed:
            raise failed[0]

    def _take(
        self,
        claim: Claim,
        wanted: Mapping[str, Allocatable],
        inventory: Inventory,
        checkpoint: Checkpoint,
        deadline: Deadline,
    ) -> tuple[HeldDevice, ...]:
        uid = claim.ref.uid
        held = tuple(
            HeldDevice(
                request=d.request,
                pool=d.pool,
                device=d.device,
                addresses=() if d.admin else wanted[d.device].addresses,
                cdi_id="" if d.admin else device_id(uid, d.device),
                share_id=d.share_id,
                admin=d.admin,
            )
            for d in claim.devices
        )
        entry = ClaimEntry(
            ref=claim.ref,
            state=ClaimState.PREPARING,
            boot_id=self._node.boot_id,
            devices=held,
            since=self._now(),
            needs_reset=any(d.config.reset_policy is not ResetPolicy.ON_ERROR for d in claim.devices),
            pod=claim.consumer.name,
        )
        begun = checkpoint.with_entry(entry)
        self._store.save(begun)
        try:
            self._bring_up(claim, wanted, inventory, deadline)
        except TimedOut:
            raise  # the kernel is still at it: the intent stays, the retry goes on
        except KataGpuError:
            self._roll_back(uid, checkpoint)
            self._on_change()
            raise
        done = ClaimEntry(
            ref=entry.ref,
            state=ClaimState.PREPARED,
            boot_id=entry.boot_id,
            devices=held,
            since=entry.since,
            needs_reset=entry.needs_reset,
            pod=entry.pod,
        )
        self._store.save(begun.with_entry(done))
        return held

    def _bring_up(self, claim: Claim, wanted: Mapping[str, Allocatable], before: Inventory, deadline: Deadline) -> None:
        touched = False
        for device in claim.devices:
            for member in wanted[device.device].members if not device.admin else ():
                address = str(member.function.address)
                if not (member.bound and node_paths(member, iommufd=before.iommufd)):
                    self._devices.bind(address, deadline_s=deadline.remaining(f"bind {address}", at_most=BIND_S))
                    touched = True
                if device.config.reset_policy is ResetPolicy.ALWAYS:
                    self._devices.reset(address, deadline_s=deadline.remaining(f"reset {address}", at_most=RESET_S))
                    touched = True
        inventory = before
        if touched:
            addresses = tuple(a for w in wanted.values() for a in w.addresses)
            inventory = self._devices.verify(self._devices.observe(), addresses)
        final = {a.name: a for a in allocatables(inventory)}
        for device in claim.devices if touched else ():
            for member in final[device.device].members if not device.admin else ():
                require_mode(device, member, where=str(member.function.address))
        if wanted:
            api = {d.device for d in claim.devices if d.config.api_device}
            nodes = {n: _nodes(final[n], iommufd=inventory.iommufd, api_device=n in api) for n in wanted}
            self._cdi.write(file_name(claim.ref.uid), render_claim(claim.ref.uid, nodes))

    def _refresh_cdi(self, entry: ClaimEntry) -> None:
        """Write the file again where it is missing or names other nodes; leave it alone where it is right."""
        names = [d.device for d in entry.devices if not d.admin]
        if not names:
            return
        inventory = self._devices.observe()
        offered = {a.name: a for a in allocatables(inventory)}
        if gone := [n for n in names if n not in offered]:
            self._on_change()
            raise Unavailable(
                "device-gone", "a prepared device left the node", where=str(entry.ref), got=", ".join(gone)
            )
        old = self._cdi.read(file_name(entry.ref.uid))
        api = old is not None and (b'"/dev/iommu"' in old or b'"/dev/vfio/vfio"' in old)
        nodes = {n: _nodes(offered[n], iommufd=inventory.iommufd, api_device=api) for n in names}
        new = render_claim(entry.ref.uid, nodes)
        if new != old:
            self._cdi.write(file_name(entry.ref.uid), new)

    def _roll_back(self, uid: str, before: Checkpoint) -> None:
        """Undo on disk what a definite failure left. A full disk may prevent it; then `preparing` stays and holds."""
        with suppress(Unavailable):
            self._cdi.remove(file_name(uid))
            self._store.save(before.without(uid))

    def _require_free(self, inventory: Inventory, addresses: tuple[str, ...]) -> None:
        for address, holders in self._devices.holders(inventory, addresses).items():
            raise InUse(
                "device-open",
                "a process still has the device open",
                where=address,
                expected="nobody",
                got=", ".join(holders),
                hint="the VM must exit first; kubelet retries",
            )

    def _reset_or_quarantine(self, address: str, checkpoint: Checkpoint, deadline: Deadline) -> Checkpoint:
        """Reset for the next tenant. A device that fails is set aside: its claim must not wait for it for ever."""
        left = deadline.remaining(f"reset {address}", at_most=RESET_S)
        try:
            self._devices.reset(address, deadline_s=left)
        except KataGpuError as exc:
            return checkpoint.with_quarantine(address, f"{exc.code}: {exc}", self._now())
        return checkpoint


def _nodes(device: Allocatable, *, iommufd: bool, api_device: bool) -> tuple[str, ...]:
    """Device nodes of all members and their companions, for the VM as a whole."""
    nodes: dict[str, None] = {}
    for member in device.members:
        paths = node_paths(member, iommufd=iommufd)
        if not paths:
            raise Unavailable(
                "vfio-node-missing",
                "the device has no VFIO node",
                where=str(member.function.address),
                expected="/dev/vfio/devices/vfioN" if iommufd else "/dev/vfio/N",
            )
        nodes |= dict.fromkeys(paths)
    if api_device:
        nodes["/dev/iommu" if iommufd else "/dev/vfio/vfio"] = None
    return tuple(nodes)
