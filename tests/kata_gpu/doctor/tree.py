"""Trees of hosts: start from a healthy one, change one thing, write it to disk as a support bundle has it."""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from kata_gpu.core.doctor import CHECKS, HostFacts, Profile, Report, Status, examine
from kata_gpu.host.facts import gather
from kata_gpu.host.probes import SavedProbes
from kata_gpu.host.real import RealHost

RELEASE = "6.17.0-5-generic"
PCI = "/sys/bus/pci/devices"
GPU, PORT, NIC = "0000:17:00.0", "0000:16:01.0", "0000:18:00.0"
GPU_BUSES = (0x17, 0x3D, 0x60, 0x70, 0x98, 0xBB, 0xDD, 0xED)
SWITCH_BUSES = (0x05, 0x07, 0x09, 0x0B)
KATA_DIR = "/opt/kata/share/kata-containers"
KUBELET_YAML = "/var/lib/kubelet/config.yaml"
HANDLER = {
    Profile.GPU: "kata-qemu-nvidia-gpu",
    Profile.SNP: "kata-qemu-nvidia-gpu-snp",
    Profile.TDX: "kata-qemu-nvidia-gpu-tdx",
}
ASK = "kubectl --kubeconfig /etc/kubernetes/kubelet.conf --request-timeout=3s get"
NODE_COMMAND = (
    ASK
    + ' node node-1 -o jsonpath={"{\\"labels\\":"}{.metadata.labels}{",\\"allocatable\\":"}{.status.allocatable}{"}"}'
)
BOOT = "0f0f0f0f-0000-4000-8000-000000000001"
QEMU = "/opt/kata/bin/qemu-system-x86_64"


@dataclass
class Tree:
    """Files, links and nodes by path; answers of the probes. Every change returns the tree."""

    profiles: frozenset[Profile]
    files: dict[str, bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    probes: SavedProbes = field(default_factory=SavedProbes)

    def put(self, path: str, content: str | bytes) -> Self:
        """Write or replace a file."""
        self.files[path] = content.encode() if isinstance(content, str) else content
        return self

    def edit(self, path: str, old: str, new: str) -> Self:
        """Replace text in a file; the text must be there."""
        text = self.files[path].decode()
        assert old in text, f"{old!r} is not in {path}"
        return self.put(path, text.replace(old, new))

    def drop(self, prefix: str) -> Self:
        """Remove everything at or below a path; something must be there."""
        before = len(self.files) + len(self.links) + len(self.nodes)
        for kind in (self.files, self.links, self.nodes):
            for path in [p for p in kind if p == prefix or p.startswith(f"{prefix}/")]:
                kind.pop(path)
        assert len(self.files) + len(self.links) + len(self.nodes) < before, f"nothing at {prefix}"
        return self

    def command(self, line: str, output: str | None) -> Self:
        """Set what a program prints; it must be one that is asked."""
        assert line in self.probes.commands, line
        self.probes.commands[line] = output
        return self

    def log(self, old: str, new: str) -> Self:
        """Replace a line of the kernel log."""
        text = self.probes.commands["dmesg"] or ""
        assert old in text
        return self.command("dmesg", text.replace(old, new))

    def process(self, pid: int, comm: str, *arguments: str) -> Self:
        """Start a process."""
        self.put(f"/proc/{pid}/comm", f"{comm[:15]}\n")
        return self.put(f"/proc/{pid}/cmdline", "\0".join((*(arguments or (comm,)), "")))

    def write(self, root: Path) -> Path:
        """Write everything below `root`."""
        for path, content in self.files.items():
            at = root / path.lstrip("/")
            at.parent.mkdir(parents=True, exist_ok=True)
            at.write_bytes(content)
        for path, target in self.links.items():
            at = root / path.lstrip("/")
            at.parent.mkdir(parents=True, exist_ok=True)
            at.symlink_to(target)
        for path in self.nodes:
            (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (root / path.lstrip("/")).touch()
        (root / ".nodes").write_text("".join(f"{kind} {path}\n" for path, kind in self.nodes.items()))
        (root / ".probes.json").write_text(json.dumps(self.probes.to_json()))
        return root

    def facts(self, root: Path) -> HostFacts:
        """Write, then gather as `doctor --host-root` does."""
        self.write(root)
        return gather(RealHost(root), SavedProbes.load(root))

    def report(self, root: Path) -> Report:
        """Write, gather and examine."""
        return examine(CHECKS, self.facts(root), self.profiles)


def statuses(report: Report) -> dict[str, Status]:
    """Status by check id."""
    return {f.check.id: f.status for f in report.findings}


def config_space(*, port: bool = False, acs: int = 0x1D) -> bytes:
    """4 KiB of configuration space: a PCIe capability, and ACS on a port."""
    raw = bytearray(4096)
    raw[0:4] = struct.pack("<HH", 0x1022, 0x14AB) if port else struct.pack("<HH", 0x10DE, 0x2330)
    raw[0x06] = 0x10  # capabilities list
    raw[0x0E] = 1 if port else 0
    raw[0x34] = 0x40
    raw[0x40:0x44] = bytes((0x10, 0, 0x42 if port else 0x02, 0))
    if port:
        raw[0x100:0x104] = struct.pack("<I", 0x0001 | 1 << 16 | 0x140 << 20)  # AER first, then ACS
        raw[0x140:0x148] = struct.pack("<IHH", 0x000D | 1 << 16, 0x005F, acs)
    return bytes(raw)


def function(
    tree: Tree, address: str, group: int, *, vendor: int = 0x10DE, device: int = 0x2330, class_code: int = 0x030200,
    driver: str | None = "vfio-pci", cdev: int | None = None,
) -> None:  # fmt: skip
    """One PCI function below a root port of its own bus."""
    root = int(address[5:7], 16) - 1
    port = f"0000:{root:02x}:01.0"
    real = f"/sys/devices/pci0000:{root:02x}/{port}/{address}"
    tree.links[f"{PCI}/{address}"] = f"../../..{real.removeprefix('/sys')}"
    for name, text in {"vendor": f"{vendor:#06x}", "device": f"{device:#06x}", "class": f"{class_code:#08x}"}.items():
        tree.put(f"{real}/{name}", text + "\n")
    up = "../" * (real.count("/") - 1)
    tree.links[f"{real}/iommu_group"] = f"{up}kernel/iommu_groups/{group}"
    tree.links[f"/sys/kernel/iommu_groups/{group}/devices/{address}"] = f"../../../..{real.removeprefix('/sys')}"
    tree.put(f"/sys/kernel/iommu_groups/{group}/type", "DMA-FQ\n")
    if driver is not None:
        tree.links[f"{real}/driver"] = f"{up}bus/pci/drivers/{driver}"
        tree.put(f"/sys/bus/pci/drivers/{driver}/bind", "")
    if cdev is not None:
        tree.put(f"{real}/vfio-dev/vfio{cdev}/dev", f"511:{cdev}\n")
        tree.nodes[f"/dev/vfio/devices/vfio{cdev}"] = "char-device"
        tree.nodes[f"/dev/vfio/{group}"] = "char-device"


def nvidia(tree: Tree, bus: int, index: int, *, device: int = 0x2330, class_code: int = 0x030200) -> str:
    """A GPU or NVSwitch on VFIO with its port; returns its address."""
    address = f"0000:{bus:02x}:00.0"
    function(tree, address, 9 + index, device=device, class_code=class_code, cdev=index)
    port = f"0000:{bus - 1:02x}:01.0"
    base = f"/sys/devices/pci0000:{bus - 1:02x}/{port}"
    if f"{base}/vendor" not in tree.files:
        tree.links[f"{PCI}/{port}"] = f"../../..{base.removeprefix('/sys')}"
        tree.put(f"{base}/vendor", "0x1022\n").put(f"{base}/class", "0x060400\n")
        tree.put(f"{base}/config", config_space(port=True))
    start = 0x4000_0000_0000 + index * (1 << 38)
    bar1 = f"{start:#018x} {start + (128 << 30) - 1:#018x} 0x000000000014220c\n" if class_code == 0x030200 else ZERO
    bar0 = f"{start + (1 << 37):#018x} {start + (1 << 37) + (16 << 20) - 1:#018x} 0x000000000014220c\n"
    for name, text in {
        "resource": bar0 + ZERO + bar1 + ZERO * 10, "reset_method": "flr bus\n", "driver_override": "vfio-pci\n",
        "reset": "", "current_link_speed": "32.0 GT/s PCIe\n", "current_link_width": "16\n", "d3cold_allowed": "1\n",
        "max_link_speed": "32.0 GT/s PCIe\n", "max_link_width": "16\n", "power_state": "D3hot\n",
        "power/control": "auto\n", "ari_enabled": "0\n",
    }.items():  # fmt: skip
        tree.put(f"{base}/{address}/{name}", text)
    tree.put(f"{base}/{address}/config", config_space())
    return address


ZERO = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"


def kata_toml(profile: Profile, devices: int) -> str:
    """A Kata configuration as kata-deploy and our drop-in leave it."""
    tee = {
        Profile.SNP: "confidential_guest = true\nsev_snp_guest = true\nsnp_guest_policy = 196608\n",
        Profile.TDX: "confidential_guest = true\ntdx_quote_generation_service_socket_port = 0\n",
    }.get(profile, "")
    firmware = {Profile.SNP: "AMDSEV.fd", Profile.TDX: "OVMF.inteltdx.fd"}.get(profile, "OVMF.fd")
    return f"""
[hypervisor.qemu]
path = "{QEMU}"
kernel = "{KATA_DIR}/vmlinuz-nvidia-gpu.container"
image = "{KATA_DIR}/kata-containers-nvidia.img"
firmware = "{KATA_DIR}/{firmware}"
machine_type = "q35"
{tee}enable_annotations = ["cc_init_data"]
kernel_params = "cgroup_no_v1=all agent.aa_kbc_params=cc_kbc::https://kbs.example.com:8443"
shared_fs = "none"
cold_plug_vfio = "root-port"
pcie_root_port = {devices}
default_vcpus = 1
default_memory = 8192
[agent.kata]
dial_timeout = 1320
[runtime]
vfio_mode = "guest-kernel"
create_container_timeout = 1320
sandbox_cgroup_only = true
static_sandbox_resource_mgmt = true
emptydir_mode = "block-encrypted"
kubelet_root_dir = "/var/lib/kubelet"
pod_resource_api_sock = "/var/lib/kubelet/pod-resources/kubelet.sock"
"""


def healthy(*profiles: Profile, gpus: int = 1, switches: int = 0) -> Tree:
    """A host on which every check of these profiles passes."""
    wanted = frozenset({Profile.GPU, *profiles})
    amd = Profile.TDX not in wanted
    tree = Tree(profiles=wanted)
    _kernel(tree, amd=amd)
    addresses = [nvidia(tree, bus, i) for i, bus in enumerate(GPU_BUSES[:gpus])]
    addresses += [
        nvidia(tree, bus, gpus + i, device=0x22A3, class_code=0x068000) for i, bus in enumerate(SWITCH_BUSES[:switches])
    ]
    function(tree, NIC, 99, vendor=0x15B3, device=0x1021, class_code=0x020000, driver="mlx5_core")
    tree.put("/proc/sys/kernel/random/boot_id", f"{BOOT}\n")
    rows = {address: ["nvidia", None] for address in addresses}
    tree.put("/var/lib/kata-gpu/origins.json", json.dumps({"boot_id": BOOT, "rows": rows}))
    tree.put("/var/lib/kata-gpu/last.json", json.dumps({"purpose": "setup", "outcome": "applied", "reason": ""}))
    tree.put("/var/run/cdi/kata-gpu.json", json.dumps(_cdi(addresses)))
    _kubernetes(tree)
    tee = next((p for p in (Profile.SNP, Profile.TDX) if p in wanted), Profile.GPU)
    _kata(tree, tee, devices=len(addresses) if Profile.PPCIE in wanted else 8)
    return tree


def _kernel(tree: Tree, *, amd: bool) -> None:
    options = (
        "VFIO_PCI=m", "VFIO_DEVICE_CDEV=y", "VFIO_GROUP=y", "IOMMUFD=m", "KVM_AMD_SEV=y", "INTEL_TDX_HOST=y",
        "KVM_INTEL_TDX=y", "EROFS_FS=m", "DM_VERITY=m", "OVERLAY_FS=m", "HIBERNATION=y",
    )  # fmt: skip
    log = ["Linux version 6.17.0-5-generic"]
    if amd:
        log += [
            "AMD-Vi: Interrupt remapping enabled",
            "SEV-SNP: RMP table physical range [0x0000000015500000 - 0x000000001dffffff]",
            "ccp 0000:23:00.1: SEV-SNP API:1.55 build:21",
        ]
    else:
        log += [
            "DMAR-IR: Enabled IRQ remapping in x2apic mode",
            "virt/tdx: BIOS enabled: private KeyID range: [64, 128)",
            "virt/tdx: module initialized",
        ]
    flags = "fpu hypervisor_unused svm sev sev_es sev_snp" if amd else "fpu vmx"
    files = {
        "/proc/cpuinfo": f"processor\t: 0\nvendor_id\t: {'AuthenticAMD' if amd else 'GenuineIntel'}\nflags\t\t: {flags}\n",
        "/proc/sys/kernel/osrelease": RELEASE, "/proc/sys/kernel/arch": "x86_64", "/proc/sys/kernel/hostname": "node-1",
        "/proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro nohibernate", "/proc/meminfo": "MemTotal: 527712004 kB\n",
        "/proc/modules": "vfio_pci 16384 0 - Live 0x0\nvfio 1 0 - Live 0x0\n", "/proc/interrupts": " 24: 0 IR-PCI-MSI eth0\n",
        "/proc/iomem": "00000000-00000000 : Reserved\n", "/sys/firmware/acpi/tables/x": "",
        f"/boot/config-{RELEASE}": "".join(f"CONFIG_{o}\n" for o in options),
        "/sys/kernel/security/lockdown": "[none] integrity confidentiality\n", "/sys/power/disk": "[platform] shutdown\n",
        "/sys/class/iommu/ivhd0/devices/x": "", "/sys/fs/cgroup/cgroup.controllers": "cpu misc\n",
        "/sys/fs/cgroup/misc.capacity": "sev 410\nsev_es 99\ntdx 63\n",
        "/sys/fs/cgroup/misc.current": "sev 0\nsev_es 1\ntdx 1\n",
        "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode": "N\n",
        "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts": "N\n",
        "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit": "65535\n",
        "/sys/module/vfio_pci/parameters/disable_idle_d3": "N\n", "/sys/module/iommufd/refcnt": "0\n",
        "/sys/module/erofs/refcnt": "0\n", "/sys/module/dm_verity/refcnt": "0\n",
        "/etc/modules-load.d/kata-gpu.conf": "vfio-pci\niommufd\n",
        "/etc/modprobe.d/nouveau.conf": "blacklist nouveau\noptions nouveau modeset=0\n",
    }  # fmt: skip
    for name, value in {"sev": "Y", "sev_es": "Y", "sev_snp": "Y"}.items() if amd else {}:
        files[f"/sys/module/kvm_amd/parameters/{name}"] = value
    if not amd:
        files |= {
            "/sys/module/kvm_intel/parameters/tdx": "Y",
            "/etc/sgx_default_qcnl.conf": '{"pccs_url": "https://localhost:8081/sgx/certification/v4/"}',
        }
        tree.nodes |= {"/dev/sgx_enclave": "char-device", "/dev/sgx_provision": "char-device",
                       "/var/run/tdx-qgs/qgs.socket": "socket"}  # fmt: skip
        tree.process(700, "qgs")
    for path, text in files.items():
        tree.put(path, text)
    tree.nodes |= {"/dev/kvm": "char-device", "/dev/iommu": "char-device", "/dev/vfio/vfio": "char-device"}
    if amd:
        tree.nodes["/dev/sev"] = "char-device"
    tree.probes.nodes["/dev/kvm"] = True
    tree.probes.commands |= {
        "dmesg": "\n".join(f"[    1.000000] {line}" for line in log) + "\n",
        "timedatectl show -p NTPSynchronized": "NTPSynchronized=yes\n",
        "snphost ok": "[ PASS ] - AMD CPU\n",
        "mkfs.erofs --version": "mkfs.erofs (erofs-utils) 1.8.6\n",
        f"{QEMU} --version": "QEMU emulator version 10.1.0\n",
    }
    tree.probes.peers |= {"kbs.example.com:8443": "", "localhost:8081": ""}


def _cdi(addresses: list[str]) -> dict[str, object]:
    devices = [
        {"name": a, "containerEdits": {"deviceNodes": [{"path": f"/dev/vfio/devices/vfio{i}"}]}}
        for i, a in enumerate(addresses)
    ]
    return {"cdiVersion": "0.5.0", "kind": "nvidia.com/pgpu", "devices": devices}


def _kubernetes(tree: Tree) -> None:
    tree.put(KUBELET_YAML, "kind: KubeletConfiguration\nruntimeRequestTimeout: 25m0s\nfeatureGates:\n"
             "  RuntimeClassInImageCriApi: true\n"
             "containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n")  # fmt: skip
    tree.nodes["/var/lib/kubelet/pod-resources/kubelet.sock"] = "socket"
    tree.put("/etc/kubernetes/kubelet.conf", "apiVersion: v1\n")
    tree.process(800, "kubelet", "/usr/bin/kubelet", f"--config={KUBELET_YAML}")
    tree.process(900, "containerd")
    tree.put("/proc/900/limits", "Limit                     Soft Limit           Hard Limit           Units     \n"
             "Max locked memory         unlimited            unlimited            bytes     \n")  # fmt: skip
    tree.put("/var/log/pods/kube-system_coredns-x_uid/0.log", "")
    tree.probes.commands["kubelet --version"] = "Kubernetes v1.34.2\n"


def _kata(tree: Tree, tee: Profile, *, devices: int) -> None:
    handler = HANDLER[tee]
    config = f"/opt/kata/share/defaults/kata-containers/runtimes/{handler[5:]}/configuration-{handler[5:]}.toml"
    tree.put(config, kata_toml(tee, devices))
    for name in (
        "vmlinuz-nvidia-gpu.container",
        "kata-containers-nvidia.img",
        "AMDSEV.fd",
        "OVMF.inteltdx.fd",
        "OVMF.fd",
    ):
        tree.put(f"{KATA_DIR}/{name}", "x")
    tree.put(QEMU, "x").put("/opt/kata/bin/containerd-shim-kata-v2", "x")
    tree.put("/run/kata/0123456789abcdef/shim.sock", "")
    tree.process(1000, "qemu-system-x86_64", QEMU, "-name", "sandbox-0123456789abcdef,debug-threads=on")
    tree.put("/etc/containerd/config.toml", "version = 3\n")
    tree.put("/etc/containerd/conf.d/kata-deploy.toml", f"""
[proxy_plugins.nydus-for-kata-tee]
type = "snapshot"
address = "/run/nydus-for-kata-tee/containerd-nydus-grpc.sock"
[plugins."io.containerd.cri.v1.images"]
disable_snapshot_annotations = false
[plugins."io.containerd.cri.v1.runtime"]
enable_cdi = true
cdi_spec_dirs = ["/etc/cdi", "/var/run/cdi"]
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{handler}]
runtime_type = "io.containerd.{handler}.v2"
runtime_path = "/opt/kata/bin/containerd-shim-kata-v2"
privileged_without_host_devices = true
pod_annotations = ["io.katacontainers.*"]
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.{handler}.options]
ConfigPath = "{config}"
""")  # fmt: skip
    tree.nodes["/run/nydus-for-kata-tee/containerd-nydus-grpc.sock"] = "socket"
    ready = "true" if tee is not Profile.GPU else "false"
    tree.probes.commands |= {
        "containerd --version": "containerd github.com/containerd/containerd/v2 v2.2.2 abcdef\n",
        "containerd --config /etc/containerd/config.toml config dump": None,
        f"{ASK} runtimeclasses -o json": json.dumps({"items": [{
            "metadata": {"name": handler}, "handler": handler,
            "scheduling": {"nodeSelector": {"nvidia.com/cc.ready.state": ready}}}]}),
        NODE_COMMAND: json.dumps({"labels": {"nvidia.com/cc.ready.state": ready},
                                  "allocatable": {"memory": "520000000Ki"}}),
    }  # fmt: skip
