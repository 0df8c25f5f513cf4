"""SNP and TDX: what the CPU TEE needs of firmware, kernel and its services (node.md 1.2, 1.3).

Log lines only add evidence: the kernel log rotates, so a check never fails because a line is absent.
"""

from kata_gpu.core.doctor.check import SNP, TDX, Outcome, Profiles, Section, Severity, bad, ok, skip, unknown, verdict
from kata_gpu.core.doctor.facts import HostFacts
from kata_gpu.core.doctor.paths import QCNL, QGS_SOCKET, SEV, SGX
from kata_gpu.core.filekind import FileKind

SEV_SNP = Section("AMD SEV-SNP")
INTEL_TDX = Section("Intel TDX")

_QGS_PORT = "hypervisor.qemu.tdx_quote_generation_service_socket_port"
_SLOW_VCPUS = 16  # TDX with a GPU and 16 vCPUs boots in 3-4 minutes, 64 time out (kata-containers#13440)


@SEV_SNP.check(
    "SNP-01", "KVM supports SNP", Severity.FATAL, SNP,
    expected="Y or 1 in sev, sev_es and sev_snp under /sys/module/kvm_amd/parameters",
    symptom='QEMU: "sev-snp-guest unsupported"; cc-manager silently turns its default mode to off',
    fix="enable SEV-SNP, SMEE and RMP coverage in the BIOS and load `modprobe kvm_amd sev=1 sev_es=1 sev_snp=1`",
    after=("PLT-01", "PLT-04", "PLT-05", "SNP-02", "SNP-03", "SNP-04"),
    reboot=True,
)  # fmt: skip
def _snp(f: HostFacts, _p: Profiles) -> Outcome:
    off = [n for n in ("sev", "sev_es", "sev_snp") if not f.kernel.on(f"kvm_amd/{n}")]
    return verdict((f"kvm_amd/parameters/{n} is {f.kernel.parameters.get(f'kvm_amd/{n}', 'absent')}" for n in off), "Y")


@SEV_SNP.check(
    "SNP-02", "IOMMU translates", Severity.FATAL, SNP,
    expected="no iommu=pt or iommu.passthrough=1, CONFIG_IOMMU_DEFAULT_PASSTHROUGH unset, groups not all identity",
    symptom='"AMD-Vi: SNP: IOMMU disabled or configured in passthrough mode, SNP cannot be supported"',
    fix="remove `iommu=pt` and `iommu.passthrough=1` from GRUB_CMDLINE_LINUX in /etc/default/grub, "
    "`update-grub`, reboot",
    reboot=True,
)  # fmt: skip
def _passthrough(f: HostFacts, _p: Profiles) -> Outcome:
    mode, old = f.kernel.option("iommu.passthrough"), f.kernel.option("iommu") or ""
    if mode in {"1", "on", "y"} or "pt" in old.split(","):
        return bad(f"kernel command line has {'iommu.passthrough=' + mode if mode else 'iommu=' + old}")
    explicit = mode is not None or "nopt" in old.split(",")
    if not explicit and (f.kernel.config or {}).get("IOMMU_DEFAULT_PASSTHROUGH") == "y":
        return bad("CONFIG_IOMMU_DEFAULT_PASSTHROUGH=y")
    types = set(f.group_types.values())
    return bad("every IOMMU group is of type identity") if types == {"identity"} else ok("translating")


@SEV_SNP.check(
    "SNP-03", "IOMMU page table v1", Severity.FATAL, SNP,
    expected="no amd_iommu=pgtbl_v2 on the kernel command line",
    symptom='"SNP: IOMMU is configured with V2 page table mode, SNP cannot be supported"',
    fix="remove `amd_iommu=pgtbl_v2` from GRUB_CMDLINE_LINUX in /etc/default/grub, `update-grub`, reboot",
    reboot=True,
)  # fmt: skip
def _page_table(f: HostFacts, _p: Profiles) -> Outcome:
    value = f.kernel.option("amd_iommu") or ""
    return bad(f"amd_iommu={value}") if "pgtbl_v2" in value.split(",") else ok("v1")


@SEV_SNP.check(
    "SNP-04", "RMP table", Severity.FATAL, SNP,
    expected="the BIOS reserved the RMP table (SEV-SNP: RMP table physical range)",
    symptom="the SNP parameters of kvm_amd read N",
    fix='set "SNP Memory (RMP Table) Coverage" and SMEE to Enabled in the BIOS; check `dmesg | grep -i rmp`',
    after=("SNP-01",),
    reboot=True,
)  # fmt: skip
def _rmp(f: HostFacts, _p: Profiles) -> Outcome:
    if line := f.kernel.says("RMP table has not been reserved", "RMP configuration not done", "RMP coverage"):
        return bad(line)
    if line := f.kernel.says("SEV-SNP: RMP table physical range"):
        return ok(line)
    return ok("KVM has SNP, which needs it") if f.kernel.on("kvm_amd/sev_snp") else unknown("no log line says so")


@SEV_SNP.check(
    "SNP-05", "PSP firmware", Severity.FATAL, SNP,
    expected="/dev/sev exists and the PSP initialised (SEV-SNP API:x.y build:z)",
    symptom='QEMU "failed to initialize"; every SNP guest fails',
    fix="update the BIOS (AGESA) or install linux-firmware with amd/amd_sev_*.sbin, then `modprobe -r ccp && "
    "modprobe ccp`",
)  # fmt: skip
def _psp(f: HostFacts, _p: Profiles) -> Outcome:
    if line := f.kernel.says("SEV-SNP: failed to INIT", "SEV: failed to INIT"):
        return bad(line)
    if not f.there(SEV):
        return bad(f"{SEV} does not exist")
    return ok(f.kernel.says("SEV-SNP API:") or f"{SEV} exists")


@SEV_SNP.check(
    "SNP-06", "free ASIDs", Severity.WARNING, SNP,
    expected="misc.current below misc.capacity for sev_es in /sys/fs/cgroup",
    symptom='SNP_LAUNCH_START fails, or pods stay Pending with "Insufficient sev-snp.amd.com/esids"',
    fix='raise "Minimum SEV non-ES ASID" in the BIOS, or stop VMs; look at `cat /sys/fs/cgroup/misc.current`',
)  # fmt: skip
def _asids(f: HostFacts, _p: Profiles) -> Outcome:
    return _left(f, "sev_es")


def _left(f: HostFacts, key: str) -> Outcome:
    if f.misc is None or key not in f.misc:
        return unknown(f"/sys/fs/cgroup/misc.capacity has no {key}")
    capacity, used = f.misc[key]
    if capacity is None:
        return ok("no limit")
    return ok(f"{capacity - used} of {capacity} free") if used < capacity else bad(f"{used} of {capacity} in use")


@SEV_SNP.check(
    "SNP-07", "no amd_iommu=on", Severity.INFO, SNP,
    expected="amd_iommu=on is not a kernel option",
    symptom='harmless: the kernel logs "AMD-Vi: Unknown option - \'on\'", although vendor pages ask for it',
    fix="nothing breaks; remove `amd_iommu=on` from /etc/default/grub when convenient",
)  # fmt: skip
def _amd_iommu_on(f: HostFacts, _p: Profiles) -> Outcome:
    value = f.kernel.option("amd_iommu") or ""
    return bad("amd_iommu=on has no effect") if "on" in value.split(",") else ok("absent")


@SEV_SNP.check(
    "SNP-08", "platform TCB", Severity.INFO, SNP,
    expected="`snphost ok` passes where the tool is installed",
    symptom="attestation policy refuses the platform later",
    fix="update the BIOS and the SEV firmware; `snphost show tcb` prints the versions",
)  # fmt: skip
def _tcb(f: HostFacts, _p: Profiles) -> Outcome:
    report = f.tools.get("snphost")
    if not report:
        return unknown("snphost is not installed")
    failing = [line.strip() for line in report.splitlines() if "FAIL" in line]
    return verdict(failing, "snphost ok")


@SEV_SNP.check(
    "SNP-09", "not QEMU 9.1", Severity.WARNING, SNP,
    expected="a QEMU other than 9.1 (9.2 fixed it)",
    symptom='"Cannot set discarding of RAM broken" with SNP and VFIO (kubevirt#16407)',
    fix="use the QEMU of kata-deploy 4.1.0: `path` under [hypervisor.qemu] in the Kata configuration",
)  # fmt: skip
def _qemu(f: HostFacts, _p: Profiles) -> Outcome:
    versions = {k.handler: k.qemu_version for k in f.kata if k.qemu_version}
    if not versions:
        return unknown("no Kata configuration names a QEMU that tells its version")
    return verdict((f"{h} uses QEMU {v}" for h, v in versions.items() if v.startswith("9.1.")),
                   f"QEMU {', '.join(sorted(set(versions.values())))}")  # fmt: skip


@INTEL_TDX.check(
    "TDX-01", "KVM supports TDX", Severity.FATAL, TDX,
    expected="Y or 1 in /sys/module/kvm_intel/parameters/tdx",
    symptom='QEMU: "vm-type tdx not supported by KVM"; cc-manager turns its default mode to off',
    fix="put `options kvm_intel tdx=1` in /etc/modprobe.d/tdx.conf (or kvm_intel.tdx=1 on the command line), reboot",
    after=("PLT-01", "PLT-04", "PLT-05", "TDX-02", "TDX-03", "TDX-04"),
    reboot=True,
)  # fmt: skip
def _tdx(f: HostFacts, _p: Profiles) -> Outcome:
    value = f.kernel.parameters.get("kvm_intel/tdx")
    return ok("Y") if f.kernel.on("kvm_intel/tdx") else bad(f"kvm_intel/parameters/tdx is {value or 'absent'}")


@INTEL_TDX.check(
    "TDX-02", "BIOS enables TDX", Severity.FATAL, TDX,
    expected='"virt/tdx: BIOS enabled: private KeyID range", or KVM that has TDX',
    symptom='"virt/tdx: BIOS disabled", or nothing, in the kernel log',
    fix="in the BIOS: TME, TME-MT, TDX, SEAM loader and SGX on, TDX key split non-zero, TME-MT integrity off; check "
    "`dmesg | grep virt/tdx`",
    reboot=True,
)  # fmt: skip
def _tdx_bios(f: HostFacts, _p: Profiles) -> Outcome:
    if line := f.kernel.says("virt/tdx: BIOS disabled", "TDX not supported by the host platform"):
        return bad(line)
    if line := f.kernel.says("virt/tdx: BIOS enabled"):
        return ok(line)
    return ok("KVM has TDX, which needs it") if f.kernel.on("kvm_intel/tdx") else unknown("no log line says so")


@INTEL_TDX.check(
    "TDX-03", "TDX module", Severity.FATAL, TDX,
    expected='"virt/tdx: module initialized", or KVM that has TDX',
    symptom='"kvm_intel: tdx: failed" in the kernel log',
    fix="install the TDX module of the BIOS vendor (SEAM loader), then `modprobe -r kvm_intel && modprobe "
    "kvm_intel tdx=1`",
    after=("TDX-02", "TDX-04"),
    reboot=True,
)  # fmt: skip
def _tdx_module(f: HostFacts, _p: Profiles) -> Outcome:
    if line := f.kernel.says("kvm_intel: tdx: failed", "tdx: module initialization failed", "TDX module not loaded"):
        return bad(line)
    if line := f.kernel.says("tdx: module initialized", "tdx: TDX module initialized"):
        return ok(line)
    return ok("KVM has TDX, which needs it") if f.kernel.on("kvm_intel/tdx") else unknown("no log line says so")


@INTEL_TDX.check(
    "TDX-04", "no hibernation", Severity.FATAL, TDX,
    expected="`nohibernate` on the command line, CONFIG_HIBERNATION off, or [disabled] in /sys/power/disk",
    symptom='"virt/tdx: initialization failed: Hibernation support is enabled"',
    fix="add `nohibernate` to GRUB_CMDLINE_LINUX in /etc/default/grub, `update-grub`, turn ACPI S3 off in the "
    "BIOS, reboot",
    reboot=True,
)  # fmt: skip
def _hibernation(f: HostFacts, _p: Profiles) -> Outcome:
    if line := f.kernel.says("Hibernation support is enabled"):
        return bad(line)
    if f.kernel.option("nohibernate") is not None:
        return ok("nohibernate")
    if f.kernel.config is not None and f.kernel.config.get("HIBERNATION") != "y":
        return ok("CONFIG_HIBERNATION is not set")
    if f.kernel.hibernation is None:
        return unknown("/sys/power/disk is not readable")
    return ok("disabled") if "[disabled]" in f.kernel.hibernation else bad(f"/sys/power/disk: {f.kernel.hibernation}")


@INTEL_TDX.check(
    "TDX-05", "quote generation", Severity.FATAL, TDX,
    expected=f"qgsd runs and listens on {QGS_SOCKET} (vsock when Kata names a port other than 0)",
    symptom="the VM boots, and attestation in the guest ends in a quote generation timeout",
    fix="`systemctl enable --now qgsd`, with the unix socket enabled in /etc/qgs.conf (port = 0)",
    after=("TDX-07",),
)  # fmt: skip
def _qgs(f: HostFacts, _p: Profiles) -> Outcome:
    if not f.matching("qgs", "qgsd"):
        return bad("no qgsd process")
    ports = [p for k in f.kata if (p := k.get(_QGS_PORT))]
    if ports:
        return ok(f"qgsd runs, Kata uses vsock port {ports[0]}")
    return ok(QGS_SOCKET) if f.nodes.get(QGS_SOCKET) is FileKind.SOCKET else bad(f"{QGS_SOCKET} is not a socket")


@INTEL_TDX.check(
    "TDX-06", "PCCS", Severity.WARNING, TDX,
    expected=f"the pccs_url of {QCNL} is reachable",
    symptom="no collateral for quotes, or TCB out of date",
    fix=f"set pccs_url in {QCNL} and check with `curl -k https://localhost:8081/sgx/certification/v4/rootcacrl`",
)  # fmt: skip
def _pccs(f: HostFacts, _p: Profiles) -> Outcome:
    if f.pccs is None:
        return bad(f"{QCNL} names no pccs_url")
    if f.pccs not in f.reach:
        return unknown(f"{f.pccs} was not tried")
    error = f.reach[f.pccs]
    return bad(f"{f.pccs}: {error}") if error else ok(f.pccs)


@INTEL_TDX.check(
    "TDX-07", "SGX devices", Severity.WARNING, TDX,
    expected=" and ".join(SGX),
    symptom="qgsd does not start: it runs in SGX enclaves",
    fix="enable SGX and SGX auto MP registration in the BIOS; `ls -l /dev/sgx_enclave /dev/sgx_provision`",
    reboot=True,
)  # fmt: skip
def _sgx(f: HostFacts, _p: Profiles) -> Outcome:
    return verdict((f"{path} does not exist" for path in SGX if not f.there(path)), "both exist")


@INTEL_TDX.check(
    "TDX-08", "free TDX keys", Severity.WARNING, TDX,
    expected="misc.current below misc.capacity for tdx in /sys/fs/cgroup",
    symptom="pods stay Pending for tdx.intel.com/keys, or KVM_TDX_INIT_VM fails in QEMU",
    fix="raise the TDX key split in the BIOS, or stop VMs; look at `cat /sys/fs/cgroup/misc.current`",
)  # fmt: skip
def _keys(f: HostFacts, _p: Profiles) -> Outcome:
    return _left(f, "tdx")


@INTEL_TDX.check(
    "TDX-09", "vCPUs and boot time", Severity.WARNING, TDX,
    expected=f"default_vcpus of the TDX handlers at most {_SLOW_VCPUS}",
    symptom="DeadlineExceeded at CreateSandbox: 16 vCPUs take 3-4 minutes to boot, 64 time out (kata-containers#13440)",
    fix="lower default_vcpus in a drop-in under config.d/ of the Kata configuration; size VMs by pod limits",
)  # fmt: skip
def _vcpus(f: HostFacts, _p: Profiles) -> Outcome:
    tdx = [k for k in f.kata if "-tdx" in k.handler]
    if not tdx:
        return skip("no TDX handler is configured")
    many = []
    for kata in tdx:
        value = kata.get("hypervisor.qemu.default_vcpus")
        if isinstance(value, int | float) and value > _SLOW_VCPUS:
            many.append(f"{kata.handler} starts with {value:g} vCPUs")
    return verdict(many, f"at most {_SLOW_VCPUS}")
