"""Log lines as they appear in the field, and lines that look alike and mean something else, by cause."""

LINES: dict[str, tuple[str, str]] = {
    # cause: (a line that has it, a near miss that must not be given this cause)
    "iommufd-no-p2p": (
        "qemu-system-x86_64: warning: IOMMU_IOAS_MAP failed: Bad address, PCI BAR?",
        "qemu-system-x86_64: IOMMU_IOAS_MAP failed: Cannot allocate memory",
    ),
    "noiommu-peer-map": (
        "qemu-system-x86_64: PCI peer-to-peer transactions on BARs are not supported.",
        "PCI peer-to-peer transactions work between these devices",
    ),
    "amd-iommu-on": ("[    0.91] AMD-Vi: Unknown option - 'on'", "[    0.91] AMD-Vi: Unknown option - 'fullflush2'"),
    "vfio-reset-done": (
        "[  812.1] vfio-pci 0000:17:00.0: reset done",
        "[  812.1] vfio-pci 0000:17:00.0: reset failed, device inaccessible",
    ),
    "vfio-vga-arb": (
        "[   9.1] vfio-pci 0000:41:00.0: vgaarb: VGA decodes changed: olddecodes=io+mem",
        "[   9.1] pci 0000:41:00.0: vgaarb: setting as boot VGA device",
    ),
    "no-interrupt-remapping": (
        "vfio_iommu_type1_attach_group: No interrupt remapping support.  Use the module param allow_unsafe_interrupts",
        "DMAR-IR: Enabled IRQ remapping in x2apic mode; No interrupt remapping fault seen",
    ),
    "vfio-probe-22": (
        "vfio-pci 0000:17:00.0: probe with driver vfio-pci failed with error -22",
        "nvme 0000:17:00.0: probe with driver nvme failed with error -22",
    ),
    "group-not-viable": (
        "vfio 0000:17:00.0: group 42 is not viable. Please ensure all devices within the iommu_group are bound to vfio",
        "plan is not viable for group forty-two",
    ),
    "vfio-group-busy": (
        "vfio 0000:17:00.0: failed to open /dev/vfio/42: Device or resource busy",
        "vfio 0000:17:00.0: failed to open /dev/vfio/42: No such file or directory",
    ),
    "iommufd-bind-ioctl": (
        'level=error msg="VFIO_DEVICE_BIND_IOMMUFD: Invalid argument"',
        'level=error msg="VFIO_DEVICE_BIND_IOMMUFD: Operation not permitted"',
    ),
    "iommufd-bind-einval": (
        "qemu: -device vfio-pci: vfio 0000:17:00.0: error bind device fd=33 to iommufd=32: Invalid argument",
        "qemu: -device vfio-pci: vfio 0000:17:00.0: error bind device fd=33 to iommufd=32: Permission denied",
    ),
    "device-already-attached": (
        "qemu-system-x86_64: -device vfio-pci: vfio 0000:17:00.0: device is already attached",
        "disk device is already attached to the guest",
    ),
    "bar-reserve": (
        "[    4.2] vfio-pci 0000:41:00.0: BAR 1: can't reserve [mem 0x38000000000-0x3bfffffffff 64bit pref]",
        "quota: can't reserve blocks on /dev/sda1",
    ),
    "bar-no-space": (
        "pci 0000:17:00.0: BAR 2 [mem size 0x2000000000 64bit pref]: can't assign; no space",
        "pci 0000:17:00.0: BAR 2 [mem 0x40000000000-0x41fffffffff 64bit pref]: assigned",
    ),
    "d3cold-inaccessible": (
        "vfio-pci 0000:17:00.0: Unable to change power state from D3cold to D0, device inaccessible",
        "vfio-pci 0000:17:00.0: power state changed from D3cold to D0",
    ),
    "unbind-blocked": (
        "vfio-pci 0000:17:00.0: No device request channel registered, blocked until released by user",
        "task sync:123 blocked until timer fires",
    ),
    "unbind-relayed": (
        "vfio-pci 0000:17:00.0: Relaying device request to user (#0)",
        "Relaying request to user service",
    ),
    "nvrm-usage-count": (
        "NVRM: Attempting to remove device 0000:17:00.0 with non-zero usage count!",
        "module nvidia unloaded with non-zero usage count of helper",
    ),
    "lockdown-pci": (
        "Lockdown: python3: direct PCI access is restricted; see man kernel_lockdown.7",
        "Lockdown: systemd-logind: hibernation is restricted; see man kernel_lockdown.7",
    ),
    "memlock": (
        "vfio_pin_pages_remote: RLIMIT_MEMLOCK (65536) exceeded",
        "RLIMIT_MEMLOCK set to unlimited",
    ),
    "snp-iommu-passthrough": (
        "AMD-Vi: SNP: IOMMU disabled or configured in passthrough mode, SNP cannot be supported.",
        "AMD-Vi: SNP: IOMMU not initialised, SNP cannot be supported on this board",
    ),
    "snp-iommu-v2": (
        "AMD-Vi: SNP: IOMMU is configured with V2 page table mode, SNP cannot be supported.",
        "AMD-Vi: V2 page table enabled (Paging mode : 5 level)",
    ),
    "snp-rmp-missing": (
        "SEV-SNP: Memory for the RMP table has not been reserved by BIOS",
        "SEV-SNP: RMP table physical range [0x0000000015500000 - 0x000000001dffffff]",
    ),
    "sev-init-failed": (
        "ccp 0000:23:00.1: SEV-SNP: failed to INIT rc -5, error 0x3",
        "ccp 0000:23:00.1: SEV-SNP API:1.55 build:21",
    ),
    "qemu-snp-unsupported": (
        "qemu-system-x86_64: -object sev-snp-guest,id=snp: parameter unsupported: sev-snp-guest is not a valid object type",
        "qemu-system-x86_64: -object sev-snp-guest,id=snp,policy=0x30000",
    ),
    "qemu-discard-ram": (
        "qemu-system-x86_64: -device vfio-pci,host=17:00.0: Cannot set discarding of RAM broken",
        "balloon: discarding of RAM is off",
    ),
    "snp-launch-start": (
        "qemu-system-x86_64: sev_snp_launch_start: SNP_LAUNCH_START ret=-5 fw_error=22 'failed'",
        "sev: SNP_LAUNCH_START ok",
    ),
    "qemu-tdx-unsupported": (
        "qemu-system-x86_64: vm-type tdx not supported by KVM",
        "qemu-system-x86_64: vm-type tdx selected",
    ),
    "tdx-bios-disabled": (
        "virt/tdx: BIOS not enabled, TDX cannot be used",
        "virt/tdx: BIOS enabled: private KeyID range: [64, 128)",
    ),
    "tdx-hibernation": (
        "virt/tdx: initialization failed: Hibernation support is enabled",
        "PM: Hibernation support is enabled in this build",
    ),
    "tdx-init-vm": (
        "qemu-system-x86_64: KVM_TDX_INIT_VM failed: No space left on device",
        "kvm: KVM_TDX_INIT_VM done",
    ),
    "kvm-no-access": (
        "Could not access KVM kernel module: No such file or directory",
        "Could not access KVMGT mediated device",
    ),
    "root-port-missing": (
        "qemu-system-x86_64: -device vfio-pci,host=0000:17:00.0,bus=rp4: Bus 'rp4' not found",
        "qemu-system-x86_64: -device virtio-blk-pci: Bus 'pci.9' not found",
    ),
    "podresources-get-disabled": (
        "rpc error: device cold plug failed: PodResources API Get method disabled",
        "PodResources API Get method enabled",
    ),
    "cold-plug-failed": (
        'failed to create shim task: device cold plug failed: dial unix: no such file or directory"',
        "coffee machine cold plug, failed again",
    ),
    "cdi-unresolvable": (
        "CDI device injection failed: unresolvable CDI devices nvidia.com/pgpu=vfio1",
        "resolved CDI devices nvidia.com/pgpu=vfio1",
    ),
    "handler-missing": (
        'Failed to create pod sandbox: no runtime for "kata-qemu-nvidia-gpu-snp" is configured',
        'no runtime for "runsc" is configured',
    ),
    "node-selector": (
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
        "0/3 nodes are available: 3 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }",
    ),
    "insufficient-esids": (
        "0/2 nodes are available: 2 Insufficient sev-snp.amd.com/esids.",
        "0/2 nodes are available: 2 Insufficient cpu.",
    ),
    "sandbox-deadline": (
        "RunPodSandbox from runtime service failed: rpc error: code = DeadlineExceeded desc = context deadline exceeded",
        "etcd: rpc error: code = DeadlineExceeded desc = context deadline exceeded",
    ),
    "agent-dial-timeout": (
        "failed to create shim task: timed out connecting to vsock 3:1024",
        "timed out connecting to registry mirror",
    ),
    "nvrc-panic": ("[    3.1] nvrc[1]: panicked at src/main.rs:41: unsupported topology", "nvrc: mode=gpu"),
    "nvrm-init-adapter": (
        "NVRM: GPU 0000:01:00.0: RmInitAdapter failed! (0x62:0x55:2568)",
        "NVRM: GPU 0000:01:00.0: RmInitAdapter succeeded",
    ),
    "nvrm-fallen-off": (
        "NVRM: Xid (PCI:0000:17:00): 79, GPU has fallen off the bus.",
        "the passenger has fallen off the bus",
    ),
    "cuda-802": (
        "CUDA initialization failure with error: 802. Expect bad performance",
        "CUDA initialization took 802 ms without error",
    ),
    "cuda-not-ready": (
        "RuntimeError: CUDA error: system not yet initialized",
        "filesystem not yet initialized, waiting for the operating system",
    ),
    "persistenced-timeout": (
        "nvidia-persistenced: timed out waiting for Local RPC services initialized",
        "nvidia-persistenced: Local RPC services initialized",
    ),
    "fsp-invalid-knob": (
        "gpu.prc.FspRpcError: GPU 0000:17:00.0 RPC failed with status 0x1e3",
        "gpu.prc.FspRpcError: GPU 0000:17:00.0 RPC failed with status 0x36",
    ),
    "quote-timeout": (
        "attester: tdx: quote generation: GetQuote timed out after 30 s",
        "attester: tdx: quote of 4935 bytes generated",
    ),
    "annotation-refused": (
        "annotation io.katacontainers.config.hypervisor.kernel_params is not enabled",
        "annotation example.com/debug is not enabled",
    ),
    "kbs-unreachable": (
        "CDH: error sending request for url (https://kbs.example.com:8443/kbs/v0/auth): operation timed out",
        "error sending request for url (https://registry.example.com/v2/)",
    ),
    "token-not-yet-valid": (
        "kbs: attestation token is not yet valid (nbf 1763683200)",
        "the configuration is not yet valid, waiting",
    ),
    "fm-no-switch": (
        "nv-fabricmanager: failed to initialize: no NVSwitch devices found",
        "fabric manager started, 4 NVSwitch devices",
    ),
    "image-pull-host": (
        "failed to dial nydus-for-kata-tee/containerd-nydus-grpc.sock: connection refused",
        "nydus snapshotter is ready",
    ),
    "guest-memory-oom": (
        "Memory cgroup out of memory: Killed process 4711 (qemu-system-x86) total-vm:18874368kB",
        "Memory cgroup out of memory: Killed process 4711 (python3) total-vm:18874368kB",
    ),
    "nouveau-grabbed": (
        "nouveau 0000:17:00.0: NVIDIA GH100 (180000a1)",
        "systemd: file nouveau.conf in modprobe.d read",
    ),
}

QUIET = (
    "",
    "Nov 21 00:00:00 node-1 systemd[1]: Started Session 42 of user root.",
    "Nov 21 00:00:00 node-1 kubelet[800]: I1121 SyncLoop (PLEG): event for pod",
    "pci 0000:17:00.0: [10de:2330] type 00 class 0x030200 PCIe Endpoint",
    "vfio-pci 0000:17:00.0: enabling device (0000 -> 0002)",
    "iommu: Default domain type: Translated",
    'containerd[900]: time="2026-11-21T00:00:00Z" level=info msg="RunPodSandbox for name:web returns sandbox id"',
    "kvm_amd: SEV-SNP enabled (ASIDs 1 - 99)",
    "NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  580.95.05",
    "group 42 of users was removed, quota 802",
)  # fmt: skip
