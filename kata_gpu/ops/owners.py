"""Who gives GPUs away on this node: we, or NVIDIA's DRA driver. Never both (dra.md 6.1, 6.3)."""

from collections.abc import Mapping
from enum import StrEnum

from kata_gpu.core.api_errors import Conflict, NotFound
from kata_gpu.core.beside_nvidia import (
    NVIDIA,
    NVIDIA_SOCKET,
    TAINT_API,
    NvidiaDevice,
    parse_nvidia_slices,
    render_taint_rule,
)
from kata_gpu.errors import InUse
from kata_gpu.ops.publish import SLICES
from kata_gpu.ports import FileKind, HostFiles, JsonObject, Kube

REQUEST_S = 10.0
RULES = f"/apis/{TAINT_API}/devicetaintrules"


class Mode(StrEnum):
    """How this node is run."""

    AUTO = "auto"
    STANDALONE = "standalone"
    NVIDIA_DRA = "nvidia-dra"
    DEVICE_PLUGIN = "device-plugin"


def choose_mode(wanted: Mode, host: HostFiles, kubelet_root: str) -> Mode:
    """The mode to run in. Raises InUse where the operator forces a second owner, and says who the first is."""
    socket = f"{kubelet_root.rstrip('/')}/{NVIDIA_SOCKET}"
    present = host.kind(socket) is FileKind.SOCKET
    if wanted is Mode.AUTO:
        return Mode.NVIDIA_DRA if present else Mode.STANDALONE
    if present and wanted in {Mode.STANDALONE, Mode.DEVICE_PLUGIN}:
        raise InUse(
            "two-owners",
            "NVIDIA's DRA driver gives the GPUs of this node away",
            where=socket,
            expected=f"--mode {Mode.NVIDIA_DRA}, or that driver on other nodes only",
            got=f"--mode {wanted}",
            hint="GPUs in CC mode need standalone: keep gpu.nvidia.com off this node by node affinity",
        )
    return wanted


class NvidiaAllocation:
    """nvidia-dra: their slices are read, DeviceTaintRules are ours."""

    def __init__(self, kube: Kube, node: str) -> None:
        self._kube = kube
        self._node = node

    def nvidia_devices(self) -> tuple[NvidiaDevice, ...]:
        """VFIO devices in their slices."""
        selector = f"spec.nodeName={self._node},spec.driver={NVIDIA}"
        items, _ = self._kube.list(SLICES, field_selector=selector, timeout_s=REQUEST_S)
        return parse_nvidia_slices(items, self._node)

    def mark_unfit(self, reasons: Mapping[str, str]) -> None:
        """Exactly these must not be allocated: one rule per address, following the device when its index changes."""
        devices = {d.address: d for d in self.nvidia_devices()}
        wanted = {
            rule["metadata"]["name"]: rule
            for a, reason in reasons.items()
            if a in devices
            for rule in [render_taint_rule(devices[a], self._node, reason)]
        }
        for name, old in self._rules().items():
            if name not in wanted:
                self._kube.delete(f"{RULES}/{name}", uid=old["metadata"]["uid"], timeout_s=REQUEST_S)
            elif _same_rule(old, wanted[name]):
                del wanted[name]
            else:  # the selector is immutable in effect: a rule about another device is another rule
                self._kube.delete(f"{RULES}/{name}", uid=old["metadata"]["uid"], timeout_s=REQUEST_S)
        for rule in wanted.values():
            try:
                self._kube.create(RULES, rule, timeout_s=REQUEST_S)
            except Conflict:
                continue  # somebody was faster with the same name; the next pass compares

    def clear(self) -> None:
        """Also where the API knows no such rules: then there are none."""
        for name, old in self._rules().items():
            self._kube.delete(f"{RULES}/{name}", uid=old["metadata"]["uid"], timeout_s=REQUEST_S)

    def _rules(self) -> dict[str, JsonObject]:
        try:
            items, _ = self._kube.list(RULES, timeout_s=REQUEST_S)
        except NotFound:
            return {}
        return {
            r["metadata"]["name"]: r
            for r in items
            if (r["metadata"].get("labels") or {}).get("kata-gpu.dev/node") == self._node
        }


def _same_rule(old: JsonObject, new: JsonObject) -> bool:
    taint = {k: v for k, v in old["spec"]["taint"].items() if k != "timeAdded"}
    return bool(old["spec"]["deviceSelector"] == new["spec"]["deviceSelector"] and taint == new["spec"]["taint"])
