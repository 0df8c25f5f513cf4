"""IOM-11 to IOM-18: the devices themselves, and limits of VFIO (node.md 1.4)."""

import re

from kata_gpu.core.doctor.check import Outcome, Profiles, Section, Severity, bad, ok, skip, unknown, verdict
from kata_gpu.core.doctor.facts import Bar, HostFacts, PciFacts
from kata_gpu.core.doctor.iommu import NO_DEVICE
from kata_gpu.core.gpu import Kind

DEVICES = Section("Devices")
check = DEVICES.check

_BAR0_BYTES = 16 << 20  # registers of every GPU since Kepler
_DMA_ENTRIES = 65535  # default of vfio_iommu_type1
_IDS = re.compile(r"^\s*options\s+vfio[-_]pci\s+.*\bids=", re.MULTILINE)


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
        return skip(NO_DEVICE)
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
        return skip(NO_DEVICE)
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
    fix="`kata-gpu recover ADDRESS` wakes it; `echo Y > /sys/module/vfio_pci/parameters/disable_idle_d3`, and `options "
    "vfio_pci disable_idle_d3=1` in /etc/modprobe.d/kata-gpu.conf, keep it awake",
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
    fix="`kata-gpu recover ADDRESS` resets its slot; power-cycle the server where that says so, then `kata-gpu node "
    "status`",
)  # fmt: skip
def _alive(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.devices:
        return bad(NO_DEVICE)
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
