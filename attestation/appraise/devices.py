"""Which devices a platform must have: count, architecture, mode, and whose GPUs they are (tee.md 4.5).

The allow-list per host is the operator's assertion, not the hardware's: it turns a relay to any genuine GPU into a
relay to one of the operator's own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from attestation.errors import Misconfigured
from attestation.findings import Finding, failed, passed
from attestation.values import Architecture, GpuMode
from attestation.verify.verified import BoundPlatform, VerifiedDevice

PPCIE_SWITCHES = 4  # HGX H100, the only board with Protected PCIe


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequirement:
    """Exactly these numbers; empty sets ask nothing. `hosts` maps a CPU chip id to the GPU chip ids it may have."""

    gpus: int
    switches: int = 0
    architectures: frozenset[Architecture] = frozenset()
    modes: frozenset[GpuMode] = frozenset()
    hosts: Mapping[str, frozenset[str]] | None = None

    def __post_init__(self) -> None:
        if self.gpus < 0 or self.switches < 0:
            raise Misconfigured("device-count", "a count is negative", where="devices", expected=">= 0")
        if GpuMode.UNKNOWN in self.modes:
            raise Misconfigured("device-mode", "an unproven mode satisfies nothing", where="devices.modes")


def check_devices(platform: BoundPlatform, want: DeviceRequirement) -> tuple[Finding, ...]:
    """One finding per requirement over verified, distinct devices; none is skipped silently."""
    gpus, switches = platform.gpus, platform.switches
    return (
        _count("gpu-count", gpus, want.gpus),
        _count("switch-count", switches, want.switches),
        *_architectures(gpus, want),
        *_modes(gpus, switches, want),
        *(
            []
            if want.hosts is None
            else check_hosts(platform.cpu.chip_id, [g.identity.chip_id for g in gpus], want.hosts)
        ),
    )


def _count(check: str, devices: Sequence[VerifiedDevice], want: int) -> Finding:
    if len(devices) == want:
        return passed(check, len(devices), expected=want)
    hint = "a collector leaves out devices that fail: look at its log" if len(devices) < want else ""
    return failed(check, f"{check}-wrong", expected=want, got=len(devices), hint=hint)


def _architectures(gpus: Sequence[VerifiedDevice], want: DeviceRequirement) -> Iterator[Finding]:
    found = sorted({gpu.arch for gpu in gpus})
    if len(found) > 1:
        yield failed("gpu-same-arch", "gpu-arch-mixed", expected="one architecture", got="|".join(found))
    if want.architectures:
        extra = sorted(set(found) - want.architectures)
        expected = "|".join(sorted(want.architectures))
        if extra:
            yield failed("gpu-arch", "gpu-arch-not-accepted", expected=expected, got="|".join(extra))
        else:
            yield passed("gpu-arch", "|".join(found), expected=expected)


def _modes(
    gpus: Sequence[VerifiedDevice], switches: Sequence[VerifiedDevice], want: DeviceRequirement
) -> Iterator[Finding]:
    if want.modes:
        for gpu in gpus:
            expected, subject = "|".join(sorted(want.modes)), str(gpu.identity)
            if gpu.mode in want.modes:
                yield passed("gpu-mode", gpu.mode, expected=expected, subject=subject)
            else:
                yield failed("gpu-mode", "gpu-mode-not-accepted", expected=expected, got=gpu.mode, subject=subject)
    if len(gpus) > 1 and any(gpu.mode is GpuMode.PPCIE for gpu in gpus) and len(switches) != PPCIE_SWITCHES:
        yield failed(
            "ppcie-switches",
            "ppcie-without-switches",
            expected=PPCIE_SWITCHES,
            got=len(switches),
            hint="links between GPUs are not encrypted in this mode, so the switches must attest too",
        )


def check_hosts(host: str, gpus: Sequence[str], hosts: Mapping[str, frozenset[str]]) -> Iterator[Finding]:
    """One finding per GPU chip id; `host` is the chip id of the CPU, empty where it is masked."""
    allowed = hosts.get(host, frozenset()) if host else frozenset()
    for gpu in gpus:
        if gpu in allowed:
            yield passed("gpu-host", gpu, expected=f"listed for {host}", subject=gpu)
        else:
            yield failed(
                "gpu-host",
                "gpu-not-of-this-host",
                expected=f"one of {len(allowed)} GPUs listed for {host or 'a masked host'}",
                got=gpu,
                hint="a GPU that moved, or evidence relayed from another machine",
                subject=gpu,
            )
