"""Planning: observed state and policy in, actions out. Pure; planning again after applying gives no action.

Order of a plan: withdraw the CDI entries of what will change, bind, switch the CC mode of the whole set, publish.
A device is published only in the mode that the policy wants, so whatever is interrupted is not offered to anybody.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from kata_gpu.core.actions import Action, Bind, Binding, ModeChange, Publish, Switch
from kata_gpu.core.cdi import FILES, render_spec
from kata_gpu.core.gpu import CcMode, GpuDevice, Kind
from kata_gpu.core.inventory import Inventory
from kata_gpu.core.node_policy import NodePolicy
from kata_gpu.core.pci import VFIO_PCI, PciAddress, PciFunction
from kata_gpu.errors import Misconfigured, RebootNeeded

# Companions whose driver keeps the host alive: mass storage and network.
_ESSENTIAL = {0x01: "storage", 0x02: "network"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What planning needs to know. Functions missing in `overrides` have none, in `drivers` go to vfio-pci."""

    inventory: Inventory
    overrides: Mapping[PciAddress, str] = field(default_factory=dict)
    drivers: Mapping[PciAddress, str] = field(default_factory=dict)
    origins: Mapping[PciAddress, Binding] = field(default_factory=dict)
    cdi: Mapping[str, str] = field(default_factory=dict)
    wedged: Mapping[PciAddress, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Actions in order, and remarks for people. No action means that the node is as wanted."""

    purpose: str
    actions: tuple[Action, ...]
    notes: tuple[str, ...] = ()

    @property
    def touched(self) -> tuple[PciAddress, ...]:
        """Functions that will be bound, reset or switched: nobody may use them."""
        found: dict[PciAddress, None] = {}
        for action in self.actions:
            if isinstance(action, Bind):
                found[action.address] = None
            elif isinstance(action, Switch):
                found.update(dict.fromkeys(c.address for c in action.changes))
        return tuple(sorted(found))


def plan_setup(observed: Observed, policy: NodePolicy) -> Plan:
    """Bring the selected devices to VFIO, in the mode of the policy, published in CDI.

    Raises Misconfigured for what can never work, RebootNeeded for a wedged device: before anything is touched.
    """
    inventory = observed.inventory
    if not inventory.devices:
        raise Misconfigured(
            "no-devices",
            "this host has no NVIDIA GPU or NVSwitch",
            expected="at least one",
            hint="`lspci -d 10de:` shows what is there; to try without: `kata-gpu sim create`, then --sim FILE",
        )
    chosen = [d for d in inventory.devices if policy.selects(d)]
    if not chosen:
        raise Misconfigured(
            "nothing-selected",
            "the policy selects no device of this host",
            expected=f"a rule for one of {', '.join(str(d.function) for d in inventory.devices)}",
            got="; ".join(map(str, policy.rules)) or "no rule",
            hint="`kata-gpu gpus` lists the devices; `select: all` takes every one",
        )
    modes = {d.function.address: _wanted_mode(d, policy) for d in chosen}
    _require_whole_board(inventory, modes)
    for device in chosen:
        _require_usable(device, observed)
    binds = [b for d in chosen for b in _binds(d, observed)]
    changes = tuple(
        ModeChange(address=d.function.address, before=d.cc_mode, after=mode)
        for d in chosen
        if (mode := modes[d.function.address]) is not None and d.cc_mode is not mode
    )
    touched = {b.address for b in binds} | {c.address for c in changes}
    changing = {d.function.address for d in chosen if any(f.address in touched for f in d.unit)}
    files = _publications(inventory, chosen, changing, observed.cdi)
    actions = (
        *files.withdraw,
        *binds,
        *((Switch(changes=changes),) if changes else ()),
        *files.publish,
    )
    return Plan(purpose="setup", actions=actions, notes=_notes(chosen, modes))


def plan_reset(observed: Observed, *, keep_mode: bool = False) -> Plan:
    """Give the devices that we took back: withdraw CDI, CC mode off, original driver and override.

    A function that somebody else brought to VFIO is not ours to take from there.
    """
    inventory = observed.inventory
    ours = [d for d in inventory.devices if any(f.address in observed.origins for f in d.unit)]
    for device in ours:
        _require_usable(device, observed)
    withdraw = tuple(
        Publish(file=file, devices=(), before=observed.cdi[file]) for file in FILES.values() if file in observed.cdi
    )
    changes = tuple(
        ModeChange(address=d.function.address, before=d.cc_mode, after=CcMode.OFF)
        for d in ours
        if d.modes and d.cc_mode is not CcMode.OFF and d.function.on_vfio and not keep_mode
    )
    releases = []
    for device in ours:
        for function in device.unit:
            now = Binding(driver=function.driver, override=observed.overrides.get(function.address))
            then = observed.origins.get(function.address, now)
            if now != then and (function.on_vfio or now.override is not None):
                releases.append(Bind(address=function.address, before=now, after=then))
    actions = (*withdraw, *((Switch(changes=changes),) if changes else ()), *releases)
    others = [d.function for d in inventory.devices if d.function.on_vfio and d not in ours]
    notes = tuple(f"{f}: on {f.driver} and not by us, left alone (`kata-gpu release` takes it)" for f in others)
    return Plan(purpose="reset", actions=actions, notes=notes)


def plan_bind(observed: Observed, addresses: Iterable[PciAddress]) -> Plan:
    """Bring devices and their companions to VFIO, nothing else."""
    devices = [observed.inventory.device(a) for a in addresses]
    for device in devices:
        _require_usable(device, observed)
    return Plan(purpose="bind", actions=tuple(b for d in devices for b in _binds(d, observed)))


def plan_release(observed: Observed, addresses: Iterable[PciAddress]) -> Plan:
    """Give devices and their companions back to the driver they came from; CDI entries go first."""
    devices = [observed.inventory.device(a) for a in addresses]
    actions: list[Action] = []
    gone = {d.function.address for d in devices}
    files = _publications(observed.inventory, [], gone, observed.cdi)
    actions.extend(files.withdraw)
    for function in (f for d in devices for f in d.unit):
        now = Binding(driver=function.driver, override=observed.overrides.get(function.address))
        then = observed.origins.get(function.address, Binding())
        if now != then and (function.on_vfio or now.override is not None):
            actions.append(Bind(address=function.address, before=now, after=then))
    return Plan(purpose="release", actions=tuple(actions))


def plan_mode(observed: Observed, addresses: Iterable[PciAddress], mode: CcMode) -> Plan:
    """Switch the CC mode of bound devices as one set; `ppcie` needs the whole board."""
    devices = [observed.inventory.device(a) for a in addresses]
    wanted: dict[PciAddress, CcMode | None] = {}
    for device in devices:
        _require_usable(device, observed)
        if mode not in device.modes:
            raise _not_capable(device, mode)
        if not device.bound:
            raise Misconfigured(
                "not-bound",
                "the device is not on VFIO",
                where=str(device.function),
                hint=f"kata-gpu bind {device.function.address}",
            )
        wanted[device.function.address] = mode
    _require_whole_board(observed.inventory, wanted)
    changes = tuple(
        ModeChange(address=d.function.address, before=d.cc_mode, after=mode) for d in devices if d.cc_mode is not mode
    )
    files = _publications(observed.inventory, [], {c.address for c in changes}, observed.cdi)
    return Plan(purpose=f"cc set {mode}", actions=(*files.withdraw, *((Switch(changes=changes),) if changes else ())))


@dataclass(frozen=True, slots=True)
class _Files:
    withdraw: tuple[Publish, ...]
    publish: tuple[Publish, ...]


def _publications(
    inventory: Inventory, chosen: list[GpuDevice], changing: set[PciAddress], cdi: Mapping[str, str]
) -> _Files:
    """CDI files to shrink before and to write after. A file that is right already is not touched."""
    withdraw, publish = [], []
    for kind, file in FILES.items():
        devices = [d for d in chosen if d.kind is kind]
        stable = [d for d in inventory.devices if d.kind is kind and d.function.address not in changing]
        current = cdi.get(file)
        named = [d for d in stable if current is not None and f'"{d.name}"' in current]
        changes = any(d.function.address in changing for d in inventory.devices if d.kind is kind)
        after_withdraw = current
        if current is not None and changes and len(named) < current.count('"name"'):
            withdraw.append(Publish(file=file, devices=tuple(d.function.address for d in named), before=current))
            after_withdraw = render_spec(kind, named, iommufd=inventory.iommufd)
        if not devices:
            continue
        done = not changes and current == render_spec(kind, devices, iommufd=inventory.iommufd)
        if not done:
            addresses = tuple(d.function.address for d in devices)
            publish.append(Publish(file=file, devices=addresses, before=after_withdraw))
    return _Files(tuple(withdraw), tuple(publish))


def _wanted_mode(device: GpuDevice, policy: NodePolicy) -> CcMode | None:
    mode = policy.mode_of(device)
    if mode is None:
        rule = next(r for r in policy.rules if r.matches(device))
        if rule.select is not None and rule.mode is not CcMode.OFF:
            raise _not_capable(device, rule.mode)
        return None
    if mode not in device.modes:
        raise _not_capable(device, mode)
    return mode


def _not_capable(device: GpuDevice, mode: CcMode) -> Misconfigured:
    return Misconfigured(
        "mode-not-supported",
        f"{device.product} cannot be put in CC mode {mode}",
        where=str(device.function),
        expected=", ".join(sorted(device.modes)) or "no CC mode: leave the device out of the rule",
        got=mode,
    )


def _require_whole_board(inventory: Inventory, modes: Mapping[PciAddress, CcMode | None]) -> None:
    """PPCIe is one trusted board in one VM: every PPCIe-capable GPU and every NVSwitch, or none."""
    if CcMode.PPCIE not in modes.values():
        return
    board = [d for d in inventory.devices if d.ppcie_capable]
    if not any(d.kind is Kind.NVSWITCH for d in board):
        raise Misconfigured(
            "ppcie-no-switches",
            "PPCIe needs the NVSwitches of the board",
            expected="NVSwitches",
            got="none",
            hint="without switches a Hopper GPU is protected by mode `on`, one GPU for each VM",
        )
    outside = [d for d in board if modes.get(d.function.address) is not CcMode.PPCIE]
    if outside:
        raise Misconfigured(
            "ppcie-partial",
            "PPCIe takes all GPUs and NVSwitches of the board together",
            where=", ".join(str(d.function) for d in outside),
            expected="mode ppcie on every one",
            hint="bind: gpus+nvswitches, and one rule `select: all, mode: ppcie`",
        )


def _require_usable(device: GpuDevice, observed: Observed) -> None:
    for function in device.unit:
        if function.address in observed.wedged:
            raise RebootNeeded(
                "device-wedged",
                f"the device is wedged: {observed.wedged[function.address]}",
                where=str(function),
                hint="end the holder named above, or reboot the node",
            )
    if device.function.iommu_group is None:
        raise Misconfigured(
            "no-iommu",
            "the device has no IOMMU group",
            where=str(device.function),
            hint="enable the IOMMU in the firmware, and check `kata-gpu doctor` IOM-01",
        )
    for function in device.companions:
        essential = _ESSENTIAL.get(function.class_code >> 16)
        if essential is not None and function.driver is not None and not function.on_vfio:
            raise Misconfigured(
                "essential-companion",
                f"a {essential} device of the host shares the group or slot",
                where=str(function),
                got=function.driver,
                hint="move the card to a slot with ACS; kata-gpu does not unbind host storage or network",
            )


def _binds(device: GpuDevice, observed: Observed) -> list[Bind]:
    """Everything of the device's unit that is not on VFIO yet, companions first: the group is viable when it counts."""
    return [_bind(f, observed) for f in reversed(device.unit) if not _in_place(f, observed)]


def _in_place(function: PciFunction, observed: Observed) -> bool:
    wanted = observed.drivers.get(function.address, VFIO_PCI)
    return function.driver == wanted and observed.overrides.get(function.address) == wanted


def _bind(function: PciFunction, observed: Observed) -> Bind:
    driver = observed.drivers.get(function.address, VFIO_PCI)
    before = Binding(driver=function.driver, override=observed.overrides.get(function.address))
    return Bind(address=function.address, before=before, after=Binding(driver=driver, override=driver))


def _notes(chosen: list[GpuDevice], modes: Mapping[PciAddress, CcMode | None]) -> tuple[str, ...]:
    notes = [
        f"{d.function} {d.product}: not CC capable, passed through without protection"
        for d in chosen
        if modes[d.function.address] is None
    ]
    if CcMode.DEVTOOLS in modes.values():
        notes.append("devtools is for debugging: no production policy accepts its evidence")
    return tuple(notes)
