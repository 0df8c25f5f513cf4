"""The node policy: what an operator wants of this node's devices (`node-policy.yaml`).

apiVersion: config.kata-gpu.dev/v1alpha1
kind: NodePolicy
bind: gpus+nvswitches        # or gpus
backend: auto                # vfio, gpu-admin-tools
drain: never                 # or evict: the agent asks pods that hold a device which must change to go
devices:                     # first match wins; devices that match nothing are left alone
  - select: all              # or a PCI address, or a device id like 10de:2330
    mode: on                 # off, on, devtools, ppcie
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from kata_gpu.core.gpu import CcMode, GpuDevice, Kind
from kata_gpu.core.pci import PciAddress
from kata_gpu.errors import KataGpuError, Malformed

API_VERSION = "config.kata-gpu.dev/v1alpha1"
KIND = "NodePolicy"
_E = TypeVar("_E", bound=StrEnum)
MAX_RULES = 64  # more rules than any board has devices


class BindScope(StrEnum):
    """Which devices go to VFIO."""

    GPUS = "gpus"
    ALL = "gpus+nvswitches"


class Backend(StrEnum):
    """What changes the CC mode."""

    AUTO = "auto"
    VFIO = "vfio"
    ADMIN_TOOLS = "gpu-admin-tools"


class Drain(StrEnum):
    """What the agent does with pods that hold a device whose mode must change. There is no force: a VM is never cut."""

    NEVER = "never"
    EVICT = "evict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Desired mode of the devices that `select` matches: `all`, an address, or (vendor, device)."""

    select: PciAddress | tuple[int, int] | None
    mode: CcMode

    def matches(self, device: GpuDevice) -> bool:
        """Whether the rule is about a device."""
        if isinstance(self.select, PciAddress):
            return device.function.address == self.select
        return self.select in {None, (device.function.vendor, device.function.device)}

    def __str__(self) -> str:
        ids = "all" if self.select is None else self.select
        return f"select {'{:04x}:{:04x}'.format(*ids) if isinstance(ids, tuple) else ids}, mode {self.mode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePolicy:
    """All of it."""

    rules: tuple[Rule, ...]
    bind: BindScope = BindScope.ALL
    backend: Backend = Backend.AUTO
    drain: Drain = Drain.NEVER

    @classmethod
    def everything(cls, mode: CcMode) -> "NodePolicy":
        """One mode for all devices: what `--cc-mode` means without a policy file."""
        return cls(rules=(Rule(select=None, mode=mode),))

    def selects(self, device: GpuDevice) -> bool:
        """Whether the device is ours to manage."""
        in_scope = device.kind is Kind.GPU or self.bind is BindScope.ALL
        return in_scope and any(r.matches(device) for r in self.rules)

    def mode_of(self, device: GpuDevice) -> CcMode | None:
        """Desired CC mode; None where the device has none. An NVSwitch only knows `ppcie` and `off`.

        A GPU without CC capability stays usable without it under a rule for all; a rule that names it must be true.
        """
        rule = next((r for r in self.rules if r.matches(device)), None)
        if rule is None or not device.modes:
            return None
        if device.kind is Kind.NVSWITCH and rule.mode is not CcMode.PPCIE:
            return CcMode.OFF
        return rule.mode


def parse_policy(document: Any, *, where: str) -> NodePolicy:
    """From the YAML document. Raises Malformed naming the field, what is expected and what is there."""
    top = _mapping(document, where, {"apiVersion", "kind", "bind", "backend", "drain", "devices"})
    for key, value in (("apiVersion", API_VERSION), ("kind", KIND)):
        if top.get(key) != value:
            raise Malformed("node-policy", f"wrong {key}", where=f"{where}: {key}", expected=value, got=top.get(key))
    rules = top.get("devices")
    if not isinstance(rules, list) or not 0 < len(rules) <= MAX_RULES:
        raise Malformed("node-policy", "no rules", where=f"{where}: devices", expected=f"1 to {MAX_RULES} rules")
    return NodePolicy(
        rules=tuple(_rule(rule, f"{where}: devices[{i}]") for i, rule in enumerate(rules)),
        bind=_member(BindScope, top.get("bind", BindScope.ALL), f"{where}: bind"),
        backend=_member(Backend, top.get("backend", Backend.AUTO), f"{where}: backend"),
        drain=_member(Drain, top.get("drain", Drain.NEVER), f"{where}: drain"),
    )


def _rule(data: Any, where: str) -> Rule:
    rule = _mapping(data, where, {"select", "mode"})
    return Rule(
        select=_select(rule.get("select"), f"{where}.select"), mode=_member(CcMode, rule.get("mode"), f"{where}.mode")
    )


def _select(value: Any, where: str) -> PciAddress | tuple[int, int] | None:
    if value == "all":
        return None
    try:
        if isinstance(value, str) and value.count(":") == 1:
            vendor, device = (int(part, 16) for part in value.split(":"))
            return vendor, device
        return PciAddress.parse(str(value))
    except (ValueError, KataGpuError) as exc:
        raise Malformed(
            "node-policy", "not a selector", where=where, expected="all, 0000:17:00.0 or 10de:2330", got=value
        ) from exc


def _mapping(data: Any, where: str, known: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise Malformed("node-policy", "not a mapping", where=where, got=type(data).__name__)
    if unknown := sorted(set(data) - known):
        raise Malformed(
            "node-policy", "unknown field", where=f"{where}.{unknown[0]}", expected=", ".join(sorted(known))
        )
    return data


def _member(kind: type[_E], value: Any, where: str) -> _E:
    if isinstance(value, str) and value in kind.__members__.values():
        return kind(value)
    raise Malformed("node-policy", "not a known value", where=where, expected=", ".join(kind), got=value)
