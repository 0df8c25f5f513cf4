"""Fetching CRLs from the distribution points that a certificate names; only listed origins are asked."""

from datetime import datetime

from cryptography import x509

from attestation.errors import Malformed
from attestation.formats.collateral import Document, Kind
from attestation.sources.collateral import crl_id
from attestation.sources.http import Fetcher
from attestation.verify.crl import MAX_CRL_BYTES, read_crl
from attestation.verify.unreadable import UNREADABLE

MAX_POINTS = 4  # genuine certificates name one


def distribution_points(certificate: x509.Certificate) -> tuple[str, ...]:
    """URLs of a certificate's CRLs, http and https, in its order. Raises Malformed."""
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return ()
    except UNREADABLE as exc:
        raise Malformed("crl-points", "unreadable extensions", got=str(exc)) from exc
    urls = [
        name.value
        for point in points
        for name in point.full_name or ()
        if isinstance(name, x509.UniformResourceIdentifier)
    ]
    return tuple(url for url in urls if url.startswith(("http://", "https://")))[:MAX_POINTS]


def crl_document(der: bytes, issuer: x509.Certificate, *, now: datetime, source: str) -> Document:
    """A CRL to be stored. What is in it is judged when it is used, the id is the issuer's name."""
    return Document(kind=Kind.CRL, id=crl_id(issuer.subject), content=der, first_seen=now, source=source)


def fetch_crl(
    fetcher: Fetcher, certificate: x509.Certificate, issuer: x509.Certificate, url: str, *, now: datetime
) -> Document:
    """The CRL at `url`, verified to be one of `issuer` that covers `certificate`. Raises Unavailable and the like."""
    body = fetcher.get(url, max_bytes=MAX_CRL_BYTES).body
    read_crl(body, certificate=certificate, issuer=issuer, now=now)
    return crl_document(body, issuer, now=now, source=url)
