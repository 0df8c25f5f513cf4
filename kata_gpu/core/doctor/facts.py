"""What the checks look at: one frozen snapshot of a host. None means "could not be read", never "no"."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kata_gpu.core.filekind import FileKind
from kata_gpu.core.gpu import Kind, kind_of
from kata_gpu.core.kata.effective import Effective
from kata_gpu.core.pci import PciAddress, PciFunction

Document = Mapping[str, Any]  # a parsed TOML, YAML or JSON file of somebody else's making
NOTHING: Document = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One line of `resource`: start 0 means that firmware or kernel found no address for it."""

    index: int
    start: int
    end: int
    flags: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PciFacts:
    """A PCI function with what only doctor needs: link, power, resets, BAR placement, ACS of the ports above it."""

    function: PciFunction
    alive: bool | None = None
    bars: tuple[Bar, ...] = ()
    override: str | None = None
    has_reset: bool = False
    link: tuple[str, str] = ("", "")
    link_max: tuple[str, str] = ("", "")
    power_control: str = ""
    d3cold_allowed: bool = False
    slot_cuts_power: bool = False
    ari: bool | None = None
    ports: tuple["PortFacts", ...] = ()

    @property
    def kind(self) -> Kind | None:
        """GPU, NVSwitch or neither."""
        return kind_of(self.function)

    def __str__(self) -> str:
        return str(self.function.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortFacts:
    """A bridge above a device. `acs` is the ACS control register; None where the port has none or root is needed."""

    address: PciAddress
    acs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFacts:
    """Processor and memory."""

    arch: str = ""
    vendor: str = ""
    flags: frozenset[str] = frozenset()
    smt: bool | None = None
    memory_mib: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """The running kernel. `parameters` maps "kvm_amd/sev_snp" to its text; `log` is the kernel log, bounded."""

    release: str = ""
    cmdline: tuple[str, ...] = ()
    config: Mapping[str, str] | None = None
    loaded: frozenset[str] | None = None
    present: frozenset[str] = frozenset()
    parameters: Mapping[str, str] = field(default_factory=dict)
    log: tuple[str, ...] | None = None
    lockdown: str | None = None
    secure_boot: bool | None = None
    interrupts_remapped: bool | None = None
    hibernation: str | None = None
    iomem: tuple[tuple[int, int, str], ...] = ()
    pci_drivers: frozenset[str] = frozenset()

    def option(self, name: str) -> str | None:
        """Value of a command line option, "" for a bare word, None when absent; the last one wins."""
        for word in reversed(self.cmdline):
            key, _, value = word.partition("=")
            if key == name:
                return value
        return None

    def says(self, *needles: str) -> str | None:
        """The first kernel log line that holds one of the texts, compared without case."""
        wanted = [n.lower() for n in needles]
        for line in self.log or ():
            low = line.lower()
            if any(n in low for n in wanted):
                return line.strip()
        return None

    def on(self, parameter: str) -> bool | None:
        """A boolean module parameter; None when the module or the parameter is not there."""
        value = self.parameters.get(parameter)
        return None if value is None else value.strip() in {"Y", "1", "y"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """One process that matters here: by its name, or because it holds an NVIDIA or VFIO device."""

    pid: int
    name: str
    arguments: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    memlock: str | None = None

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


@dataclass(frozen=True, slots=True, kw_only=True)
class CdiFacts:
    """One CDI file: qualified device names with the device nodes each injects, or why it could not be read."""

    path: str
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubeletFacts:
    """Kubelet and the view that the node may have of its cluster. `root` is the real one, wherever it lives."""

    version: str | None = None
    root: str = "/var/lib/kubelet"
    flavour: str = "kubelet"
    config: Document | None = None
    flags: Mapping[str, str] = field(default_factory=dict)
    runtime_classes: tuple[Document, ...] | None = None
    labels: Mapping[str, str] | None = None
    allocatable_mib: int | None = None
    pods: tuple[str, ...] = ()

    @property
    def gates(self) -> Mapping[str, bool]:
        """Feature gates from the configuration file, then from the command line, which wins."""
        raw = (self.config or NOTHING).get("featureGates")
        gates = {str(k): v is True for k, v in raw.items()} if isinstance(raw, Mapping) else {}
        for pair in self.flags.get("feature-gates", "").split(","):
            name, sep, value = pair.partition("=")
            if sep:
                gates[name.strip()] = value.strip().lower() == "true"
        return gates

    def setting(self, key: str, flag: str) -> str | None:
        """A scalar setting: the flag wins over the configuration file."""
        if flag in self.flags:
            return self.flags[flag]
        value = (self.config or NOTHING).get(key)
        return None if value is None else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerdFacts:
    """containerd: `main` is its own file as written; `effective` also holds what it imports."""

    version: str | None = None
    main: Document | None = None
    effective: Document = field(default_factory=dict)
    dropins: tuple[str, ...] = ()
    imported: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class KataFacts:
    """Kata configuration of one handler; `effective` is None where it could not be read, and `problem` says why.

    `artefacts` are the files it names (VMM, kernel, images, firmware), each with whether it is there and not empty.
    """

    handler: str
    path: str
    effective: Effective | None = None
    artefacts: Mapping[str, bool] = field(default_factory=dict)
    problem: str = ""
    qemu_version: str | None = None

    def get(self, key: str) -> Any:
        """Value of a dotted key, None where it is not set."""
        origin = self.effective.get(key) if self.effective is not None else None
        return None if origin is None else origin.value


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Everything at once. `nodes` maps every path that a check asks about to what is there.

    `adopted` are the devices that this toolkit took over in this boot, `last_failure` why its last change failed.
    """

    cpu: CpuFacts = CpuFacts()
    kernel: KernelFacts = KernelFacts()
    pci: tuple[PciFacts, ...] = ()
    iommus: tuple[str, ...] = ()
    group_types: Mapping[int, str] = field(default_factory=dict)
    nodes: Mapping[str, FileKind | None] = field(default_factory=dict)
    usable: Mapping[str, bool | None] = field(default_factory=dict)
    listings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    misc: Mapping[str, tuple[int | None, int]] | None = None
    clock_synchronised: bool | None = None
    adopted: frozenset[str] = frozenset()
    last_failure: str = ""
    processes: tuple[ProcessFacts, ...] = ()
    kubelet: KubeletFacts = KubeletFacts()
    containerd: ContainerdFacts = ContainerdFacts()
    kata: tuple[KataFacts, ...] = ()
    cdi: tuple[CdiFacts, ...] = ()
    brokers: tuple[str, ...] = ()
    pccs: str | None = None
    reach: Mapping[str, str] = field(default_factory=dict)
    tools: Mapping[str, str | None] = field(default_factory=dict)

    @property
    def gpus(self) -> tuple[PciFacts, ...]:
        """NVIDIA GPUs."""
        return tuple(p for p in self.pci if p.kind is Kind.GPU)

    @property
    def devices(self) -> tuple[PciFacts, ...]:
        """NVIDIA GPUs and NVSwitches."""
        return tuple(p for p in self.pci if p.kind is not None)

    def there(self, path: str) -> bool:
        """Whether anything is at a path that was asked about."""
        return self.nodes.get(path) is not None

    def matching(self, *names: str) -> tuple[ProcessFacts, ...]:
        """Processes of these names."""
        return tuple(p for p in self.processes if p.name in names)
