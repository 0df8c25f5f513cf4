"""AMD's key distribution service and trustee's offline copy of it (tee.md 1.6, 1.7): URLs, ids, documents.

Nothing here is believed: leaves chain to pinned roots, CRLs to the ARK, when they are used.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from attestation.errors import Malformed, Misconfigured
from attestation.formats.collateral import MAX_DOCUMENT_BYTES, Document, Kind
from attestation.formats.der import parse_certificate
from attestation.formats.snp_tcb import Product, Tcb
from attestation.sources.atomic import read_bounded
from attestation.sources.collateral import amd_crl_id, chain_id
from attestation.sources.http import Fetcher
from attestation.verify.snp_trust import LeafKind

KDS = "https://kdsintf.amd.com"
MAX_CHIPS = 10_000  # directories of an offline copy
_ENDORSEMENTS = MAX_DOCUMENT_BYTES[Kind.VCEK]


def hwid(chip_id: bytes, product: Product) -> str:
    """HWID as KDS and offline copies spell it: lower-case hex of the significant bytes. Raises Malformed."""
    if len(chip_id) not in {product.chip_id_bytes, 64} or any(chip_id[product.chip_id_bytes :]):
        raise Malformed("amd-chip-id", "not a chip id of this product", where=str(product), got=chip_id.hex()[:140])
    return chip_id[: product.chip_id_bytes].hex()


def vcek_url(product: Product, chip_id: bytes, tcb: Tcb) -> str:
    """Where the VCEK of a chip at a TCB is."""
    spls = [f"blSPL={tcb.bootloader:02d}", f"teeSPL={tcb.tee:02d}", f"snpSPL={tcb.snp:02d}"]
    spls += [f"ucodeSPL={tcb.microcode:02d}"] + ([f"fmcSPL={tcb.fmc:02d}"] if tcb.fmc is not None else [])
    return f"{KDS}/vcek/v1/{product}/{hwid(chip_id, product)}?{'&'.join(spls)}"


def chain_url(product: Product, kind: LeafKind) -> str:
    """Where ASK (or ASVK) and ARK are, PEM."""
    return f"{KDS}/{kind}/v1/{product}/cert_chain"


def crl_url(product: Product, kind: LeafKind) -> str:
    """Where the product's CRL is, DER."""
    return f"{KDS}/{kind}/v1/{product}/crl"


def vcek_document(der: bytes, identifier: str, *, now: datetime, source: str) -> Document:
    """A leaf to be stored under its chip's id; it must at least be a certificate. Raises Malformed."""
    parse_certificate(der)
    return Document(kind=Kind.VCEK, id=identifier.lower(), content=der, first_seen=now, source=source)


def fetch_vcek(
    fetcher: Fetcher, product: Product, chip_id: bytes, tcb: Tcb, *, now: datetime, url: str | None = None
) -> Document:
    """The VCEK of one chip at one TCB. KDS limits questions per address: ask once, keep it (tee.md 1.7)."""
    where = url or vcek_url(product, chip_id, tcb)
    body = fetcher.get(where, max_bytes=_ENDORSEMENTS).body
    return vcek_document(body, hwid(chip_id, product), now=now, source=where)


def fetch_authorities(
    fetcher: Fetcher, product: Product, kind: LeafKind, *, now: datetime
) -> tuple[Document, Document]:
    """CA chain and CRL of a product."""
    chain, crl = chain_url(product, kind), crl_url(product, kind)
    return (
        Document(
            kind=Kind.AMD_CA,
            id=chain_id(product, kind),
            content=fetcher.get(chain, max_bytes=MAX_DOCUMENT_BYTES[Kind.AMD_CA]).body,
            first_seen=now,
            source=chain,
        ),
        Document(
            kind=Kind.CRL,
            id=amd_crl_id(product, kind),
            content=fetcher.get(crl, max_bytes=MAX_DOCUMENT_BYTES[Kind.CRL]).body,
            first_seen=now,
            source=crl,
        ),
    )


def read_offline_copy(root: Path, *, now: datetime) -> Iterator[Document]:
    """Documents of trustee's layout `vcek/HWID/*.der`. Raises Misconfigured and Malformed; file names prove nothing."""
    chips = sorted(path for path in (root / "vcek").glob("*") if path.is_dir())
    if not 0 < len(chips) <= MAX_CHIPS:
        raise Misconfigured(
            "kds-layout", "not an offline copy of KDS", where=str(root), expected=f"1 to {MAX_CHIPS} vcek/HWID/",
            got=len(chips),
        )  # fmt: skip
    for chip in chips:
        for path in sorted(chip.glob("*.der")):
            yield vcek_document(read_bounded(path, _ENDORSEMENTS), chip.name, now=now, source=path.name)
