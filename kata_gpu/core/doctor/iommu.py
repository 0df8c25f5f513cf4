"""IOM: IOMMU, VFIO and the devices themselves (node.md 1.4)."""

import re

from kata_gpu.core.doctor.check import Outcome, Profiles, Section, Severity, bad, ok, skip, some, unknown, verdict
from kata_gpu.core.doctor.facts import Bar, HostFacts, PciFacts
from kata_gpu.core.doctor.paths import IOMMU, VFIO, VFIO_DEVICES
from kata_gpu.core.filekind import FileKind
from kata_gpu.core.gpu import Kind, model_of

IOMMU_VFIO = Section("IOMMU and VFIO")
check = IOMMU_VFIO.check

_NO_DEVICE = "no NVIDIA GPU or NVSwitch on this host"
_ACS = {0x01: "SV", 0x04: "RR", 0x08: "CR", 0x10: "UF"}  # PCIe 6.0, 7.7.11.3: what keeps peers apart
_BAR0_BYTES = 16 << 20  # registers of every GPU since Kepler
_DMA_ENTRIES = 65535  # default of vfio_iommu_type1
_IDS = re.compile(r"^\s*options\s+vfio[-_]pci\s+.*\bids=", re.MULTILINE)


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
        return skip(_NO_DEVICE)
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


@check(
    "IOM-11", "BARs assigned", Severity.FATAL,
    expected="every BAR of a GPU has an address, and BAR0 has 16 MiB",
    symptom='the VM sees no GPU memory; "BAR 1: can\'t assign; no space"; tools fail with BrokenGpu',
    fix="enable Above 4G Decoding and enlarge MMIO High Size in the BIOS, or add `pci=realloc` to /etc/default/grub",
    after=("IOM-14",),
    reboot=True,
)  # fmt: skip
def _bars(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.devices:
        return skip(_NO_DEVICE)
    return verdict((problem for d in f.devices for problem in _bar_problems(d)), f"{len(f.devices)} devices")


def _bar_problems(device: PciFacts) -> list[str]:
    by_index: dict[int, Bar] = {b.index: b for b in device.bars}
    problems = [f"{device}: BAR {b.index} has no address" for b in device.bars if not b.start]
    if 0 not in by_index:
        return [f"{device} has no BAR 0"]
    if device.kind is Kind.GPU:
        if by_index[0].size < _BAR0_BYTES:
            problems.append(f"{device}: BAR 0 has {by_index[0].size} bytes")
        if not by_index.keys() & {1, 2}:
            problems.append(f"{device} has no memory BAR")
    return problems


@check(
    "IOM-12", "PCIe link", Severity.WARNING,
    expected="current_link_width equals max_link_width, and the speed too while the device is awake",
    symptom="everything is 2 to 8 times slower",
    fix="reseat the card or riser; `lspci -vv -s BDF | grep -E 'LnkCap|LnkSta'`",
)  # fmt: skip
def _link(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.devices:
        return skip(_NO_DEVICE)
    slow = []
    for d in f.devices:
        (speed, width), (top_speed, top_width) = d.link, d.link_max
        awake = d.function.power_state == "D0"  # an idle GPU lowers its speed, never its width
        if top_width and width != top_width:
            slow.append(f"{d} runs x{width} of x{top_width}")
        elif awake and top_speed and speed != top_speed:
            slow.append(f"{d} runs {speed} of {top_speed}")
    return verdict(slow, f"{len(f.devices)} devices at full width")


@check(
    "IOM-13", "power states", Severity.WARNING,
    expected="no device in D3cold, and no slot that cuts the power of an idle device",
    symptom='after some pods the GPU is gone: "D3cold -> D0 inaccessible" (kata-containers#11708)',
    fix="`echo Y > /sys/module/vfio_pci/parameters/disable_idle_d3`, and `options vfio_pci disable_idle_d3=1` in "
    "/etc/modprobe.d/kata-gpu.conf",
    after=("IOM-14",),
)  # fmt: skip
def _power(f: HostFacts, _p: Profiles) -> Outcome:
    awake = f.kernel.on("vfio_pci/disable_idle_d3") is True
    cold = []
    for d in f.devices:
        if d.function.power_state in {"D3cold", "error"}:
            cold.append(f"{d} is in {d.function.power_state}")
        elif d.slot_cuts_power and d.d3cold_allowed and not awake and d.power_control == "auto":
            cold.append(f"{d} may enter D3cold")
    return verdict(cold, f"{len(f.devices)} devices stay reachable")


@check(
    "IOM-14", "devices alive", Severity.FATAL,
    expected="at least one NVIDIA device, and a first config word other than 0xffff",
    symptom='the GPU "fell off the bus": all reads give 0xff',
    fix="`kata-gpu gpus` shows which; power-cycle the server if a reset does not bring it back, then `kata-gpu node "
    "status`",
)  # fmt: skip
def _alive(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.devices:
        return bad(_NO_DEVICE)
    dead = [f"{d} reads 0xffff" for d in f.devices if d.alive is False]
    if not dead and any(d.alive is None for d in f.devices):
        return unknown("config space is not readable")
    return verdict(dead, f"{len(f.devices)} devices")


@check(
    "IOM-15", "reset method", Severity.WARNING,
    expected="`flr` in reset_method of every GPU, and a reset file",
    symptom="a CC mode never becomes active, and state of one VM leaks into the next",
    fix="`echo default > /sys/bus/pci/devices/BDF/reset_method`; a GPU without FLR needs newer firmware",
)  # fmt: skip
def _reset(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.gpus:
        return skip("no NVIDIA GPU on this host")
    return verdict(
        (
            f"{d}: {' '.join(d.function.reset_methods) or 'none'}"
            for d in f.gpus
            if "flr" not in d.function.reset_methods or not d.has_reset
        ),
        "flr",
    )


@check(
    "IOM-16", "locked memory", Severity.WARNING,
    expected="containerd's `Max locked memory` is unlimited: the Kata shim inherits it",
    symptom='ENOMEM on DMA map for rootless QEMU; "vfio_pin_pages_remote: RLIMIT_MEMLOCK exceeded"',
    fix="`systemctl edit containerd` with LimitMEMLOCK=infinity under [Service], then `systemctl restart containerd`",
)  # fmt: skip
def _memlock(f: HostFacts, _p: Profiles) -> Outcome:
    limits = {p.memlock for p in f.matching("containerd") if p.memlock is not None}
    if not limits:
        return unknown("no running containerd whose limits are readable")
    return verdict((f"{v} bytes" for v in sorted(limits) if v != "unlimited"), "unlimited")


@check(
    "IOM-17", "DMA map entries", Severity.INFO,
    expected=f"dma_entry_limit of vfio_iommu_type1 at least {_DMA_ENTRIES}",
    symptom="ENOSPC on the legacy path with guests whose memory is fragmented",
    fix=f"`echo {_DMA_ENTRIES} > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit`",
)  # fmt: skip
def _entries(f: HostFacts, _p: Profiles) -> Outcome:
    value = f.kernel.parameters.get("vfio_iommu_type1/dma_entry_limit", "").strip()
    if not value.isdecimal():
        return unknown("the parameter is not readable")
    return ok(value) if int(value) >= _DMA_ENTRIES else bad(value)


@check(
    "IOM-18", "no vfio-pci ids=", Severity.WARNING,
    expected="no ids= for vfio-pci on the kernel command line or in modprobe.d",
    symptom="at boot vfio-pci grabs every device of that id, also those of another manager",
    fix="remove `options vfio-pci ids=...` from /etc/modprobe.d, `update-initramfs -u`; `kata-gpu node setup` binds by "
    "address",
    reboot=True,
)  # fmt: skip
def _ids(f: HostFacts, _p: Profiles) -> Outcome:
    places = [path for path, text in sorted(f.texts.items()) if "/modprobe.d/" in path and _IDS.search(text)]
    if any(f.kernel.option(name) is not None for name in ("vfio-pci.ids", "vfio_pci.ids")):
        places.append("kernel command line")
    return verdict(places, "none")
