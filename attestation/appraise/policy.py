"""Release conditions of a key: who exactly gets it. Strict TOML into a value that cannot be permissive by omission.

`[cpu]` and `[init_data]` are always required; `[gpus]` names count, architectures, mode and firmware. Everything else
only tightens. Unknown keys are errors. `docs/policies.md` has the reference and examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from attestation.appraise.rules import Rule, Unchecked
from attestation.values import Architecture, BindingProfile, Digest, GpuMode, Level, Tee

MAX_POLICY_BYTES = 64 * 1024  # admin uploads; keybroker.md 5.1 gives the same bound for Rego
TCB_PARTS = ("bootloader", "tee", "snp", "microcode", "fmc")  # SNP components, tee.md 1.4


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuConditions:
    """The CPU TEE. Without `product`, Milan is refused: its signing keys can be extracted in software (tee.md 1.9b)."""

    tees: tuple[Tee, ...]
    measurement: Rule
    affirming: bool | Unchecked = True
    product: Rule | None = None
    chip_id: Rule | None = None
    tcb_minimum: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuConditions:
    """The GPUs: how many, of which kind, and with which firmware. Identities are distinct, always."""

    count: int
    at_least: bool  # `{at_least = n}` instead of exactly n
    arch: tuple[Architecture, ...]
    mode: tuple[GpuMode, ...]
    driver_version: Rule
    vbios_version: Rule
    level: Level = Level.TRUSTED
    level_reason: str = ""
    identity: Rule | None = None
    hosts: Mapping[str, frozenset[str]] | None = None  # GPU chip ids by CPU chip id

    @property
    def names_identities(self) -> bool:
        """Whether the operator says which GPUs are his."""
        return self.hosts is not None or not (self.identity is None or isinstance(self.identity, Unchecked))


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchConditions:
    """The NVSwitches."""

    count: int
    bios_version: Rule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseLimits:
    """How often and when."""

    max_releases: int | None = None
    not_before: datetime | None = None
    not_after: datetime | None = None
    lease: timedelta = timedelta(hours=1)  # how long a guest counts as holding the key without a new attestation
    max_leases: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyConditions:
    """Everything that must hold before a key is released."""

    cpu: CpuConditions
    init_data: tuple[Digest, ...] | Unchecked
    gpus: GpuConditions | None = None
    switches: SwitchConditions | None = None
    limits: ReleaseLimits = field(default_factory=ReleaseLimits)
    epoch: int = 0  # grows from one document to the next; an older one is not stored again
    binding_profile: BindingProfile | None = None  # None takes whichever the session agreed on
    digest: Digest = field(default=Digest("sha256", bytes(32)))

    @property
    def waivers(self) -> tuple[str, ...]:
        """Every reason that somebody wrote to waive a check."""
        rules: list[object] = [self.cpu.measurement, self.cpu.affirming, self.cpu.product, self.cpu.chip_id]
        rules += [self.init_data]
        if self.gpus:
            rules += [self.gpus.driver_version, self.gpus.vbios_version, self.gpus.identity]
        reasons = [rule.reason for rule in rules if isinstance(rule, Unchecked)]
        return (*reasons, *([self.gpus.level_reason] if self.gpus and self.gpus.level_reason else []))
