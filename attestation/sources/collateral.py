"""The collateral of one moment, in memory: what the verifiers look documents up in. Immutable, opens nothing."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from types import MappingProxyType

from cryptography import x509

from attestation.formats.collateral import Document, Kind, usable
from attestation.formats.snp_tcb import Product
from attestation.verify.bundle import BundleInfo
from attestation.verify.snp_trust import LeafKind


def ocsp_id(serial_number: int) -> str:
    """Id of an OCSP response: the serial number it speaks of. The verifier compares the whole CertID."""
    return f"{serial_number:x}"


def crl_id(issuer_name: x509.Name) -> str:
    """Id of a CRL: SHA-256 of its issuer's DER name."""
    return sha256(issuer_name.public_bytes()).hexdigest()


def chain_id(product: Product, kind: LeafKind) -> str:
    """Id of an AMD CA chain."""
    return f"{product}-{kind}"


def amd_crl_id(product: Product, kind: LeafKind) -> str:
    """Id of AMD's CRL: both of a product carry the ARK's name, so the name alone would not do."""
    return f"amd-{product}-{kind}"


@dataclass(frozen=True, slots=True)
class Collateral:
    """Documents by kind and id, and the bundle they came with. Newest first within one id."""

    documents: Mapping[tuple[Kind, str], tuple[Document, ...]] = field(repr=False)
    bundle: BundleInfo | None = None

    @classmethod
    def of(cls, documents: Iterable[Document], bundle: BundleInfo | None = None) -> "Collateral":
        """Build from any iterable; retired documents are left out, and pinned ones exclude the others of their id."""
        by_id: dict[tuple[Kind, str], list[Document]] = {}
        for document in documents:
            by_id.setdefault((document.kind, document.id), []).append(document)
        usable_by_id = {
            key: usable(tuple(sorted(found, key=lambda d: (d.first_seen, d.sha256), reverse=True)))
            for key, found in by_id.items()
        }
        return cls(MappingProxyType({key: found for key, found in usable_by_id.items() if found}), bundle)

    def digest(self) -> str:
        """Names this very set of usable documents, for the audit log."""
        listed = sorted(f"{kind}/{name}/{d.sha256}" for (kind, name), found in self.documents.items() for d in found)
        return "sha256:" + hashlib.sha256("\n".join(listed).encode()).hexdigest()

    def get(self, kind: Kind, identifier: str) -> tuple[Document, ...]:
        """Every usable document of an id."""
        return self.documents.get((kind, identifier), ())

    def ids(self, kind: Kind) -> tuple[str, ...]:
        """Ids of a kind that have a usable document, sorted."""
        return tuple(sorted(i for k, i in self.documents if k is kind))

    def rims(self, rim_id: str) -> tuple[bytes, ...]:
        """NVIDIA reference documents of one id."""
        return self._contents(Kind.RIM, rim_id)

    def ocsp_responses(self, certificate: x509.Certificate, issuer: x509.Certificate) -> tuple[bytes, ...]:  # noqa: ARG002
        """Stored OCSP responses about a serial number; the evaluation compares issuers."""
        return self._contents(Kind.OCSP, ocsp_id(certificate.serial_number))

    def crls(self, issuer: x509.Certificate) -> tuple[bytes, ...]:
        """Stored CRLs under the issuer's name."""
        return self._contents(Kind.CRL, crl_id(issuer.subject))

    def first_seen(self) -> dict[str, datetime]:
        """When each reference document was first seen, by SHA-256: for the `valid-at-first-seen` policy."""
        return {
            d.sha256: d.first_seen for (kind, _), found in self.documents.items() if kind is Kind.RIM for d in found
        }

    def veks(self, *, chip_id: bytes, reported_tcb: bytes, product: Product | None) -> tuple[bytes, ...]:  # noqa: ARG002
        """AMD leaf certificates of a chip, one per TCB, DER. Turin's ids have 8 significant bytes of 64."""
        short = product.chip_id_bytes if product else Product.TURIN.chip_id_bytes
        ids = [chip_id.hex()] if any(chip_id[short:]) else [chip_id.hex(), chip_id[:short].hex()]
        return tuple(der for identifier in dict.fromkeys(ids) for der in self._contents(Kind.VCEK, identifier))

    def authorities(self, product: Product) -> tuple[bytes, ...]:
        """AMD CA certificates of a product as KDS serves them, PEM."""
        return tuple(pem for kind in LeafKind for pem in self._contents(Kind.AMD_CA, chain_id(product, kind)))

    def crl(self, product: Product, kind: LeafKind) -> bytes | None:
        """AMD's newest CRL for a product."""
        return next(iter(self._contents(Kind.CRL, amd_crl_id(product, kind))), None)

    def tdx(self, fmspc: str) -> tuple[bytes, ...]:
        """Intel TDX collateral for a platform family, in the JSON shape of dcap-qvl."""
        return self._contents(Kind.TDX, fmspc.lower())

    def _contents(self, kind: Kind, identifier: str) -> tuple[bytes, ...]:
        return tuple(d.content for d in self.get(kind, identifier))
