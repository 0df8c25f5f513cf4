"""DRV: everything on the host that competes for the devices (node.md 1.5)."""

import re

from kata_gpu.core.doctor.check import Outcome, Profiles, Section, Severity, bad, ok, skip, unknown, verdict
from kata_gpu.core.doctor.facts import HostFacts
from kata_gpu.core.doctor.paths import DRIVERCTL, LIBVIRT

DRIVERS = Section("Driver conflicts")
check = DRIVERS.check

NVIDIA_MODULES = (
    "nvidia", "nvidia_uvm", "nvidia_modeset", "nvidia_drm", "nvidia_peermem", "nvidia_fs", "nvidia_vgpu_vfio",
    "gdrdrv", "nova_core",
)  # fmt: skip
HOLDERS = (
    "nvidia-persistenced", "nv-fabricmanager", "nvidia-fabricmanager", "nv-hostengine", "dcgm-exporter",
    "nvidia-imex", "nvidia-powerd", "gdm", "gdm3", "sddm", "lightdm", "Xorg", "gnome-shell",
)  # fmt: skip
BINDERS = (
    "vfio-manage", "nvidia-sandbox-device-plugin", "nvidia-kata-sandbox-device-plugin", "kata-device-plugin",
    "nvidia-device-plugin", "gpu-kubelet-plugin", "nvidia-k8s-cc-manager", "k8s-cc-manager",
)  # fmt: skip
BINDER_PODS = (
    "nvidia-vfio-manager", "nvidia-sandbox-device-plugin", "nvidia-kata-sandbox-device-plugin", "kata-device-plugin",
    "nvidia-device-plugin", "nvidia-cc-manager", "nvidia-dra-driver-gpu-kubelet-plugin",
)  # fmt: skip
_NOUVEAU = re.compile(r"^\s*blacklist\s+nouveau\s*$", re.MULTILINE)
_MANAGED = re.compile(r"<hostdev\b[^>]{0,200}\bmanaged=['\"]yes['\"]")
_NVIDIA_RULE = re.compile(r"^[^#\n]*10de", re.MULTILINE | re.IGNORECASE)
_ACTS = re.compile(r"driver_override|/bind|/unbind|new_id|driverctl|vfio", re.IGNORECASE)
_FRAMEBUFFERS = ("efifb", "simpledrm", "BOOTFB", "simplefb", "vesafb")
_VGA = 0x0300


@check(
    "DRV-01", "no NVIDIA driver", Severity.FATAL,
    expected=f"none of {', '.join(NVIDIA_MODULES)} in /proc/modules",
    symptom='unbinding hangs; gpu-operator: "driver is pre-installed on host" and a validator in CrashLoop',
    fix="`dpkg -l 'nvidia-*' | grep ^ii` (or `rpm -qa 'nvidia*'`), remove those packages, then "
    "`update-initramfs -u` and "
    "reboot",
    reboot=True,
)  # fmt: skip
def _modules(f: HostFacts, _p: Profiles) -> Outcome:
    if f.kernel.loaded is None:
        return unknown("/proc/modules is not readable")
    return verdict((m for m in NVIDIA_MODULES if m in f.kernel.loaded), "none is loaded")


@check(
    "DRV-02", "nouveau off", Severity.FATAL,
    expected="nouveau is not loaded and is blacklisted",
    symptom="the GPU is taken at boot, before vfio-pci, and the console hangs on it",
    fix="`printf 'blacklist nouveau\\noptions nouveau modeset=0\\n' > /etc/modprobe.d/nouveau.conf`, `update-initramfs "
    "-u`; check with `lsinitramfs /boot/initrd.img-$(uname -r) | grep nouveau`",
    reboot=True,
)  # fmt: skip
def _nouveau(f: HostFacts, _p: Profiles) -> Outcome:
    if f.kernel.loaded is None:
        return unknown("/proc/modules is not readable")
    if "nouveau" in f.kernel.loaded:
        return bad("nouveau is loaded")
    options = [f.kernel.option(n) for n in ("modprobe.blacklist", "module_blacklist", "rd.driver.blacklist")]
    listed = any("nouveau" in (o or "").split(",") for o in options)
    if listed or any("/modprobe.d/" in path and _NOUVEAU.search(text) for path, text in f.texts.items()):
        return ok("blacklisted")
    return bad("nouveau is not blacklisted")


@check(
    "DRV-03", "no user-space holders", Severity.FATAL,
    expected="no persistenced, fabric manager, DCGM, IMEX or display manager, and nobody has /dev/nvidia* open",
    symptom='"NVRM: Attempting to remove device with non-zero usage count!": unbinding blocks until a reboot',
    fix="`systemctl disable --now nvidia-persistenced nvidia-fabricmanager nvidia-dcgm display-manager` "
    "before anything "
    "touches the driver",
)  # fmt: skip
def _holders(f: HostFacts, _p: Profiles) -> Outcome:
    holding = [f"{p} has {p.holds[0]} open" for p in f.processes if any(h.startswith("/dev/nvidia") for h in p.holds)]
    running = [f"{p} runs" for p in f.matching(*HOLDERS)]
    return verdict([*holding, *running], "none")


@check(
    "DRV-04", "no firmware framebuffer", Severity.WARNING,
    expected="no efifb, simpledrm or BOOTFB inside a BAR of a VGA-class GPU in /proc/iomem",
    symptom='QEMU "BAR n: can\'t reserve"',
    fix="make the BMC's display primary in the BIOS, or add `video=efifb:off` to GRUB_CMDLINE_LINUX in "
    "/etc/default/grub",
    reboot=True,
)  # fmt: skip
def _framebuffer(f: HostFacts, _p: Profiles) -> Outcome:
    vga = [d for d in f.gpus if d.function.class_code >> 8 == _VGA]
    if not vga:
        return skip("no VGA-class GPU")
    hits = []
    for start, end, name in f.kernel.iomem:
        if any(w.lower() in name.lower() for w in _FRAMEBUFFERS):
            hits += [
                f"{name} uses BAR {b.index} of {d}" for d in vga for b in d.bars if b.start <= start and end <= b.end
            ]
    return verdict(hits, "none")


@check(
    "DRV-05", "no other device manager", Severity.WARNING,
    expected="no driverctl, libvirt managed hostdev, udev rule for 10de, vfio-manager, cc-manager or other "
    "device plugin",
    symptom="two managers fight over driver, label, CDI file or resource name",
    fix="remove the other one: `driverctl unset-override BDF`, or `kubectl -n gpu-operator delete ds "
    "nvidia-vfio-manager nvidia-sandbox-device-plugin-daemonset`",
)  # fmt: skip
def _binders(f: HostFacts, _p: Profiles) -> Outcome:
    own = {str(d) for d in f.devices}
    found = [f"{DRIVERCTL}/{n}" for n in f.listings.get(DRIVERCTL, ()) if n.removeprefix("pci-") in own]
    for path, text in sorted(f.texts.items()):
        if path.startswith(LIBVIRT) and _MANAGED.search(text):
            found.append(f"{path}: hostdev managed='yes'")
        elif "/udev/rules.d/" in path and any(_ACTS.search(r) for r in _rules(text)):
            found.append(f"{path}: a rule for 10de")
    found += [f"pod {pod}" for pod in f.kubelet.pods if any(pod.startswith(name) for name in BINDER_PODS)]
    found += [str(p) for p in f.matching(*BINDERS)]
    return verdict(found, "none")


def _rules(text: str) -> list[str]:
    return [line for line in text.splitlines() if _NVIDIA_RULE.match(line)]


@check(
    "DRV-06", "no stale driver_override", Severity.WARNING,
    expected="driver_override of NVIDIA devices is (null), or set by us (record in /var/lib/kata-gpu)",
    symptom="after an uninstall the GPU never goes back to its driver",
    fix="`kata-gpu node setup` adopts the device; to drop it: `echo > /sys/bus/pci/devices/BDF/driver_override`",
)  # fmt: skip
def _overrides(f: HostFacts, _p: Profiles) -> Outcome:
    return verdict(
        (f"{d}: {d.override}" for d in f.devices if d.override and str(d) not in f.adopted), "none of others"
    )


@check(
    "DRV-07", "audio and USB-C functions", Severity.WARNING,
    expected="functions .1 to .3 of a GPU are on VFIO or without driver",
    symptom='"group is not viable" (gpu-operator#1328, kata-containers#10622)',
    fix="`kata-gpu node setup` binds all functions of a GPU together",
)  # fmt: skip
def _siblings(f: HostFacts, _p: Profiles) -> Outcome:
    gpus = [d.function.address for d in f.gpus]
    return verdict(
        (
            f"{p} is bound to {p.function.driver}"
            for p in f.pci
            if p.kind is None and p.function.blocks_group and any(p.function.address.same_slot(g) for g in gpus)
        ),
        "none on a native driver",
    )
