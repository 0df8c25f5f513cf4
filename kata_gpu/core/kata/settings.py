"""What a confidential GPU pod needs of Kata: one row a requirement, with the key of each runtime.

Source: the NVIDIA templates of Kata 4.1.0 (`configuration-qemu-nvidia-gpu{,-snp,-tdx}` for both runtimes). A row is
satisfied by a value, a minimum or the absence of something; the drop-in writes the rows that have a value to write.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kata_gpu.core.kata.effective import Runtime
from kata_gpu.core.podresources import BRIDGE_SOCKET
from kata_gpu.errors import Misconfigured

QEMU = "hypervisor.qemu"
SNP_POLICY_DEBUG = 1 << 19  # SEV-SNP ABI, GUEST_POLICY bit 19
MAX_ROOT_PORTS = 32  # a PCIe root bus has 32 device numbers
DEFAULT_TIMEOUT_S = 1320  # the guest's image pull (1200 s) and CDI wait (100 s) fit inside: timeouts.py


class Tee(StrEnum):
    """TEE of the handler."""

    NONE = "none"
    SNP = "snp"
    TDX = "tdx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the pods of one handler need on this node."""

    tee: Tee
    devices: int  # most VFIO devices one VM gets: 1 GPU, or 12 for an HGX node
    bridge_socket: str = BRIDGE_SOCKET
    timeout_s: int = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        if not 1 <= self.devices <= MAX_ROOT_PORTS:
            raise Misconfigured("kata-devices", "impossible number", where="devices",
                                expected=f"1 to {MAX_ROOT_PORTS} (root ports of a bus)", got=self.devices)  # fmt: skip
        if self.timeout_s < 300:
            raise Misconfigured("kata-timeout", "a GPU VM cannot start so fast", where="timeout",
                                expected=f"at least {300} s", got=self.timeout_s)  # fmt: skip


Want = Callable[[Needs, Runtime], Any]
Holds = Callable[[Any, Any], bool]


def _equals(got: Any, want: Any) -> bool:
    return type(got) is type(want) and bool(got == want)


def _at_least(got: Any, want: Any) -> bool:
    return isinstance(got, int) and not isinstance(got, bool) and bool(got >= want)


def _absent_or(got: Any, want: Any) -> bool:
    return got is None or _equals(got, want)


def _contains(got: Any, want: Any) -> bool:
    return isinstance(got, list) and set(want) <= set(map(str, got))


def _no_debug_bit(got: Any, _want: Any) -> bool:
    return got is None or (isinstance(got, int) and not got & SNP_POLICY_DEBUG)


def _ports(got: Any, want: Any) -> bool:
    """The Go runtime derives the number from the devices where the key is 0."""
    return _at_least(got, want) or _equals(got, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One requirement. `want` gives the value for these needs, or None where the row does not apply."""

    id: str
    go: str | None
    rust: str | None
    want: Want
    holds: Holds
    symptom: str
    writable: bool = True  # whether our drop-in sets it

    def key(self, runtime: Runtime) -> str | None:
        """Dotted key in that runtime."""
        return self.go if runtime is Runtime.GO else self.rust


def _always(value: Any) -> Want:
    return lambda _needs, _runtime: value


def _tee_only(value: Any) -> Want:
    return lambda needs, _runtime: None if needs.tee is Tee.NONE else value


SETTINGS: tuple[Setting, ...] = (
    Setting(id="cold-plug", go=f"{QEMU}.cold_plug_vfio", rust=f"{QEMU}.cold_plug_vfio", want=_always("root-port"),
            holds=_equals, symptom="the VM starts without its GPU: nothing is cold-plugged"),
    Setting(id="hot-plug", go=f"{QEMU}.hot_plug_vfio", rust=None, want=_always("no-port"), holds=_absent_or,
            symptom="hot plug into a confidential VM is refused by QEMU", writable=False),
    Setting(id="hot-plug", go=None, rust=f"{QEMU}.hotplug_vfio_on_root_bus", want=_always(False), holds=_absent_or,
            symptom="hot plug into a confidential VM is refused by QEMU", writable=False),
    Setting(id="root-ports", go=f"{QEMU}.pcie_root_port", rust=None, want=lambda n, _r: n.devices, holds=_ports,
            symptom="QEMU: Bus 'rp..' not found, or the VM misses devices"),
    Setting(id="root-ports", go=None, rust=f"{QEMU}.pcie_root_port", want=lambda n, _r: n.devices, holds=_at_least,
            symptom="QEMU: Bus 'rp..' not found, or the VM misses devices"),
    Setting(id="confidential-guest", go=f"{QEMU}.confidential_guest", rust=f"{QEMU}.confidential_guest",
            want=_tee_only(True), holds=_equals, symptom="the VM is not confidential", writable=False),
    Setting(id="snp-guest", go=f"{QEMU}.sev_snp_guest", rust=f"{QEMU}.sev_snp_guest",
            want=lambda n, _r: True if n.tee is Tee.SNP else None, holds=_equals,
            symptom="SEV instead of SEV-SNP: no attestation report", writable=False),
    Setting(id="snp-debug", go=f"{QEMU}.snp_guest_policy", rust=f"{QEMU}.snp_guest_policy",
            want=lambda n, _r: 0x30000 if n.tee is Tee.SNP else None, holds=_no_debug_bit,
            symptom="the broker refuses the VM: its policy lets the host debug it", writable=False),
    Setting(id="init-data-annotation", go=f"{QEMU}.enable_annotations", rust=f"{QEMU}.enable_annotations",
            want=_tee_only(["cc_init_data"]), holds=_contains,
            symptom="init-data is ignored: the guest has no broker URL and no policy", writable=False),
    Setting(id="shared-fs", go=f"{QEMU}.shared_fs", rust=f"{QEMU}.shared_fs", want=_tee_only("none"), holds=_equals,
            symptom="the host can change files under the guest"),
    Setting(id="vfio-mode", go="runtime.vfio_mode", rust="runtime.vfio_mode", want=_always("guest-kernel"),
            holds=_equals, symptom="the container gets /dev/vfio instead of /dev/nvidia*"),
    Setting(id="pod-resources", go="runtime.pod_resource_api_sock", rust="runtime.pod_resource_api_sock",
            want=lambda n, _r: n.bridge_socket, holds=_equals,
            symptom="devices of resource claims never reach the VM: kubelet's own socket lists none"),
    Setting(id="sandbox-cgroup", go="runtime.sandbox_cgroup_only", rust="runtime.sandbox_cgroup_only",
            want=_always(True), holds=_equals, symptom="QEMU escapes the pod's memory limit (kata-containers#11599)"),
    Setting(id="static-resources", go="runtime.static_sandbox_resource_mgmt",
            rust="runtime.static_sandbox_resource_mgmt",
            want=_always(True), holds=_equals, symptom="the VM is sized before the limits are known; hot plug fails"),
    Setting(id="empty-dir", go="runtime.emptydir_mode", rust="runtime.emptydir_mode", want=_tee_only("block-encrypted"),
            holds=_equals, symptom="emptyDir volumes are readable by the host"),
    Setting(id="debug-console", go="agent.kata.debug_console_enabled", rust="agent.kata.debug_console_enabled",
            want=_tee_only(False), holds=_absent_or, symptom="the host gets a shell in the guest"),
    Setting(id="create-timeout", go="runtime.create_container_timeout", rust="agent.kata.create_container_timeout",
            want=lambda n, _r: n.timeout_s, holds=_at_least, symptom="DeadlineExceeded while the guest still pulls"),
    Setting(id="dial-timeout", go="agent.kata.dial_timeout", rust="agent.kata.reconnect_timeout_ms",
            want=lambda n, r: n.timeout_s * (1000 if r is Runtime.RUST else 1), holds=_at_least,
            symptom="timed out connecting to the agent while the VM still accepts its memory"),
)  # fmt: skip
