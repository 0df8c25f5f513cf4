"""Collateral vocabulary: one stored document, its kind, its name and its digest. No cryptography, no I/O.

Reference values change under one id (gpu-attestation.md 3.5), so a document is known by (kind, id, sha256) and
several may share an id.
"""

import hashlib
import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from attestation.errors import Malformed

_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")  # gpu-attestation.md 3.1; no leading dot: ids name files
_KIB = 1024


class Kind(StrEnum):
    """What a document is; its id is named beside it."""

    RIM = "rim"  # NVIDIA reference values: RIM id
    OCSP = "ocsp"  # serial number of the certificate, hex
    CRL = "crl"  # SHA-256 of the issuer's DER name, hex
    VCEK = "vcek"  # AMD chip id, hex
    AMD_CA = "amd-ca"  # AMD product, as in KDS URLs
    TDX = "tdx"  # FMSPC, hex
    JWKS = "jwks"  # name of the token issuer


class State(StrEnum):
    """`retired` documents are kept and never used; where an id has `pinned` ones, only those are used."""

    ACTIVE = "active"
    RETIRED = "retired"
    PINNED = "pinned"


MAX_DOCUMENT_BYTES = {
    Kind.RIM: 256 * _KIB,  # genuine: 18-26 kB
    Kind.OCSP: 64 * _KIB,
    Kind.CRL: 4 * _KIB * _KIB,
    Kind.VCEK: 16 * _KIB,  # genuine: 1.3 kB
    Kind.AMD_CA: 64 * _KIB,
    Kind.TDX: 1024 * _KIB,  # genuine: 20-60 kB
    Kind.JWKS: 256 * _KIB,
}


def require_id(text: str, *, where: str = "collateral id") -> str:
    """`text` if it may name a document: ids come from attacker-controlled bytes and go into paths and URLs."""
    if not _ID.fullmatch(text):
        raise Malformed(
            "collateral-id", "unusable id", where=where, expected="1-128 of A-Z a-z 0-9 . _ -", got=repr(text[:140])
        )
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document of bounded size with a usable id. `first_seen` is when this site, or its bundle, first had it."""

    kind: Kind
    id: str
    content: bytes = field(repr=False)
    first_seen: datetime
    source: str  # where it came from: a URL, a file name
    state: State = State.ACTIVE

    def __post_init__(self) -> None:
        require_id(self.id)
        limit = MAX_DOCUMENT_BYTES[self.kind]
        if not 0 < len(self.content) <= limit:
            raise Malformed(
                "collateral-size",
                "bad document size",
                where=f"{self.kind} {self.id}",
                expected=f"1 to {limit} bytes",
                got=len(self.content),
            )
        if self.first_seen.utcoffset() != timedelta(0):
            raise Malformed("collateral-time", "first-seen time is not UTC", where=f"{self.kind} {self.id}")

    @property
    def sha256(self) -> str:
        """Hex digest of the content: the second half of the document's name."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def name(self) -> tuple[str, str, str]:
        """(kind, id, sha256), the order of bundles and listings."""
        return (self.kind, self.id, self.sha256)


def usable(documents: tuple[Document, ...]) -> tuple[Document, ...]:
    """Of the documents of one id: the pinned ones if there are any, else those not retired."""
    pinned = tuple(d for d in documents if d.state is State.PINNED)
    return pinned or tuple(d for d in documents if d.state is State.ACTIVE)
