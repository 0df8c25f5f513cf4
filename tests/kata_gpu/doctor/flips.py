"""One change for every check: from a healthy host to one on which exactly this check does not hold."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from kata_gpu.core.doctor import Profile
from tests.kata_gpu.doctor.tree import (
    ASK,
    GPU,
    HANDLER,
    KUBELET_YAML,
    NIC,
    NODE_COMMAND,
    PORT,
    QEMU,
    RELEASE,
    Tree,
    config_space,
    function,
    healthy,
)  # fmt: skip

SNP, TDX, PPCIE = Profile.SNP, Profile.TDX, Profile.PPCIE
CMDLINE = "/proc/cmdline"
GPU_DIR = f"/sys/devices/pci0000:16/{PORT}/{GPU}"
CONFIG = f"/boot/config-{RELEASE}"
DROPIN = "/etc/containerd/conf.d/kata-deploy.toml"
PARAMETERS = "/sys/module/{}/parameters/{}"
CDI = "/var/run/cdi/kata-gpu.json"


@dataclass(frozen=True)
class Flip:
    """A change and the profile on which it shows."""

    id: str
    name: str
    change: Callable[[Tree], object]
    profile: Profile = SNP

    def tree(self) -> Tree:
        """The healthy host with the change made."""
        tree = healthy(self.profile)
        self.change(tree)
        return tree


def kata_config(profile: Profile = SNP) -> str:
    """Path of the handler's base configuration."""
    shim = HANDLER[profile].removeprefix("kata-")
    return f"/opt/kata/share/defaults/kata-containers/runtimes/{shim}/configuration-{shim}.toml"


def _move(tree: Tree, old: str, new: str) -> None:
    tree.files[new] = tree.files.pop(old)


def _add_option(word: str) -> Callable[[Tree], object]:
    return lambda t: t.edit(CMDLINE, " ro ", f" ro {word} ")


def _old_kernel(tree: Tree) -> None:
    tree.put("/proc/sys/kernel/osrelease", "6.8.0-31-generic")
    _move(tree, CONFIG, "/boot/config-6.8.0-31-generic")


def _vga(tree: Tree) -> None:
    tree.put(f"{GPU_DIR}/class", "0x030000\n")
    tree.put("/proc/iomem", "400000000000-4000003fffff : efifb\n")


def _sibling(tree: Tree) -> None:
    function(tree, "0000:17:00.1", 50, device=0x22BA, class_code=0x040300, driver="snd_hda_intel")


def _second_class_selector(tree: Tree) -> None:
    tree.command(NODE_COMMAND, json.dumps({"labels": {}, "allocatable": {"memory": "520000000Ki"}}))


def _secure_boot(tree: Tree) -> None:
    name = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    tree.put(f"/sys/firmware/efi/efivars/{name}", b"\x06\0\0\0\x01")


def _foreign_kubelet(tree: Tree) -> None:
    """k0s: everything below another root, and Kata was told so."""
    root = "/var/lib/k0s/kubelet"
    for path in [p for p in tree.files if p.startswith("/var/lib/kubelet/")]:
        _move(tree, path, path.replace("/var/lib/kubelet", root))
    tree.nodes[f"{root}/pod-resources/kubelet.sock"] = tree.nodes.pop("/var/lib/kubelet/pod-resources/kubelet.sock")
    tree.edit("/proc/800/cmdline", KUBELET_YAML, f"{root}/config.yaml\0--root-dir={root}")
    tree.edit(kata_config(), '"/var/lib/kubelet/pod-resources', f'"{root}/pod-resources')


def _duplicate_cdi(tree: Tree) -> None:
    tree.put("/etc/cdi/other.json", tree.files[CDI])


def _guest_low_bar(tree: Tree) -> None:
    lines = tree.files[f"{GPU_DIR}/resource"].decode().splitlines()
    lines[2] = "0x0000000080000000 0x000000008fffffff 0x000000000014220c"
    tree.put(f"{GPU_DIR}/resource", "\n".join(lines) + "\n")


def _acs_off(tree: Tree) -> None:
    tree.put(f"/sys/devices/pci0000:16/{PORT}/config", config_space(port=True, acs=0x01))


def _narrow_group(tree: Tree) -> None:
    tree.links[f"/sys/devices/pci0000:17/0000:17:01.0/{NIC}/iommu_group"] = "../../../../kernel/iommu_groups/9"
    tree.put("/sys/kernel/iommu_groups/9/devices/.keep", "")
    tree.links[f"/sys/kernel/iommu_groups/9/devices/{NIC}"] = f"../../../../devices/pci0000:17/0000:17:01.0/{NIC}"


FLIPS = (
    Flip("PLT-01", "no-svm", lambda t: t.edit("/proc/cpuinfo", " svm", "")),
    Flip("PLT-01", "no-kvm-node", lambda t: t.drop("/dev/kvm")),
    Flip("PLT-01", "kvm-does-not-open", lambda t: t.probes.nodes.update({"/dev/kvm": False})),
    Flip("PLT-02", "virtual-machine", lambda t: t.edit("/proc/cpuinfo", "hypervisor_unused", "hypervisor")),
    Flip("PLT-03", "aarch64", lambda t: t.put("/proc/sys/kernel/arch", "aarch64")),
    Flip("PLT-04", "old-kernel", _old_kernel),
    Flip("PLT-05", "no-iommufd", lambda t: t.edit(CONFIG, "CONFIG_IOMMUFD=m", "# CONFIG_IOMMUFD is not set")),
    Flip("PLT-05", "no-tdx-host", lambda t: t.edit(CONFIG, "CONFIG_INTEL_TDX_HOST=y\n", ""), TDX),
    Flip("PLT-06", "integrity", lambda t: t.put("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n")),
    Flip("PLT-07", "secure-boot", _secure_boot),
    Flip("PLT-08", "not-synchronised",
         lambda t: t.command("timedatectl show -p NTPSynchronized", "NTPSynchronized=no\n")),
    Flip("PLT-09", "bar-below-4g", _guest_low_bar),
    Flip("PLT-10", "invalid-knob", lambda t: t.put("/var/lib/kata-gpu/last.json", '{"reason": "FSP error 0x1e3"}')),
    Flip("SNP-01", "sev-es-off", lambda t: t.put(PARAMETERS.format("kvm_amd", "sev_es"), "N")),
    Flip("SNP-01", "sev-snp-off", lambda t: t.put(PARAMETERS.format("kvm_amd", "sev_snp"), "N")),
    Flip("SNP-02", "iommu-pt", _add_option("iommu=pt")),
    Flip("SNP-02", "passthrough-1", _add_option("iommu.passthrough=1")),
    Flip("SNP-02", "kernel-default", lambda t: t.edit(CONFIG, "CONFIG_VFIO_GROUP=y",
                                                      "CONFIG_VFIO_GROUP=y\nCONFIG_IOMMU_DEFAULT_PASSTHROUGH=y")),
    Flip("SNP-02", "identity-groups", lambda t: [t.put(f"/sys/kernel/iommu_groups/{g}/type", "identity\n")
                                                 for g in (9, 99)]),
    Flip("SNP-03", "pgtbl-v2", _add_option("amd_iommu=pgtbl_v2")),
    Flip("SNP-04", "rmp-not-reserved", lambda t: t.log("SEV-SNP: RMP table physical range",
                                                       "SEV-SNP: Memory for the RMP table has not been reserved by BIOS")),
    Flip("SNP-05", "no-dev-sev", lambda t: t.drop("/dev/sev")),
    Flip("SNP-05", "init-failed", lambda t: t.log("SEV-SNP API:1.55 build:21",
                                                  "SEV-SNP: failed to INIT rc -5, error 0x3")),
    Flip("SNP-06", "none-free", lambda t: t.put("/sys/fs/cgroup/misc.current", "sev 0\nsev_es 99\n")),
    Flip("SNP-07", "amd-iommu-on", _add_option("amd_iommu=on")),
    Flip("SNP-08", "snphost-fails", lambda t: t.command("snphost ok", "[ PASS ] - AMD CPU\n[ FAIL ] - SME\n")),
    Flip("SNP-09", "qemu-9.1", lambda t: t.command(f"{QEMU} --version", "QEMU emulator version 9.1.2\n")),
    Flip("TDX-01", "tdx-off", lambda t: t.put(PARAMETERS.format("kvm_intel", "tdx"), "N"), TDX),
    Flip("TDX-02", "bios-disabled", lambda t: t.log("BIOS enabled: private KeyID range", "BIOS disabled"), TDX),
    Flip("TDX-03", "module-fails", lambda t: t.log("virt/tdx: module initialized", "kvm_intel: tdx: failed -19"), TDX),
    Flip("TDX-04", "hibernation", lambda t: t.edit(CMDLINE, " nohibernate", ""), TDX),
    Flip("TDX-05", "no-socket", lambda t: t.drop("/var/run/tdx-qgs/qgs.socket"), TDX),
    Flip("TDX-05", "no-qgsd", lambda t: t.drop("/proc/700"), TDX),
    Flip("TDX-06", "unreachable", lambda t: t.probes.peers.update({"localhost:8081": "Connection refused"}), TDX),
    Flip("TDX-06", "no-url", lambda t: t.put("/etc/sgx_default_qcnl.conf", "{}"), TDX),
    Flip("TDX-07", "no-provision", lambda t: t.drop("/dev/sgx_provision"), TDX),
    Flip("TDX-08", "none-free", lambda t: t.put("/sys/fs/cgroup/misc.current", "tdx 63\n"), TDX),
    Flip("TDX-09", "64-vcpus", lambda t: t.edit(kata_config(TDX), "default_vcpus = 1", "default_vcpus = 64"), TDX),
    Flip("IOM-01", "no-iommu", lambda t: t.drop("/sys/class/iommu")),
    Flip("IOM-01", "no-group", lambda t: t.drop(f"{GPU_DIR}/iommu_group")),
    Flip("IOM-02", "intremap-off", _add_option("intremap=off")),
    Flip("IOM-02", "no-ir-chip", lambda t: (t.put("/proc/interrupts", " 24: 0 PCI-MSI eth0\n"),
                                            t.log("Interrupt remapping enabled", "nothing"))),
    Flip("IOM-03", "unsafe-noiommu", lambda t: t.put(PARAMETERS.format("vfio", "enable_unsafe_noiommu_mode"), "Y\n")),
    Flip("IOM-03", "noiommu-node", lambda t: t.nodes.update({"/dev/vfio/noiommu-0": "char-device"})),
    Flip("IOM-04", "unsafe-interrupts",
         lambda t: t.put(PARAMETERS.format("vfio_iommu_type1", "allow_unsafe_interrupts"), "Y\n")),
    Flip("IOM-05", "no-type1", lambda t: t.drop("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts").drop(
        "/sys/module/vfio_iommu_type1")),
    Flip("IOM-05", "no-vfio-pci", lambda t: t.drop("/sys/bus/pci/drivers/vfio-pci")),
    Flip("IOM-06", "not-at-boot", lambda t: t.put("/etc/modules-load.d/kata-gpu.conf", "# vfio-pci\n")),
    Flip("IOM-07", "no-dev-iommu", lambda t: t.drop("/dev/iommu")),
    Flip("IOM-07", "no-cdev-node", lambda t: t.drop("/dev/vfio/devices/vfio0")),
    Flip("IOM-08", "nic-in-group", _narrow_group),
    Flip("IOM-09", "no-request-redirect", _acs_off),
    Flip("IOM-10", "override", _add_option("pcie_acs_override=downstream")),
    Flip("IOM-11", "no-address", lambda t: t.edit(f"{GPU_DIR}/resource", "0x0000402000000000 0x0000402000ffffff",
                                                  "0x0000000000000000 0x0000000000ffffff")),
    Flip("IOM-12", "narrow", lambda t: t.put(f"{GPU_DIR}/current_link_width", "8\n")),
    Flip("IOM-12", "slow-while-awake", lambda t: t.put(f"{GPU_DIR}/power_state", "D0\n").put(
        f"{GPU_DIR}/current_link_speed", "16.0 GT/s PCIe\n")),
    Flip("IOM-13", "d3cold", lambda t: t.put(f"{GPU_DIR}/power_state", "D3cold\n")),
    Flip("IOM-13", "slot-cuts-power",
         lambda t: t.put(f"/sys/devices/pci0000:16/{PORT}/firmware_node/power_resources_D3hot/x", "")),
    Flip("IOM-14", "fell-off", lambda t: t.put(f"{GPU_DIR}/config", b"\xff" * 64)),
    Flip("IOM-15", "bus-only", lambda t: t.put(f"{GPU_DIR}/reset_method", "bus\n")),
    Flip("IOM-16", "64k", lambda t: t.edit("/proc/900/limits", "unlimited            unlimited", "65536 65536")),
    Flip("IOM-17", "few", lambda t: t.put(PARAMETERS.format("vfio_iommu_type1", "dma_entry_limit"), "1024\n")),
    Flip("IOM-18", "modprobe", lambda t: t.put("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:2330\n")),
    Flip("IOM-18", "command-line", _add_option("vfio-pci.ids=10de:2330")),
    Flip("DRV-01", "nvidia-loaded", lambda t: t.edit("/proc/modules", "vfio_pci", "nvidia 1 0 - Live 0x0\nvfio_pci")),
    Flip("DRV-02", "loaded", lambda t: t.edit("/proc/modules", "vfio_pci", "nouveau 1 0 - Live 0x0\nvfio_pci")),
    Flip("DRV-02", "not-blacklisted", lambda t: t.drop("/etc/modprobe.d/nouveau.conf")),
    Flip("DRV-03", "persistenced", lambda t: t.process(1200, "nvidia-persistenced")),
    Flip("DRV-03", "open-node", lambda t: (t.process(1201, "python3"), t.nodes.update({"/dev/nvidia0": "char-device"}),
                                           t.links.update({"/proc/1201/fd/7": "/dev/nvidia0"}))),
    Flip("DRV-04", "efifb", _vga),
    Flip("DRV-05", "driverctl", lambda t: t.put(f"/etc/driverctl.d/pci-{GPU}", "vfio-pci")),
    Flip("DRV-05", "libvirt", lambda t: t.put("/etc/libvirt/qemu/vm.xml",
                                              "<hostdev mode='subsystem' type='pci' managed='yes'>")),
    Flip("DRV-05", "udev", lambda t: t.put("/etc/udev/rules.d/70-gpu.rules",
                                           'ATTR{vendor}=="0x10de", ATTR{driver_override}="vfio-pci"\n')),
    Flip("DRV-05", "pod", lambda t: t.put("/var/log/pods/gpu-operator_nvidia-vfio-manager-abcde_uid/0.log", "")),
    Flip("DRV-05", "process", lambda t: t.process(1300, "vfio-manage")),
    Flip("DRV-06", "not-ours", lambda t: t.put("/var/lib/kata-gpu/origins.json", "{}")),
    Flip("DRV-06", "of-another-boot", lambda t: t.put("/proc/sys/kernel/random/boot_id", "another\n")),
    Flip("DRV-07", "audio", _sibling),
    Flip("K8S-01", "1.31", lambda t: t.command("kubelet --version", "Kubernetes v1.31.9\n").edit(
        KUBELET_YAML, "featureGates:", "featureGates:\n  KubeletPodResourcesGet: true")),
    Flip("K8S-02", "off", lambda t: t.edit(KUBELET_YAML, "featureGates:", "featureGates:\n  KubeletPodResourcesGet: false")),
    Flip("K8S-02", "not-set-on-1.33", lambda t: t.command("kubelet --version", "Kubernetes v1.33.1\n")),
    Flip("K8S-02", "off-by-flag", lambda t: t.edit("/proc/800/cmdline", "--config",
                                                   "--feature-gates=KubeletPodResourcesGet=false\0--config")),
    Flip("K8S-03", "not-set", lambda t: t.edit(KUBELET_YAML, "RuntimeClassInImageCriApi: true", "Other: true")),
    Flip("K8S-04", "no-socket", lambda t: t.drop("/var/lib/kubelet/pod-resources/kubelet.sock")),
    Flip("K8S-05", "default", lambda t: t.edit(KUBELET_YAML, "runtimeRequestTimeout: 25m0s\n", "")),
    Flip("K8S-05", "short", lambda t: t.edit(KUBELET_YAML, "25m0s", "19m59s")),
    Flip("K8S-06", "k0s", _foreign_kubelet),
    Flip("K8S-07", "small", lambda t: t.edit("/proc/meminfo", "527712004", "8000000").command(NODE_COMMAND, None)),
    Flip("K8S-07", "allocatable", lambda t: t.command(
        NODE_COMMAND, (t.probes.commands[NODE_COMMAND] or "").replace("520000000Ki", "8Gi"))),
    Flip("K8S-08", "cgroup-v1", lambda t: t.drop("/sys/fs/cgroup/cgroup.controllers")),
    Flip("CRI-01", "2.1", lambda t: (t.put("/etc/containerd/config.toml", f'version = 3\nimports = ["{DROPIN}"]\n'),
                                     t.command("containerd --version", "containerd github.com/x v2.1.4 abc\n"))),
    Flip("CRI-02", "no-handler", lambda t: t.edit(DROPIN, "runtimes.kata-qemu-nvidia-gpu-snp", "runtimes.kata-other")),
    Flip("CRI-02", "no-shim", lambda t: t.drop("/opt/kata/bin/containerd-shim-kata-v2")),
    Flip("CRI-03", "no-annotations", lambda t: t.edit(DROPIN, '["io.katacontainers.*"]', "[]")),
    Flip("CRI-03", "host-devices", lambda t: t.edit(DROPIN, "host_devices = true", "host_devices = false")),
    Flip("CRI-04", "no-directory", lambda t: t.drop("/var/run/cdi")),
    Flip("CRI-04", "disabled", lambda t: t.edit(DROPIN, "enable_cdi = true", "enable_cdi = false")),
    Flip("CRI-04", "not-listed", lambda t: t.edit(DROPIN, '"/etc/cdi", "/var/run/cdi"', '"/etc/cdi"')),
    Flip("CRI-05", "imports-elsewhere",
         lambda t: t.put("/etc/containerd/config.toml", 'version = 3\nimports = ["/etc/containerd/other/*.toml"]\n')),
    Flip("CRI-06", "no-socket", lambda t: t.drop("/run/nydus-for-kata-tee")),
    Flip("CRI-06", "annotations-disabled", lambda t: t.edit(DROPIN, "snapshot_annotations = false",
                                                            "snapshot_annotations = true")),
    Flip("CRI-07", "old", lambda t: t.command("mkfs.erofs --version", "mkfs.erofs (erofs-utils) 1.7.1\n")),
    Flip("CRI-07", "absent", lambda t: t.command("mkfs.erofs --version", "")),
    Flip("CRI-08", "crio", lambda t: t.edit(KUBELET_YAML, "containerd/containerd.sock", "crio/crio.sock")),
    Flip("KAT-01", "empty-kernel", lambda t: t.put("/opt/kata/share/kata-containers/vmlinuz-nvidia-gpu.container", "")),
    Flip("KAT-01", "no-firmware", lambda t: t.drop("/opt/kata/share/kata-containers/AMDSEV.fd")),
    Flip("KAT-02", "debug-policy", lambda t: t.edit(kata_config(), "196608", "720896")),
    Flip("KAT-02", "drop-in", lambda t: t.put(f"{kata_config().rpartition('/')[0]}/config.d/50-user.toml",
                                              '[hypervisor.qemu]\nshared_fs = "virtio-fs"\n')),
    Flip("KAT-03", "no-class", lambda t: t.command(f"{ASK} runtimeclasses -o json", '{"items": []}')),
    Flip("KAT-03", "selector", _second_class_selector),
    Flip("KAT-04", "orphan", lambda t: t.drop("/run/kata/0123456789abcdef")),
    Flip("KAT-05", "stale", lambda t: t.edit(CDI, "devices/vfio0", "devices/vfio7")),
    Flip("KAT-05", "duplicate", _duplicate_cdi),
    Flip("KAT-05", "not-json", lambda t: t.put("/etc/cdi/broken.json", "{")),
    Flip("NET-01", "refused", lambda t: t.probes.peers.update({"kbs.example.com:8443": "Connection refused"})),
)  # fmt: skip
