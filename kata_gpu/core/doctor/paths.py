"""Paths that both the checks and the adapter that gathers facts must agree on."""

KVM = "/dev/kvm"
SEV = "/dev/sev"
IOMMU = "/dev/iommu"
SGX = ("/dev/sgx_enclave", "/dev/sgx_provision")
QGS_SOCKET = "/var/run/tdx-qgs/qgs.socket"
QCNL = "/etc/sgx_default_qcnl.conf"
CDI_RUN = "/var/run/cdi"
CDI_DIRS = ("/etc/cdi", CDI_RUN)
CGROUP_V2 = "/sys/fs/cgroup/cgroup.controllers"
NYDUS_SOCKET = "/run/nydus-for-kata-tee/containerd-nydus-grpc.sock"
KUBELET_ROOT = "/var/lib/kubelet"
POD_RESOURCES = "pod-resources/kubelet.sock"  # below kubelet's root
OTHER_KUBELETS = {
    "k0s": "/var/lib/k0s/kubelet",
    "microk8s": "/var/snap/microk8s/common/var/lib/kubelet",
    "k3s": "/var/lib/rancher/k3s/agent/kubelet",
    "rke2": "/var/lib/rancher/rke2/agent/kubelet",
}
CONTAINERD_CONFIG = "/etc/containerd/config.toml"
CONTAINERD_DROPINS = "/etc/containerd/conf.d"
KATA_DEFAULTS = "/opt/kata/share/defaults/kata-containers"
SANDBOXES = ("/run/vc/sbs", "/run/kata")
VFIO_DEVICES = "/dev/vfio/devices"
VFIO = "/dev/vfio"
MODPROBE = ("/etc/modprobe.d", "/usr/lib/modprobe.d", "/run/modprobe.d")
MODULES_LOAD = ("/etc/modules-load.d", "/usr/lib/modules-load.d", "/run/modules-load.d")
UDEV_RULES = ("/etc/udev/rules.d", "/usr/lib/udev/rules.d", "/run/udev/rules.d")
LIBVIRT = "/etc/libvirt/qemu"
DRIVERCTL = "/etc/driverctl.d"
ORIGINS = "/var/lib/kata-gpu/origins.json"
LAST_CHANGE = "/var/lib/kata-gpu/last.json"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
POD_LOGS = "/var/log/pods"

NODES = (KVM, SEV, IOMMU, *SGX, QGS_SOCKET, CDI_RUN, CGROUP_V2, NYDUS_SOCKET)
LISTINGS = (VFIO, VFIO_DEVICES, DRIVERCTL, *SANDBOXES, CDI_RUN)
TEXT_DIRS = (*MODPROBE, *MODULES_LOAD, *UDEV_RULES, LIBVIRT)
PARAMETERS = (
    "kvm_amd/sev", "kvm_amd/sev_es", "kvm_amd/sev_snp", "kvm_intel/tdx", "vfio/enable_unsafe_noiommu_mode",
    "vfio_iommu_type1/allow_unsafe_interrupts", "vfio_iommu_type1/dma_entry_limit", "vfio_pci/disable_idle_d3",
)  # fmt: skip
MODULES = ("vfio_pci", "vfio_iommu_type1", "iommufd", "nvgrace_gpu_vfio_pci", "erofs", "dm_verity", "nouveau")
