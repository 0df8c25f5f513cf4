"""AMD processor generations and their TCB versions (tee.md 1.4, AMD 56860 table 4)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from attestation.errors import Malformed

TCB_BYTES = 8
# Byte offsets of the components; every other byte of the eight is reserved and zero.
_OFFSETS: Mapping[bool, Mapping[str, int]] = {
    False: {"bootloader": 0, "tee": 1, "snp": 6, "microcode": 7},
    True: {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7},
}


class Product(StrEnum):
    """Generations that sign SNP reports; Bergamo and Siena use Genoa's keys."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"

    @property
    def has_fmc(self) -> bool:
        """Whether the TCB has a firmware-module component, and its own byte order: Turin and later."""
        return self is Product.TURIN

    @property
    def chip_id_bytes(self) -> int:
        """Significant bytes of CHIP_ID; the rest is zero."""
        return 8 if self is Product.TURIN else 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tcb:
    """Security version numbers by component. Ordered per component only, never as one number."""

    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None

    def components(self) -> dict[str, int]:
        """Name to number; `fmc` only where the generation has it."""
        named = {"bootloader": self.bootloader, "tee": self.tee, "snp": self.snp, "microcode": self.microcode}
        return named if self.fmc is None else {"fmc": self.fmc} | named

    def below(self, floor: "Tcb") -> tuple[str, ...]:
        """Names of the components that are lower than those of `floor`."""
        mine = self.components()
        return tuple(name for name, least in floor.components().items() if mine.get(name, -1) < least)

    def __str__(self) -> str:
        return " ".join(f"{name}={number}" for name, number in self.components().items())


@lru_cache(maxsize=256)
def parse_tcb(raw: bytes, product: Product, field: str) -> Tcb:
    """TCB_VERSION in the byte order of the generation; reserved bytes must be zero."""
    offsets = _OFFSETS[product.has_fmc]
    if len(raw) != TCB_BYTES or any(raw[i] for i in range(TCB_BYTES) if i not in offsets.values()):
        raise Malformed(
            "snp-tcb-reserved",
            "reserved TCB bytes are not zero",
            where=f"snp.{field}",
            expected=f"{product} layout",
            got=raw.hex(),
        )
    return Tcb(**{name: raw[offset] for name, offset in offsets.items()})


def pack_tcb(*, fmc: int | None, bootloader: int, tee: int, snp: int, microcode: int) -> bytes:
    """The eight bytes of TCB_VERSION; with `fmc` in Turin's byte order. Raises ValueError unless all are bytes."""
    if fmc is None:
        return bytes((bootloader, tee, 0, 0, 0, 0, snp, microcode))
    return bytes((fmc, bootloader, tee, snp, 0, 0, 0, microcode))


def render_tcb(tcb: Tcb) -> bytes:
    """The eight bytes of `tcb`."""
    return pack_tcb(fmc=tcb.fmc, bootloader=tcb.bootloader, tee=tcb.tee, snp=tcb.snp, microcode=tcb.microcode)


def product_of(family: int, model: int) -> Product | None:
    """Generation by CPUID family and model (both with their extended parts), None when it is not known."""
    if family == 0x19:
        if model <= 0x0F:
            return Product.MILAN
        if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:
            return Product.GENOA
    if family == 0x1A and model <= 0x11:
        return Product.TURIN
    return None
