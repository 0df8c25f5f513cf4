"""The collateral of one moment, in memory: what the verifiers look documents up in. Immutable, opens nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType

from cryptography import x509

from attestation.formats.collateral import Document, Kind, usable
from attestation.verify.bundle import BundleInfo


def ocsp_id(serial_number: int) -> str:
    """Id of an OCSP response: the serial number it speaks of. The verifier compares the whole CertID."""
    return f"{serial_number:x}"


def crl_id(issuer_name: x509.Name) -> str:
    """Id of a CRL: SHA-256 of its issuer's DER name."""
    return sha256(issuer_name.public_bytes()).hexdigest()


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

    def vceks(self, chip_id: str) -> tuple[bytes, ...]:
        """AMD leaf certificates of a chip (one per TCB), DER."""
        return self._contents(Kind.VCEK, chip_id.lower())

    def amd_chains(self, product: str) -> tuple[bytes, ...]:
        """AMD CA chains of a product as KDS serves them, PEM."""
        return self._contents(Kind.AMD_CA, product)

    def tdx(self, fmspc: str) -> tuple[bytes, ...]:
        """Intel TDX collateral for a platform family, in the JSON shape of dcap-qvl."""
        return self._contents(Kind.TDX, fmspc.lower())

    def _contents(self, kind: Kind, identifier: str) -> tuple[bytes, ...]:
        return tuple(d.content for d in self.get(kind, identifier))
