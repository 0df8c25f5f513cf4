"""Facts about the running kernel."""

import re
import zlib

from kata_gpu.core.doctor.facts import KernelFacts
from kata_gpu.core.doctor.paths import MODULES, PARAMETERS
from kata_gpu.host.look import Look

_SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
_CONFIG = re.compile(r"^CONFIG_([A-Z0-9_]{1,80})=(.{1,200})$", re.MULTILINE)
_MAX_CONFIG = 1 << 19
_MAX_LOG_LINES = 2000
_LOG = re.compile(
    r"vfio|iommu|dmar|amd-vi|sev|tdx|nvrm|nvidia|lockdown|secure ?boot|kvm|can't assign|failed to assign|rmp",
    re.IGNORECASE,
)
IOMEM = re.compile(r"^\s*([0-9a-f]{1,16})-([0-9a-f]{1,16}) : (.{0,80}(?:fb|drm).{0,80})$", re.MULTILINE | re.IGNORECASE)


def kernel(look: Look) -> KernelFacts:
    """Everything that /proc, /sys and /boot say about it. Of the log only lines that a check may quote."""
    release = look.line("/proc/sys/kernel/osrelease") or ""
    modules = look.text("/proc/modules")
    interrupts = look.text("/proc/interrupts")
    values = {p: look.line(f"/sys/module/{p.replace('/', '/parameters/')}") for p in PARAMETERS}
    log = look.probes.command("dmesg")
    return KernelFacts(
        release=release,
        cmdline=tuple((look.line("/proc/cmdline") or "").split()),
        config=_config(look, release),
        loaded=None if modules is None else frozenset(line.split(" ", 1)[0] for line in modules.splitlines()),
        present=frozenset(m for m in MODULES if look.kind(f"/sys/module/{m}") is not None),
        parameters={p: v for p, v in values.items() if v is not None},
        log=relevant(log) if log else None,
        lockdown=_bracketed(look.line("/sys/kernel/security/lockdown")),
        secure_boot=_secure_boot(look),
        interrupts_remapped=None if interrupts is None else " IR-" in interrupts or "AMD-IR" in interrupts,
        hibernation=look.line("/sys/power/disk"),
        iomem=tuple((int(a, 16), int(b, 16), n.strip()) for a, b, n in IOMEM.findall(look.text("/proc/iomem") or "")),
        pci_drivers=frozenset(look.names("/sys/bus/pci/drivers")),
    )


def relevant(log: str) -> tuple[str, ...]:
    """Lines of the kernel log that a check may quote, the last ones."""
    return tuple(line for line in log.splitlines() if _LOG.search(line))[-_MAX_LOG_LINES:]


def _config(look: Look, release: str) -> dict[str, str] | None:
    for path in (f"/boot/config-{release}", f"/lib/modules/{release}/config"):
        if (text := look.text(path, max_bytes=_MAX_CONFIG)) is not None:
            return dict(_CONFIG.findall(text))
    packed = look.data("/proc/config.gz")
    if packed is None:
        return None
    try:
        text = zlib.decompressobj(wbits=31).decompress(packed, _MAX_CONFIG).decode("utf-8", "replace")
    except zlib.error:
        return None
    return dict(_CONFIG.findall(text))


def _bracketed(text: str | None) -> str | None:
    match = re.search(r"\[([a-z]{1,20})\]", text or "")
    return match[1] if match else None


def _secure_boot(look: Look) -> bool | None:
    if look.kind("/sys/firmware/efi") is None:
        return False if look.kind("/sys/firmware") is not None else None
    data = look.data(_SECURE_BOOT, max_bytes=5)
    return None if data is None or len(data) < 5 else data[4] == 1
