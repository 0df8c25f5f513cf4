"""Whom to believe about SNP, and where further certificates come from: pinned roots, collateral, chain rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

from attestation.formats.snp_tcb import Product


class LeafKind(StrEnum):
    """Which key signed the report: the chip's own, or one that AMD issued to a cloud provider."""

    VCEK = "vcek"
    VLEK = "vlek"


class CrlMode(StrEnum):
    """What to do about AMD's revocation list, which covers ASK and ASVK."""

    REQUIRE = "require"
    IF_PRESENT = "if-present"
    OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdTrust:
    """SHA-256 of the SubjectPublicKeyInfo of each product's ARK. `simulated` marks roots that no chip has."""

    ark_keys: Mapping[Product, str]
    simulated: bool = False

    @classmethod
    def production(cls) -> "AmdTrust":
        """AMD's roots, from https://kdsintf.amd.com/vcek/v1/{product}/cert_chain."""
        return cls(
            ark_keys={
                Product.MILAN: "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9",
                Product.GENOA: "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831",
                Product.TURIN: "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08",
            }
        )


class AmdCollateral(Protocol):
    """What a verifier may need beyond the evidence; freshness and truth are judged here, not by the source."""

    def veks(self, *, chip_id: bytes, reported_tcb: bytes, product: Product | None) -> Sequence[bytes]:
        """Candidate leaves, DER or PEM, for this chip at this TCB; `product` is None for version 2 reports."""

    def authorities(self, product: Product) -> Sequence[bytes]:
        """ARK, ASK and ASVK certificates, DER or PEM, in any order."""

    def crl(self, product: Product, kind: LeafKind) -> bytes | None:
        """AMD's DER revocation list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticAmdCollateral:
    """Collateral given by hand: for command lines and tests."""

    leaves: Sequence[bytes] = ()
    chain: Sequence[bytes] = ()
    crls: Mapping[tuple[Product, LeafKind], bytes] = field(default_factory=dict)

    def veks(self, *, chip_id: bytes, reported_tcb: bytes, product: Product | None) -> Sequence[bytes]:  # noqa: ARG002
        """All leaves given; the verifier finds the one that fits."""
        return self.leaves

    def authorities(self, product: Product) -> Sequence[bytes]:  # noqa: ARG002
        """All authorities given."""
        return self.chain

    def crl(self, product: Product, kind: LeafKind) -> bytes | None:
        """The list for this product and kind, if given."""
        return self.crls.get((product, kind))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainRules:
    """What an operator may set about the chain. `vcek_grace` tolerates a VCEK past its date; a VLEK never is."""

    crl: CrlMode = CrlMode.IF_PRESENT
    vcek_grace: timedelta = timedelta(0)
