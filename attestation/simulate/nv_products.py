"""What the forged devices of each architecture are: names, versions, and the indices of their reference documents."""

from collections.abc import Mapping
from dataclasses import dataclass

from attestation.values import Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """Constants of one architecture: its names, its versions, and which indices its reference documents have."""

    chip: str
    firmware: str
    kind: int  # first byte of a BROM serial number
    blocks: int
    driver: str
    vbios: str
    project: str
    project_sku: str
    chip_sku: str
    rim_product: str
    driver_indices: tuple[int, ...]
    vbios_indices: tuple[int, ...]

    @property
    def driver_rim(self) -> str:
        """Id of the driver document."""
        cc = "CC_" if self.rim_product.startswith("GB") else ""
        return f"NV_GPU_{cc}DRIVER_{self.rim_product}_{self.driver}"

    @property
    def vbios_rim(self) -> str:
        """Id of the VBIOS or BIOS document."""
        kind = "SWITCH_BIOS" if self.rim_product == "LS10" else "GPU_VBIOS"
        version = self.vbios.replace(".", "")
        return f"NV_{kind}_{self.project}_{self.project_sku}_{self.chip_sku}_{version}"


PRODUCTS: Mapping[Architecture, Product] = {
    Architecture.HOPPER: Product(
        chip="GH100", firmware="A01 GSP", kind=0x41, blocks=64, driver="590.12", vbios="96.00.A5.00.01",
        project="G520", project_sku="0200", chip_sku="885", rim_product="GH100",
        driver_indices=(7, *range(21, 41)), vbios_indices=(*range(7), *range(8, 13)),
    ),
    Architecture.BLACKWELL: Product(
        chip="GB100", firmware="A01 GSP", kind=0x41, blocks=64, driver="590.12", vbios="97.00.88.00.0F",
        project="G525", project_sku="0220", chip_sku="886", rim_product="GB100",
        driver_indices=tuple(range(21, 41)), vbios_indices=(*range(14), *range(15, 21)),
    ),
    Architecture.LS10: Product(
        chip="LS_10", firmware="A01 FSP", kind=0x50, blocks=31, driver="", vbios="96.10.73.00.01",
        project="5612", project_sku="0002", chip_sku="890", rim_product="LS10",
        driver_indices=(), vbios_indices=tuple(range(31)),
    ),
}  # fmt: skip
