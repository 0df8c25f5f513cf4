"""GPUs and NVSwitches: family, capabilities and CC mode. The capability table is `data/devices.toml`."""

import functools
import pkgutil
import tomllib
from dataclasses import dataclass
from enum import StrEnum

from kata_gpu.core.pci import PciFunction

NVIDIA = 0x10DE


class CcMode(StrEnum):
    """CC mode of a device. On Hopper `ppcie` protects PCIe of a whole HGX board; `devtools` is never attestable."""

    OFF = "off"
    ON = "on"
    DEVTOOLS = "devtools"
    PPCIE = "ppcie"


class Kind(StrEnum):
    """What the device is."""

    GPU = "gpu"
    NVSWITCH = "nvswitch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One row of the capability table."""

    architecture: str
    chip: str
    kind: Kind
    ids: tuple[int, int]
    modes: frozenset[CcMode]
    registers: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a device id stands for. `known` is False for a new id inside a known range: usable, with a warning."""

    family: Family | None
    product: str
    known: bool
    firmware_owned: bool


@functools.cache
def _table() -> tuple[tuple[Family, ...], dict[int, str], frozenset[int]]:
    data = pkgutil.get_data("kata_gpu.core.data", "devices.toml")
    assert data is not None
    table = tomllib.loads(data.decode())
    families = tuple(
        Family(
            architecture=row["architecture"],
            chip=row["chip"],
            kind=Kind(row["kind"]),
            ids=(row["ids"][0], row["ids"][1]),
            modes=frozenset(CcMode(m) for m in row["modes"]),
            registers=row["registers"],
        )
        for row in table["family"]
    )
    products = {int(device, 16): name for device, name in table["products"].items()}
    return families, products, frozenset(table["firmware_owned"]["ids"])


@functools.cache
def model_of(device_id: int) -> Model:
    """Look an NVIDIA device id up."""
    families, products, firmware_owned = _table()
    family = next((f for f in families if f.ids[0] <= device_id <= f.ids[1]), None)
    name = products.get(device_id)
    fallback = f"{family.chip} {device_id:04x}" if family else f"NVIDIA {device_id:04x}"
    return Model(
        family=family, product=name or fallback, known=name is not None, firmware_owned=device_id in firmware_owned
    )


def kind_of(function: PciFunction) -> Kind | None:
    """GPU: display controller of NVIDIA. NVSwitch: its `other bridge` (0x0680). None for anything else."""
    if function.vendor != NVIDIA:
        return None
    match function.class_code >> 8:
        case 0x0300 | 0x0302:
            return Kind.GPU
        case 0x0680:
            return Kind.NVSWITCH
        case _:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuDevice:
    """One passthrough unit: the function, and the companions that must go to VFIO with it.

    `cc_mode` is None where it has not been read or cannot be (not capable, held, dead); `problem` then says why.
    """

    function: PciFunction
    kind: Kind
    architecture: str
    product: str
    cc_capable: bool
    ppcie_capable: bool
    cc_mode: CcMode | None = None
    companions: tuple[PciFunction, ...] = ()
    problem: str = ""

    @property
    def name(self) -> str:
        """Stable name in CDI and DRA, from the address alone: `gpu-0000-17-00-0`."""
        return f"{self.kind}-{self.function.address.label}"

    @property
    def modes(self) -> frozenset[CcMode]:
        """CC modes this device can be put in."""
        family = model_of(self.function.device).family
        return family.modes if family is not None and not model_of(self.function.device).firmware_owned else frozenset()

    @property
    def unit(self) -> tuple[PciFunction, ...]:
        """Every function that is bound and passed through together, the device first."""
        return (self.function, *self.companions)

    @property
    def bound(self) -> bool:
        """Whether the device is on VFIO and nothing in its group prevents its use."""
        return self.function.on_vfio and not any(f.blocks_group for f in self.companions)
