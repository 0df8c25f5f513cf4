"""NodePrepareResources and NodeUnprepareResources for one claim (dra.md 1.3, 1.6, 6.2).

The order makes every crash harmless: intent is on disk before the host is touched, the CDI file is there before
`prepared` is, and the answer is given last. Prepare again finishes what it finds; Unprepare undoes it. A GPU stays on
VFIO between claims and its mode is never changed here: that is a node operation.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from kata_gpu.core.allocatable import Allocatable, allocatables, foreign_functions, ppcie_board
from kata_gpu.core.checkpoint import Checkpoint, ClaimEntry, ClaimState, HeldDevice
from kata_gpu.core.claim import Allocated, Claim, ClaimRef, Mode, ResetPolicy, parse_claim
from kata_gpu.core.claim_cdi import device_id, file_name, render_claim
from kata_gpu.core.gpu import CcMode, GpuDevice
from kata_gpu.core.inventory import Inventory
from kata_gpu.errors import InUse, KataGpuError, Misconfigured, TimedOut, Unavailable
from kata_gpu.ops.deadline import Deadline
from kata_gpu.ports import CdiFiles, ClaimStore, Kube, NodeDevices

GET_CLAIM_S = 10.0  # one GET; the rest of kubelet's 45 s belongs to the host
BIND_S = 15.0  # driver_override, unbind, probe and the node of one device
RESET_S = 10.0  # FLR is 100 ms by PCIe, the boot of a data centre GPU a few seconds
CONFIDENTIAL = frozenset({CcMode.ON, CcMode.DEVTOOLS, CcMode.PPCIE})


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
            inventory = self._devices.observe()
            try:
                wanted = self._check(claim, inventory, checkpoint)
            except (Misconfigured, Unavailable, InUse):
                self._on_change()
                raise
            return self._take(claim, wanted, checkpoint, deadline)

    def unprepare(self, uid: str, deadline: Deadline) -> None:
        """Nothing of the claim is left on this host when this returns. Needs the checkpoint only, never the API."""
        with self._store.locked(deadline.remaining("claim lock")):
            checkpoint = self._store.load()
            entry = checkpoint.entry(uid)
            if entry is None:
                return
            present: tuple[str, ...] = ()
            if entry.boot_id == self._node.boot_id:
                here = {str(d.function.address) for d in self._devices.observe().devices}
                present = tuple(sorted(entry.exclusive & here))
                self._require_free(present)
            self._cdi.remove(file_name(uid))
            for address in present if entry.needs_reset or entry.state is ClaimState.PREPARING else ():
                checkpoint = self._reset_or_quarantine(address, checkpoint, deadline)
            self._store.save(checkpoint.without(uid))
        self._on_change()

    def refresh(self, deadline: Deadline) -> None:
        """Bring CDI files in line with the device nodes of now: a rebind gives a device another number."""
        with self._store.locked(deadline.remaining("claim lock")):
            for entry in self._store.load().claims:
                if entry.state is ClaimState.PREPARED and entry.boot_id == self._node.boot_id:
                    self._refresh_cdi(entry)

    def _check(self, claim: Claim, inventory: Inventory, checkpoint: Checkpoint) -> Mapping[str, Allocatable]:
        """Everything that can be refused before anything is written. Returns the exclusive devices by name."""
        offered = {a.name: a for a in allocatables(inventory)}
        wanted: dict[str, Allocatable] = {}
        for device in claim.devices:
            found = offered.get(device.device)
            if found is None:
                raise Unavailable(
                    "device-unknown",
                    "the allocated device is not on this node",
                    where=f"pool {device.pool}",
                    expected=device.device,
                    got=", ".join(offered) or "no devices",
                )
            if device.admin:
                continue
            if device.device in wanted:
                raise Misconfigured("device-twice", "one device allocated twice in a claim", where=device.device)
            wanted[device.device] = found
        together = frozenset(a for w in wanted.values() for a in w.addresses)
        if sum(len(w.addresses) for w in wanted.values()) != len(together):
            raise Misconfigured("device-twice", "a group and one of its members are in one claim", where=str(claim.ref))
        for device in claim.devices:
            if not device.admin:
                self._check_device(device, wanted[device.device], inventory, checkpoint, claim.ref, together)
        return wanted

    def _check_device(
        self,
        demand: Allocated,
        device: Allocatable,
        inventory: Inventory,
        checkpoint: Checkpoint,
        ref: ClaimRef,
        together: frozenset[str],
    ) -> None:
        for member in device.members:
            address = str(member.function.address)
            holder = checkpoint.holder(address)
            if holder and holder.ref.uid != ref.uid:
                raise InUse("device-held", "another claim has the device", where=device.name, got=str(holder.ref))
            if aside := checkpoint.quarantined(address):
                raise Unavailable("device-quarantined", "the device is set aside", where=address, got=aside.reason)
            if strangers := foreign_functions(member, inventory, together):
                raise Misconfigured(
                    "group-foreign",
                    "other functions share the IOMMU group of the device",
                    where=address,
                    expected="only functions of this claim",
                    got=", ".join(strangers),
                    hint="move the card behind a port with ACS, or leave it out of the pool",
                )
            require_mode(demand, member, where=address)
            if not inventory.iommufd and needs_iommufd(demand, member):
                raise Misconfigured(
                    "iommufd-missing",
                    "confidential VMs need iommufd and this host has none",
                    where=address,
                    expected="/dev/iommu and a vfio-dev node",
                    hint="kernel 6.6 or newer with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV",
                )
            if member.cc_mode is CcMode.PPCIE:
                missing = {str(d.function.address) for d in ppcie_board(inventory)} - together
                if missing:
                    raise Misconfigured(
                        "ppcie-partial",
                        "a board in PPCIe mode goes to one VM as a whole",
                        where=address,
                        expected="all GPUs and switches of the board",
                        got=f"without {', '.join(sorted(missing))}",
                    )
        if demand.config.ppcie and any(m.cc_mode is not CcMode.PPCIE for m in device.members):
            raise Misconfigured(
                "mode-differs", "not in PPCIe mode", where=device.name, expected="ppcie", got=device.mode
            )

    def _take(
        self, claim: Claim, wanted: Mapping[str, Allocatable], checkpoint: Checkpoint, deadline: Deadline
    ) -> tuple[HeldDevice, ...]:
        uid = claim.ref.uid
        addresses = tuple(a for w in wanted.values() for a in w.addresses)
        self._require_free(addresses)
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
            pod=claim.consumers[0] if claim.consumers else "",
        )
        begun = checkpoint.with_entry(entry)
        self._store.save(begun)
        try:
            self._bring_up(claim, wanted, deadline)
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

    def _bring_up(self, claim: Claim, wanted: Mapping[str, Allocatable], deadline: Deadline) -> None:
        touched = False
        for device in claim.devices:
            for member in wanted[device.device].members if not device.admin else ():
                address = str(member.function.address)
                if not member.bound or _node_path(member, iommufd=True) is None:
                    self._devices.bind(address, deadline_s=deadline.remaining(f"bind {address}", at_most=BIND_S))
                    touched = True
                if device.config.reset_policy is ResetPolicy.ALWAYS:
                    self._devices.reset(address, deadline_s=deadline.remaining(f"reset {address}", at_most=RESET_S))
                    touched = True
        inventory = self._devices.observe() if touched else None
        final = {a.name: a for a in allocatables(inventory)} if inventory else wanted
        for device in claim.devices if touched else ():
            for member in final[device.device].members if not device.admin else ():
                require_mode(device, member, where=str(member.function.address))
        if wanted:
            self._cdi.write(file_name(claim.ref.uid), self._render(claim, {n: final[n] for n in wanted}))

    def _render(self, claim: Claim, devices: Mapping[str, Allocatable]) -> bytes:
        api = {d.device for d in claim.devices if d.config.api_device and not d.admin}
        return render_claim(claim.ref.uid, {n: _nodes(a, api_device=n in api) for n, a in devices.items()})

    def _refresh_cdi(self, entry: ClaimEntry) -> None:
        """Write the file again where it is missing or names other nodes; leave it alone where it is right."""
        names = [d.device for d in entry.devices if not d.admin]
        if not names:
            return
        offered = {a.name: a for a in allocatables(self._devices.observe())}
        if gone := [n for n in names if n not in offered]:
            self._on_change()
            raise Unavailable(
                "device-gone", "a prepared device left the node", where=str(entry.ref), got=", ".join(gone)
            )
        old = self._cdi.read(file_name(entry.ref.uid))
        api = old is not None and (b'"/dev/iommu"' in old or b'"/dev/vfio/vfio"' in old)
        new = render_claim(entry.ref.uid, {n: _nodes(offered[n], api_device=api) for n in names})
        if new != old:
            self._cdi.write(file_name(entry.ref.uid), new)

    def _roll_back(self, uid: str, before: Checkpoint) -> None:
        """Undo on disk what a definite failure left. A full disk may prevent it; then `preparing` stays and holds."""
        with suppress(Unavailable):
            self._cdi.remove(file_name(uid))
            self._store.save(before.without(uid))

    def _require_free(self, addresses: tuple[str, ...]) -> None:
        for address in addresses:
            if holders := self._devices.holders(address):
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


def require_mode(demand: Allocated, member: GpuDevice, *, where: str) -> None:
    """The mode of now is the mode that class or claim demands; nothing is demanded of a device without modes."""
    wanted = demand.config.require_mode
    if wanted is None or (wanted is Mode.OFF and not member.modes):
        return
    if member.cc_mode is None or member.cc_mode.value != wanted.value:
        raise Misconfigured(
            "mode-differs",
            "the device is not in the demanded mode",
            where=where,
            expected=wanted,
            got=member.cc_mode or f"unknown ({member.problem or 'not readable'})",
            hint="the node's policy decides the mode; see `kata-gpu status`",
        )


def needs_iommufd(demand: Allocated, member: GpuDevice) -> bool:
    """Kata refuses the legacy group for confidential VMs; so do we, and never fall back to it silently."""
    return demand.config.require_mode not in {None, Mode.OFF} or member.cc_mode in CONFIDENTIAL


def _node_path(member: GpuDevice, *, iommufd: bool) -> str | None:
    if iommufd and member.function.vfio_cdev:
        return f"/dev/vfio/devices/{member.function.vfio_cdev}"
    if member.function.on_vfio and member.function.iommu_group is not None and member.cc_mode not in CONFIDENTIAL:
        return f"/dev/vfio/{member.function.iommu_group}"
    return None


def _nodes(device: Allocatable, *, api_device: bool) -> tuple[str, ...]:
    nodes = []
    for member in device.members:
        node = _node_path(member, iommufd=True)
        if node is None:
            raise Unavailable(
                "vfio-node-missing", "the device has no VFIO node", where=str(member.function.address),
                expected="/dev/vfio/devices/vfioN",
            )  # fmt: skip
        nodes.append(node)
    if api_device:
        nodes.append("/dev/iommu" if "/devices/" in nodes[0] else "/dev/vfio/vfio")
    return tuple(dict.fromkeys(nodes))
