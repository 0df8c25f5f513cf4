"""How the node is, with one reason string for whatever is wrong. Reads only, and never blocks on a wedged device."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from kata_gpu.core.cdi import find_duplicates, find_stale, parse_spec
from kata_gpu.core.gpu import GpuDevice
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.labels import render_labels
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import KataGpuError, Malformed
from kata_gpu.host.guard import Holder
from kata_gpu.host.owners import find_owners
from kata_gpu.host.vfio_device import device_dead, responds
from kata_gpu.ops.node import Node, observe_node


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """`state`: settled, between (a transaction is open), degraded, unconfigured."""

    state: str
    reason: str
    last: dict[str, str]
    labels: dict[str, str]
    stale: dict[str, str]
    owners: dict[str, str]
    inventory: Inventory
    holders: dict[PciAddress, tuple[Holder, ...]]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return self.state == "settled"


def status(node: Node) -> Status:
    """Look at everything once."""
    observed = observe_node(node)
    inventory = replace(observed.inventory, devices=tuple(_asked(node, d) for d in observed.inventory.devices))
    stale = _stale(observed.cdi, inventory)
    owners = find_owners(node.host)
    last = node.journal.last_outcome()
    state, reason = _verdict(node, inventory, stale, owners, last)
    return Status(
        state=state,
        reason=reason,
        last=last,
        labels=render_labels(inventory),
        stale=stale,
        owners=owners,
        inventory=inventory,
        holders=node.guard.holders(d.function for d in inventory.devices),
    )


def _asked(node: Node, device: GpuDevice) -> GpuDevice:
    """The device, with its silence as its problem: what fell off the bus looks bound and well in every other file."""
    if device.problem:
        return device
    try:
        if responds(node.host, device.function):
            return device
        error: KataGpuError = device_dead(str(device.function))
    except KataGpuError as exc:
        error = exc
    return replace(device, cc_mode=None, problem=f"{error.what}; {error.hint}" if error.hint else error.what)


def _verdict(
    node: Node, inventory: Inventory, stale: dict[str, str], owners: dict[str, str], last: dict[str, str]
) -> tuple[str, str]:
    """The first of these that holds, worst first."""
    transaction = node.journal.open_transaction()
    if transaction is not None:
        return "between", f"{transaction} did not finish; run `kata-gpu recover`"
    for name, evidence in owners.items():
        return "degraded", f"{name} manages the devices: {evidence}"
    for device in inventory.devices:
        if device.problem:
            return "degraded", f"{device.function}: {device.problem}"
    for name, why in stale.items():
        return "degraded", f"CDI entry {name} is stale: {why}"
    unknown = [d for d in inventory.devices if d.bound and d.modes and d.cc_mode is None]
    if unknown:
        return "degraded", f"CC mode of {unknown[0].function} is not verified; run `kata-gpu cc query` or `node setup`"
    bound = sum(d.bound for d in inventory.devices)
    if not bound:
        return "unconfigured", f"none of {len(inventory.devices)} devices is bound; run `kata-gpu node setup`"
    what = f"last {last['purpose']} {last['outcome']}" if last else "nothing was ever changed"
    return "settled", f"{bound} of {len(inventory.devices)} devices bound; {what}"


def _stale(cdi: Mapping[str, str], inventory: Inventory) -> dict[str, str]:
    found: dict[str, str] = {}
    specs = {}
    for file, content in cdi.items():
        try:
            specs[file] = parse_spec(content, where=file)
        except Malformed as exc:
            found[file] = str(exc)
            continue
        found |= find_stale(specs[file], inventory.devices, iommufd=inventory.iommufd)
    found |= {name: f"also in {', '.join(files[1:])}" for name, files in find_duplicates(specs).items()}
    return found
