"""Ready-made simulated hosts: HGX H100, a node that mixes H100 and A10, and HGX B200."""

from kata_gpu.host.simkernel.chip import Chip
from kata_gpu.host.simkernel.machine import Function, Machine

MIB = 1 << 20
GIB = 1 << 30
_LINK = {
    "current_link_speed": "32.0 GT/s PCIe",
    "max_link_speed": "32.0 GT/s PCIe",
    "current_link_width": "16",
    "max_link_width": "16",
}


class _Builder:
    """Adds endpoints, each behind a root port of its own root bus and in an IOMMU group of its own."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.groups = 0

    def group(self) -> int:
        self.groups += 1
        return self.groups - 1

    def port(self, bus: int, *, numa: int = 0) -> str:
        """A root port that leads to `bus`; returns the path of its directory."""
        root = bus - 1
        address = f"0000:{root:02x}:01.0"
        if address not in self.machine.functions:
            self.machine.functions[address] = Function(
                address=address,
                vendor=0x1022,
                device=0x14AB,
                class_code=0x060400,
                parent=f"pci0000:{root:02x}",
                group=self.group(),
                numa=numa,
                header_type=1,
                native="pcieport",
                driver="pcieport",
            )
        return f"pci0000:{root:02x}/{address}"

    def endpoint(self, bus: int, *, function: int = 0, group: int | None = None, **facts: object) -> Function:
        """One endpoint function."""
        numa = int(bus >= 0x80)
        record = Function(
            address=f"0000:{bus:02x}:00.{function}",
            parent=self.port(bus, numa=numa),
            group=self.group() if group is None else group,
            numa=numa,
            **facts,  # type: ignore[arg-type]
        )
        record.resets = list(record.offered_resets)
        self.machine.functions[record.address] = record
        return record

    def hopper(self, bus: int) -> Function:
        """H100 SXM."""
        return self.endpoint(
            bus,
            vendor=0x10DE,
            device=0x2330,
            class_code=0x030200,
            subsystem=[0x10DE, 0x16C1],
            bars=[16 * MIB, 0, 128 * GIB, 0, 32 * MIB, 0],
            native="nvidia",
            offered_resets=["flr", "bus"],
            attributes=dict(_LINK),
            chip=Chip(family="hopper"),
        )

    def blackwell(self, bus: int) -> Function:
        """B200."""
        return self.endpoint(
            bus,
            vendor=0x10DE,
            device=0x2901,
            class_code=0x030200,
            subsystem=[0x10DE, 0x1999],
            bars=[64 * MIB, 0, 256 * GIB, 0, 32 * MIB, 0],
            native="nvidia",
            offered_resets=["flr", "bus"],
            attributes=dict(_LINK),
            chip=Chip(family="blackwell"),
        )

    def switch(self, bus: int) -> Function:
        """NVSwitch of the third generation."""
        return self.endpoint(
            bus,
            vendor=0x10DE,
            device=0x22A3,
            class_code=0x068000,
            subsystem=[0x10DE, 0x1796],
            bars=[32 * MIB, 0, 0, 0, 0, 0],
            native="nvidia",
            offered_resets=["flr", "bus"],
            attributes=dict(_LINK),
            chip=Chip(family="ls10"),
        )

    def ampere(self, bus: int) -> Function:
        """A10 with its audio function in the same group."""
        gpu = self.endpoint(
            bus,
            vendor=0x10DE,
            device=0x2236,
            class_code=0x030200,
            subsystem=[0x10DE, 0x1482],
            bars=[16 * MIB, 0, 32 * GIB, 0, 32 * MIB, 0],
            native="nvidia",
            offered_resets=["flr", "bus"],
            attributes=dict(_LINK),
            chip=Chip(family="ampere"),
        )
        self.endpoint(
            bus,
            function=1,
            group=gpu.group,
            vendor=0x10DE,
            device=0x1AEF,
            class_code=0x040300,
            subsystem=[0x10DE, 0x1482],
            bars=[16 << 10, 0, 0, 0, 0, 0],
            native="snd_hda_intel",
            driver="snd_hda_intel",
        )
        return gpu


GPU_BUSES = (0x17, 0x3D, 0x60, 0x70, 0x98, 0xBB, 0xDD, 0xED)
SWITCH_BUSES = (0x05, 0x07, 0x09, 0x0B)


def bare(profile: str = "ubuntu-6.17") -> Machine:
    """A healthy SNP host without devices."""
    machine = Machine(
        profile=profile,
        modules=["vfio", "vfio_iommu_type1", "vfio_pci", "kvm", "kvm_amd"],
        installed_modules={
            "vfio": "",
            "vfio_iommu_type1": "",
            "vfio_pci": "vfio-pci",
            "kvm": "",
            "kvm_amd": "",
            "nvidia": "nvidia",
            "nouveau": "nouveau",
            "snd_hda_intel": "snd_hda_intel",
        },
        drivers=["pcieport", "snd_hda_intel", "vfio-pci"],
    )
    if machine.kernel.iommufd:
        machine.installed_modules["iommufd"] = ""
        machine.modules.append("iommufd")
    machine.files = _files(machine.kernel.release, iommufd=machine.kernel.iommufd)
    if machine.kernel.noiommu:
        machine.files["/sys/module/vfio/parameters/enable_unsafe_noiommu_mode"] = "N\n"
    machine.nodes = {"/dev/kvm": "char-device", "/dev/sev": "char-device"}
    machine.links = {"/var/run": "/run"}
    return machine


def _files(release: str, *, iommufd: bool) -> dict[str, str]:
    options = ["VFIO_PCI=m", "VFIO_GROUP=y", "KVM_AMD_SEV=y", "EROFS_FS=m", "DM_VERITY=m", "OVERLAY_FS=m"]
    options += ["VFIO_DEVICE_CDEV=y", "IOMMUFD=m", "INTEL_TDX_HOST=y", "KVM_INTEL_TDX=y"] if iommufd else []
    return {
        "/proc/cmdline": f"BOOT_IMAGE=/vmlinuz-{release} root=/dev/sda1 ro\n",
        "/proc/cpuinfo": "processor\t: 0\nvendor_id\t: AuthenticAMD\nflags\t\t: fpu svm sme sev sev_es sev_snp\n",
        "/sys/module/kvm_amd/parameters/sev": "Y\n",
        "/sys/module/kvm_amd/parameters/sev_es": "Y\n",
        "/sys/module/kvm_amd/parameters/sev_snp": "Y\n",
        "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts": "N\n",
        "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit": "65535\n",
        "/etc/modprobe.d/nouveau.conf": "blacklist nouveau\noptions nouveau modeset=0\n",
        "/etc/modules-load.d/kata-gpu.conf": "vfio-pci\niommufd\n" if iommufd else "vfio-pci\n",
        "/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc\n",
        f"/boot/config-{release}": "".join(f"CONFIG_{option}\n" for option in options),
        f"/lib/modules/{release}/modules.alias": "alias vfio_pci:v*d*sv*sd*bc*sc*i* vfio_pci\n",
    }


def hgx_h100(profile: str = "ubuntu-6.17", *, gpus: int = 8, switches: int = 4) -> Machine:
    """HGX H100: 8 GPUs and 4 NVSwitches; fewer on request."""
    machine = bare(profile)
    builder = _Builder(machine)
    for bus in SWITCH_BUSES[:switches]:
        builder.switch(bus)
    for bus in GPU_BUSES[:gpus]:
        builder.hopper(bus)
    return machine


def mixed(profile: str = "ubuntu-6.17") -> Machine:
    """One H100 and one A10 with its audio function: only the first can do CC."""
    machine = bare(profile)
    builder = _Builder(machine)
    builder.hopper(0x17)
    builder.ampere(0x3D)
    return machine


def hgx_b200(profile: str = "ubuntu-6.17") -> Machine:
    """Eight B200; their NVLink is encrypted and no switch is part of a VM."""
    machine = bare(profile)
    builder = _Builder(machine)
    for bus in GPU_BUSES:
        builder.blackwell(bus)
    return machine


PRESETS = {"hgx-h100": hgx_h100, "mixed": mixed, "hgx-b200": hgx_b200}
