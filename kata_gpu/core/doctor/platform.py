"""PLT: processor, firmware and kernel (node.md 1.1)."""

import re

from kata_gpu.core.doctor.check import Outcome, Profile, Profiles, Section, Severity, bad, ok, unknown, verdict
from kata_gpu.core.doctor.facts import HostFacts
from kata_gpu.core.doctor.paths import KVM
from kata_gpu.core.filekind import FileKind

PLATFORM = Section("Platform and firmware")
check = PLATFORM.check

_MAINLINE = {Profile.SNP: (6, 11), Profile.TDX: (6, 16)}  # first releases with the host side
_VALIDATED = (6, 17)  # what NVIDIA validates for confidential containers (release 1.1.0)
_CONFIG = {
    Profile.GPU: ("VFIO_PCI", "VFIO_DEVICE_CDEV", "VFIO_GROUP", "IOMMUFD", "EROFS_FS", "DM_VERITY", "OVERLAY_FS"),
    Profile.SNP: ("KVM_AMD_SEV",),
    Profile.TDX: ("INTEL_TDX_HOST", "KVM_INTEL_TDX"),
    Profile.PPCIE: (),
}
_ABOVE_4G = 1 << 32
_INVALID_KNOB = "0x1e3"  # FSP: this firmware does not know the setting


@check(
    "PLT-01", "hardware virtualisation", Severity.FATAL,
    expected="vmx or svm in /proc/cpuinfo, and a /dev/kvm that opens read-write",
    symptom='QEMU: "Could not access KVM kernel module"; the pod stays in CreateContainerError',
    fix="enable SVM (AMD) or VT-x (Intel) in the BIOS, then `modprobe kvm_amd` or `modprobe kvm_intel`",
)  # fmt: skip
def _virtualisation(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.cpu.flags:
        return unknown("/proc/cpuinfo shows no flags")
    if f.cpu.arch == "x86_64" and not f.cpu.flags & {"vmx", "svm"}:
        return bad("neither vmx nor svm among the CPU flags")
    if f.nodes.get(KVM) is not FileKind.CHAR_DEVICE:
        return bad(f"{KVM} is not a character device")
    if f.usable.get(KVM) is False:
        return bad(f"{KVM} does not open read-write")
    return ok(f"{'svm' if 'svm' in f.cpu.flags else 'vmx' if 'vmx' in f.cpu.flags else f.cpu.arch}, {KVM}")


@check(
    "PLT-02", "bare metal", Severity.FATAL,
    expected="no `hypervisor` flag in /proc/cpuinfo",
    symptom="nested virtualisation is not supported for confidential GPUs; the failure comes late, at VM start",
    fix="run on bare metal: `systemd-detect-virt` must print none",
)  # fmt: skip
def _bare_metal(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.cpu.flags:
        return unknown("/proc/cpuinfo shows no flags")
    return bad("this host is itself a virtual machine") if "hypervisor" in f.cpu.flags else ok("bare metal")


@check(
    "PLT-03", "architecture", Severity.FATAL,
    expected="x86_64 for snp, tdx and ppcie; x86_64 or aarch64 for plain GPU",
    symptom="the RuntimeClass for this node does not exist",
    fix="use `kata-gpu doctor --profile gpu` on aarch64 (GH200, GB200): only the plain GPU handler exists there",
)  # fmt: skip
def _arch(f: HostFacts, p: Profiles) -> Outcome:
    if not f.cpu.arch:
        return unknown("architecture not found in /proc/sys/kernel/arch or /proc/cpuinfo")
    allowed = {"x86_64"} if p - {Profile.GPU} else {"x86_64", "aarch64"}
    return ok(f.cpu.arch) if f.cpu.arch in allowed else bad(f.cpu.arch)


@check(
    "PLT-04", "kernel version", Severity.FATAL,
    expected="at least 6.11 for snp and 6.16 for tdx; NVIDIA validates 6.17 and newer",
    symptom="/sys/module/kvm_amd/parameters/sev_snp or kvm_intel/parameters/tdx does not exist",
    fix="install Ubuntu 25.10 or 26.04, or a kernel from 6.17 on, and check `uname -r` after the reboot",
    reboot=True,
)  # fmt: skip
def _version(f: HostFacts, p: Profiles) -> Outcome:
    match = re.match(r"(\d{1,4})\.(\d{1,4})", f.kernel.release)
    if match is None:
        return unknown(f"kernel release {f.kernel.release!r}")
    have = (int(match[1]), int(match[2]))
    for profile in sorted(p & set(_MAINLINE)):
        if have < _MAINLINE[profile]:
            return bad(f"{f.kernel.release} has no {profile} host support")
    return ok(f.kernel.release + ("" if have >= _VALIDATED else " (older than what NVIDIA validates)"))


@check(
    "PLT-05", "kernel configuration", Severity.FATAL,
    expected="VFIO_PCI, VFIO_DEVICE_CDEV, VFIO_GROUP, IOMMUFD, EROFS_FS, DM_VERITY, OVERLAY_FS, and KVM_AMD_SEV for "
    "snp, INTEL_TDX_HOST and KVM_INTEL_TDX for tdx, in /boot/config-$(uname -r) or /proc/config.gz",
    symptom="no /dev/iommu, so Kata silently falls back to the group path; stock Debian kernels are like this",
    fix="boot a kernel with these options (Ubuntu 25.10 and 26.04 have them): "
    "`grep -E 'IOMMUFD|VFIO_DEVICE_CDEV|TDX' /boot/config-$(uname -r)`",
    reboot=True,
)  # fmt: skip
def _config(f: HostFacts, p: Profiles) -> Outcome:
    config = f.kernel.config
    if config is None:
        return unknown("neither /boot/config nor /proc/config.gz is readable")
    wanted = [*_CONFIG[Profile.GPU], *(o for profile in sorted(p - {Profile.GPU}) for o in _CONFIG[profile])]
    return verdict((f"CONFIG_{o} is not set" for o in wanted if config.get(o) not in {"y", "m"}), "all options are set")


@check(
    "PLT-06", "kernel lockdown", Severity.WARNING,
    expected="[none] in /sys/kernel/security/lockdown",
    symptom='EPERM on config writes and BAR mappings; kernel log: "Lockdown: ... direct PCI access is restricted"',
    fix="use the default backend, which works under lockdown: `kata-gpu node setup` without --admin-tools",
)  # fmt: skip
def _lockdown(f: HostFacts, _p: Profiles) -> Outcome:
    state = f.kernel.lockdown
    if state is None:
        return unknown("/sys/kernel/security/lockdown is not readable")
    return ok("none") if state == "none" else bad(f"{state}: the gpu-admin-tools backend cannot work")


@check(
    "PLT-07", "Secure Boot", Severity.WARNING,
    expected="off, or our own backend: on most distributions Secure Boot implies lockdown",
    symptom="as PLT-06, and unsigned out-of-tree modules are refused",
    fix="keep it on and use `kata-gpu node setup` without --admin-tools; `mokutil --sb-state` shows the state",
)  # fmt: skip
def _secure_boot(f: HostFacts, _p: Profiles) -> Outcome:
    if f.kernel.secure_boot is None:
        return unknown("the SecureBoot variable is not readable")
    return bad("enabled") if f.kernel.secure_boot else ok("disabled")


@check(
    "PLT-08", "time synchronisation", Severity.WARNING,
    expected="the clock is synchronised (systemd-timesyncd or chrony)",
    symptom='attestation tokens are "not yet valid" and TLS to the key broker fails: the guest takes the host\'s clock',
    fix="`timedatectl set-ntp true`, or `systemctl enable --now chrony`; then `timedatectl show -p NTPSynchronized`",
)  # fmt: skip
def _clock(f: HostFacts, _p: Profiles) -> Outcome:
    if f.clock_synchronised is None:
        return unknown("neither timedatectl nor /run/systemd/timesync answers")
    return ok("synchronised") if f.clock_synchronised else bad("NTPSynchronized=no")


@check(
    "PLT-09", "BIOS settings", Severity.INFO,
    expected="Above 4G Decoding, SR-IOV, ACS, ARI and (where offered) Resizable BAR are on; AMD hides ACS below AER",
    symptom="BARs without address, IOMMU groups that are too wide",
    fix="check in the BIOS, we cannot read it: Above 4G Decoding, MMIO High Base and Size, SR-IOV, PCIe ARI, AER then "
    "ACS; compare with `lspci -vvv -d 10de:`",
    after=("IOM-11",),
    reboot=True,
)  # fmt: skip
def _bios(f: HostFacts, _p: Profiles) -> Outcome:
    low = [f"{d}: a BAR of {b.size >> 20} MiB lies below 4 GiB" for d in f.gpus for b in d.bars[1:]
           if b.start < _ABOVE_4G and b.size >= 1 << 28]  # fmt: skip
    if not f.gpus:
        return unknown("no GPU whose BARs would show the settings")
    return verdict(low, "large BARs lie above 4 GiB, so Above 4G Decoding is on; the rest cannot be read")


@check(
    "PLT-10", "GPU firmware", Severity.WARNING,
    frozenset({Profile.SNP, Profile.TDX, Profile.PPCIE}),
    expected="no mode change was refused with FSP error 0x1e3 (invalid knob); Hopper firmware from 96.00.B3.00.00 on",
    symptom="`ppcie` or `on` cannot be set: FspRpcError",
    fix="update the GPU's firmware (VBIOS bundle of the server vendor), power-cycle, then `kata-gpu node setup`",
    reboot=True,
)  # fmt: skip
def _firmware(f: HostFacts, _p: Profiles) -> Outcome:
    if _INVALID_KNOB in f.last_failure:
        return bad(f"its firmware does not know the setting: {f.last_failure}")
    return ok("no refused mode change on record")
