"""Whether a claim may have what was allocated to it: everything that can be refused before anything is written.

The scheduler decided on facts that this host published some time ago; here they are compared with the facts of now
(dra.md 6.2, Prepare 3). The driver is also the last line of defence against a device that is given away twice.
"""

from kata_gpu.core.allocatable import Allocatable, allocatables, foreign_functions, ppcie_board
from kata_gpu.core.checkpoint import Checkpoint
from kata_gpu.core.claim import Allocated, Claim, ClaimRef, Mode
from kata_gpu.core.gpu import CcMode, GpuDevice
from kata_gpu.core.inventory import Inventory
from kata_gpu.errors import InUse, Misconfigured, Unavailable

CONFIDENTIAL = frozenset({CcMode.ON, CcMode.DEVTOOLS, CcMode.PPCIE})


def require_fit(claim: Claim, inventory: Inventory, checkpoint: Checkpoint) -> dict[str, Allocatable]:
    """The devices that the claim gets for itself, by name.

    Raises InUse naming the holder, Misconfigured for what a retry cannot cure and Unavailable for what it may.
    """
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
            _require_device(device, wanted[device.device], inventory, checkpoint, claim.ref, together)
    return wanted


def _require_device(
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
        if member.bound:  # else its mode cannot be read yet; it is checked after binding
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
        raise Misconfigured("mode-differs", "not in PPCIe mode", where=device.name, expected="ppcie", got=device.mode)


def require_mode(demand: Allocated, member: GpuDevice, *, where: str) -> None:
    """The mode of now is the mode that class or claim demands; nothing is demanded of a device without modes.

    Raises Misconfigured.
    """
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
