"""IOM-01 to IOM-10: IOMMU, VFIO and isolation (node.md 1.4)."""

from kata_gpu.core.doctor.check import Outcome, Profiles, Section, Severity, bad, ok, skip, some, unknown, verdict
from kata_gpu.core.doctor.facts import HostFacts
from kata_gpu.core.doctor.paths import IOMMU, VFIO, VFIO_DEVICES
from kata_gpu.core.filekind import FileKind
from kata_gpu.core.gpu import model_of

IOMMU_VFIO = Section("IOMMU and VFIO")
check = IOMMU_VFIO.check

NO_DEVICE = "no NVIDIA GPU or NVSwitch on this host"
_ACS = {0x01: "SV", 0x04: "RR", 0x08: "CR", 0x10: "UF"}  # PCIe 6.0, 7.7.11.3: what keeps peers apart


@check(
    "IOM-01", "IOMMU active", Severity.FATAL,
    expected="/sys/class/iommu is not empty and every GPU has an iommu_group",
    symptom='binding gives EINVAL; "vfio-pci: probe with driver vfio-pci failed with error -22"',
    fix="enable VT-d or AMD IOMMU in the BIOS; on Intel add `intel_iommu=on` to GRUB_CMDLINE_LINUX in "
    "/etc/default/grub",
    reboot=True,
)  # fmt: skip
def _active(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.iommus:
        return bad("/sys/class/iommu is empty")
    return verdict(
        (f"{d} has no iommu_group" for d in f.devices if d.function.iommu_group is None), some(f.iommus, ", ")
    )


@check(
    "IOM-02", "interrupt remapping", Severity.FATAL,
    expected='interrupts of chips named IR- in /proc/interrupts ("Enabled IRQ remapping", "Interrupt '
    'remapping enabled")',
    symptom='binding works, then VFIO_SET_IOMMU and VFIO_DEVICE_BIND_IOMMUFD give EPERM; "No interrupt '
    'remapping support"',
    fix="enable interrupt remapping (VT-d, x2APIC) in the BIOS and remove `intremap=off` from /etc/default/grub; never "
    "set allow_unsafe_interrupts",
    after=("IOM-01",),
    reboot=True,
)  # fmt: skip
def _remapping(f: HostFacts, _p: Profiles) -> Outcome:
    if f.cpu.arch == "aarch64":
        return ok("the GIC ITS always isolates interrupts")
    if f.kernel.option("intremap") == "off":
        return bad("intremap=off on the kernel command line")
    if line := f.kernel.says("Enabled IRQ remapping", "Interrupt remapping enabled"):
        return ok(line)
    if f.kernel.interrupts_remapped is None:
        return unknown("/proc/interrupts is not readable")
    return ok("IR- chips in use") if f.kernel.interrupts_remapped else bad("no IR- chip in /proc/interrupts")


@check(
    "IOM-03", "not in no-IOMMU mode", Severity.FATAL,
    expected="N in /sys/module/vfio/parameters/enable_unsafe_noiommu_mode and no /dev/vfio/noiommu-*",
    symptom="everything looks healthy and nothing is isolated; the kernel is tainted",
    fix="remove enable_unsafe_noiommu_mode from /etc/modprobe.d, enable the IOMMU, `echo N > "
    "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode`, rebind the devices",
)  # fmt: skip
def _noiommu(f: HostFacts, _p: Profiles) -> Outcome:
    fake = [n for n in f.listings.get(VFIO, ()) if n.startswith("noiommu-")]
    if fake:
        return bad(f"/dev/vfio/{some(fake, ', ')}")
    return bad("enable_unsafe_noiommu_mode=Y") if f.kernel.on("vfio/enable_unsafe_noiommu_mode") else ok("off")


@check(
    "IOM-04", "safe interrupts", Severity.WARNING,
    expected="N in /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    symptom="a guest can inject interrupts into the host",
    fix="remove allow_unsafe_interrupts from /etc/modprobe.d and `echo N > "
    "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts`",
)  # fmt: skip
def _interrupts(f: HostFacts, _p: Profiles) -> Outcome:
    return bad("Y") if f.kernel.on("vfio_iommu_type1/allow_unsafe_interrupts") else ok("N")


@check(
    "IOM-05", "VFIO modules", Severity.FATAL,
    expected="vfio-pci, vfio_iommu_type1 and iommufd are loaded; nvgrace_gpu_vfio_pci too on Grace",
    symptom="binding gives ENOENT; on Grace the device is bound to the wrong driver",
    fix="`modprobe vfio-pci && modprobe vfio_iommu_type1 && modprobe iommufd` (Grace: `modprobe nvgrace_gpu_vfio_pci`)",
    after=("PLT-05",),
)  # fmt: skip
def _modules(f: HostFacts, _p: Profiles) -> Outcome:
    missing = [m for m in ("vfio_iommu_type1", "iommufd") if m not in f.kernel.present]
    if "vfio-pci" not in f.kernel.pci_drivers:
        missing.insert(0, "vfio-pci")
    grace = any(model_of(d.function.device).firmware_owned for d in f.gpus) and f.cpu.arch == "aarch64"
    if grace and "nvgrace_gpu_vfio_pci" not in f.kernel.present:
        missing.append("nvgrace_gpu_vfio_pci")
    return verdict((f"{m} is not loaded" for m in missing), "loaded")


@check(
    "IOM-06", "modules at boot", Severity.WARNING,
    expected="vfio-pci and iommufd in /etc/modules-load.d/*.conf",
    symptom="works until the next reboot",
    fix="`printf 'vfio-pci\\niommufd\\n' > /etc/modules-load.d/kata-gpu.conf`",
)  # fmt: skip
def _at_boot(f: HostFacts, _p: Profiles) -> Outcome:
    words = {
        line.strip().replace("-", "_")
        for path, text in f.texts.items() if "/modules-load.d/" in path
        for line in text.splitlines()
    }  # fmt: skip
    return verdict((f"{m} is in no modules-load.d file" for m in ("vfio_pci", "iommufd") if m not in words), "listed")


@check(
    "IOM-07", "iommufd usable", Severity.FATAL,
    expected="/dev/iommu, and for every bound device vfio-dev/vfioN and /dev/vfio/devices/vfioN",
    symptom="device plugins that look at /dev/iommu alone advertise devices that no VM can open",
    fix="`modprobe iommufd`; if only /dev/vfio/devices is missing, boot a kernel with CONFIG_VFIO_DEVICE_CDEV "
    "(see PLT-05)",
    after=("PLT-05", "IOM-05"),
)  # fmt: skip
def _iommufd(f: HostFacts, _p: Profiles) -> Outcome:
    if f.nodes.get(IOMMU) is not FileKind.CHAR_DEVICE:
        return bad(f"{IOMMU} is not a character device")
    bound = [d for d in f.devices if d.function.on_vfio]
    cdevs = f.listings.get(VFIO_DEVICES, ())
    problems = []
    for device in bound:
        cdev = device.function.vfio_cdev
        if cdev is None:
            problems.append(f"{device} is bound and has no vfio-dev")
        elif cdev not in cdevs:
            problems.append(f"{device}: {VFIO_DEVICES}/{cdev} does not exist")
    return verdict(problems, f"{len(bound)} devices with a cdev" if bound else f"{IOMMU}; no device is bound yet")


@check(
    "IOM-08", "group isolation", Severity.FATAL,
    expected="other members of a GPU's IOMMU group are bridges, on VFIO, on pci-stub or without driver",
    symptom='QEMU "group N is not viable"; SET_CONTAINER and BIND_IOMMUFD give EPERM',
    fix="`kata-gpu node setup` binds the whole group; for a device that the host needs, move it to another slot",
    after=("DRV-07",),
)  # fmt: skip
def _viable(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.devices:
        return skip(NO_DEVICE)
    groups = {d.function.iommu_group for d in f.devices} - {None}
    own = {d.function.address for d in f.devices}
    return verdict(
        (
            f"group {p.function.iommu_group}: {p} is bound to {p.function.driver}"
            for p in f.pci
            if p.function.iommu_group in groups and p.function.address not in own and p.function.blocks_group
        ),
        f"{len(groups)} groups",
    )


@check(
    "IOM-09", "ACS on the path", Severity.WARNING,
    expected="ACS control has SV, RR, CR and UF on every root and downstream port above a GPU",
    symptom="several GPUs share a group and cannot go to different pods",
    fix="enable ACS (and AER) in the BIOS; `lspci -vvv -s PORT | grep ACSCtl` shows the bits; needs root",
    reboot=True,
)  # fmt: skip
def _acs(f: HostFacts, _p: Profiles) -> Outcome:
    ports = {port.address: port.acs for d in f.devices for port in d.ports}
    if not ports:
        return skip("no port above a GPU")
    if all(acs is None for acs in ports.values()):
        return unknown("the config space of the ports is readable for root only")
    lacking = []
    for address, acs in sorted(ports.items()):
        missing = [name for bit, name in _ACS.items() if acs is not None and not acs & bit]
        if missing:
            lacking.append(f"port {address} lacks {'+'.join(missing)}")
    return verdict(lacking, f"{len(ports)} ports")


@check(
    "IOM-10", "no ACS override", Severity.FATAL,
    expected="no pcie_acs_override on the kernel command line",
    symptom="groups look narrow, and the isolation is not there",
    fix="remove `pcie_acs_override` from GRUB_CMDLINE_LINUX in /etc/default/grub, `update-grub`, reboot",
    reboot=True,
)  # fmt: skip
def _override(f: HostFacts, _p: Profiles) -> Outcome:
    value = f.kernel.option("pcie_acs_override")
    return ok("absent") if value is None else bad(f"pcie_acs_override={value}")
