"""What AMD's leaf certificates say about a chip: product, TCB, hardware id, provider (tee.md 1.5, AMD 57230)."""

from dataclasses import dataclass

from attestation.errors import Malformed, Untrusted
from attestation.formats import der
from attestation.formats.der import Certificate
from attestation.formats.snp_tcb import Product, Tcb
from attestation.verify.snp_trust import LeafKind

_ARC = "1.3.6.1.4.1.3704.1"
_SPL = {"bootloader": "3.1", "tee": "3.2", "snp": "3.3", "microcode": "3.8", "fmc": "3.9"}
_RESERVED_SPL = ("3.4", "3.5", "3.6", "3.7")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafFacts:
    """AMD's extensions of a VCEK or VLEK. Only as true as the signature over the certificate."""

    tcb: Tcb
    chip_id: bytes | None  # None for VLEK
    csp_id: str  # empty for VCEK


def leaf_facts(leaf: Certificate, product: Product, kind: LeafKind) -> LeafFacts:
    """Read and cross-check the extensions. Raises Malformed and Untrusted."""
    name = der.parse_text(_single(_required(leaf, "2")))
    if name.partition("-")[0] != product:
        raise Untrusted(
            "snp-product-mismatch", "leaf names another product", where="productName", expected=product, got=name
        )
    return LeafFacts(
        tcb=_leaf_tcb(leaf, product),
        chip_id=_hwid(leaf, product) if kind is LeafKind.VCEK else None,
        csp_id=der.parse_text(_single(_required(leaf, "5"))) if kind is LeafKind.VLEK else "",
    )


def _single(value: bytes) -> der.Element:
    members = der.parse_members(value)
    if len(members) != 1:
        raise Malformed("der", "not one element", where="extension", expected=1, got=len(members))
    return members[0]


def _required(leaf: Certificate, suffix: str) -> bytes:
    extension = leaf.extensions.get(f"{_ARC}.{suffix}")
    if extension is None:
        raise Untrusted("snp-leaf-extension", "leaf lacks an extension", where=leaf.subject_cn, expected=suffix)
    return extension.value


def _leaf_tcb(leaf: Certificate, product: Product) -> Tcb:
    def number(suffix: str) -> int:
        value = der.parse_integer(_single(_required(leaf, suffix)))
        if value > 255:
            raise Malformed("snp-spl", "SPL is not a byte", where=suffix, expected="0..255", got=value)
        return value

    for suffix in _RESERVED_SPL:
        if f"{_ARC}.{suffix}" in leaf.extensions and number(suffix) != 0:
            raise Untrusted("snp-spl-reserved", "reserved SPL is not zero", where=suffix, expected=0)
    if not product.has_fmc and f"{_ARC}.{_SPL['fmc']}" in leaf.extensions:
        raise Untrusted("snp-leaf-extension", "this product has no fmcSPL", where=leaf.subject_cn, got=_SPL["fmc"])
    return Tcb(**{name: number(suffix) for name, suffix in _SPL.items() if name != "fmc" or product.has_fmc})


def _hwid(leaf: Certificate, product: Product) -> bytes:
    """HWID is raw bytes in old leaves and a DER OCTET STRING in new ones; the two lengths cannot be confused."""
    value, size = _required(leaf, "4"), product.chip_id_bytes
    if len(value) == size + 2:
        value = der.parse_element(value, der.OCTET_STRING).content
    if len(value) != size:
        raise Untrusted("snp-hwid", "HWID has the wrong length", where=product, expected=size, got=len(value))
    return value.ljust(64, b"\0")
