"""Kata configurations of the shapes that 3.25, 4.0 and 4.1 ship, written from the key tables of those releases."""

BASE_GO = """
[hypervisor.qemu]
path = "/opt/kata/bin/qemu-system-x86_64"
valid_hypervisor_paths = ["/opt/kata/bin/qemu-system-x86_64"]
machine_type = "q35"
rootfs_type = "erofs"
enable_annotations = ["enable_iommu", "virtio_fs_extra_args", "kernel_params"{annotations}]
kernel_params = "cgroup_no_v1=all pci=realloc pci=nocrs pci=assign-busses"
seccompsandbox = ""
default_vcpus = 1
default_memory = 8192
shared_fs = "{shared_fs}"
pcie_root_port = {ports}
cold_plug_vfio = "root-port"
{tee}
[factory]
enable_template = false
[agent.kata]
debug_console_enabled = false
dial_timeout = 1200
launch_process_timeout = 15
[runtime]
internetworking_model = "tcfilter"
sandbox_cgroup_only = true
static_sandbox_resource_mgmt = true
vfio_mode = "guest-kernel"
emptydir_mode = "{empty_dir}"
create_container_timeout = 1200
kubelet_root_dir = "/var/lib/kubelet"
pod_resource_api_sock = "{sock}"
"""

BASE_RUST = """
[hypervisor.qemu]
path = "/opt/kata/bin/qemu-system-x86_64"
valid_hypervisor_paths = ["/opt/kata/bin/qemu-system-x86_64"]
machine_type = "q35"
rootfs_type = "erofs"
enable_annotations = ["cc_init_data"]
kernel_params = "cgroup_no_v1=all pci=realloc pci=nocrs pci=assign-busses"
seccomp_sandbox = ""
default_vcpus = 1
overhead_vcpus = 0.5
default_memory = 8192
overhead_memory = 512
shared_fs = "none"
cold_plug_vfio = "root-port"
pcie_root_port = 8
pcie_switch_port = 0
{tee}
[[hypervisor.qemu.guest_extension_images]]
name = "gpu"
path = "/opt/kata/share/kata-containers/kata-containers-nvidia-gpu-extension.img"
verity_params = ""
[agent.kata]
debug_console_enabled = false
launch_process_timeout = 15
dial_timeout_ms = 1000
reconnect_timeout_ms = 1200000
create_container_timeout = 1200
[runtime]
name = "virt_container"
hypervisor_name = "qemu"
agent_name = "kata"
sandbox_cgroup_only = true
static_sandbox_resource_mgmt = true
vfio_mode = "guest-kernel"
emptydir_mode = "block-encrypted"
kubelet_root_dir = "/var/lib/kubelet"
pod_resource_api_sock = "/var/lib/kubelet/pod-resources/kubelet.sock"
"""

_SNP = "confidential_guest = true\nsev_snp_guest = true\nsnp_guest_policy = 196608\n"
_TDX = "confidential_guest = true\ntdx_quote_generation_service_socket_port = 0\n"
_SOCK = "/var/lib/kubelet/pod-resources/kubelet.sock"

TEMPLATES: dict[str, str] = {
    "3.25-go-snp": BASE_GO.format(
        annotations=', "default_vcpus", "default_memory", "cc_init_data"', shared_fs="none", ports=0, tee=_SNP,
        empty_dir="shared-fs", sock=_SOCK,
    ),
    "4.0-go-tdx": BASE_GO.format(
        annotations=', "default_vcpus", "default_memory", "cc_init_data"', shared_fs="none", ports=0, tee=_TDX,
        empty_dir="block-encrypted", sock=_SOCK,
    ),
    "4.1-go-gpu": BASE_GO.format(
        annotations="", shared_fs="virtio-fs", ports=8, tee='hot_plug_vfio = "no-port"\n', empty_dir="block-plain",
        sock=_SOCK,
    ),
    "4.1-go-snp": BASE_GO.format(
        annotations=', "cc_init_data"', shared_fs="none", ports=0, tee=_SNP, empty_dir="block-encrypted", sock=_SOCK,
    ),
    "4.1-rust-snp": BASE_RUST.format(tee=_SNP),
    "4.1-rust-tdx": BASE_RUST.format(tee=_TDX),
}  # fmt: skip
