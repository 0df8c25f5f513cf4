"""Asking NVIDIA's OCSP responder, gpu-attestation.md 2.4: one certificate a request, SHA-384 CertID, 32-byte nonce.

An answer is kept only if it was evaluated at once, against the nonce that was sent; what it says is kept whatever it
is, so that a revocation reaches the sites without a network as well.
"""

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from attestation.errors import Untrusted
from attestation.formats.collateral import Document, Kind
from attestation.sources.collateral import ocsp_id
from attestation.sources.http import Fetcher
from attestation.verify.ocsp import MAX_OCSP_BYTES, read_ocsp

OCSP_SERVICE = "https://ocsp.ndis.nvidia.com/"
NONCE_BYTES = 32  # RFC 9654


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and the one that issued it."""

    certificate: x509.Certificate
    issuer: x509.Certificate


def ocsp_request(pair: Pair, nonce: bytes | None) -> bytes:
    """DER of a request for one certificate."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(pair.certificate, pair.issuer, hashes.SHA384())
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def fetch_ocsp(
    fetcher: Fetcher, pair: Pair, *, nonce: bytes | None, now: datetime, service: str = OCSP_SERVICE
) -> Document:
    """A fresh, evaluated answer about `pair`. Raises Unavailable, Malformed or Untrusted; nothing is kept then.

    `nonce`: 32 random bytes, or None for responders that refuse nonces (freshness then rests on thisUpdate alone).
    """
    answer = fetcher.post(
        service, ocsp_request(pair, nonce), content_type="application/ocsp-request", max_bytes=MAX_OCSP_BYTES
    )
    statement, _ = read_ocsp(answer.body, certificate=pair.certificate, issuer=pair.issuer, now=now, nonce=nonce)
    if statement.until is not None and statement.until < now:
        raise Untrusted("ocsp-stale", "the responder sent an expired answer", where=service, got=statement.until)
    return Document(
        kind=Kind.OCSP,
        id=ocsp_id(pair.certificate.serial_number),
        content=answer.body,
        first_seen=now,
        source=service,
    )
