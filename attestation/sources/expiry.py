"""When a stored document stops being usable, read from the document itself, unverified: for listings and reminders."""

import base64
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509 import ocsp

from attestation.errors import Malformed
from attestation.formats import der
from attestation.formats.collateral import Document, Kind
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.formats.rim_signature import parse_signed_rim
from attestation.verify.unreadable import UNREADABLE

_MAX_JSON = 1024 * 1024


def expiry_of(document: Document) -> datetime | None:
    """The earliest end that the document names, None where it names none. Raises Malformed."""
    try:
        return _READERS[document.kind](document.content)
    except (KeyError, IndexError, *UNREADABLE) as exc:
        raise Malformed("collateral-unreadable", "cannot read its end", where=f"{document.kind} {document.id}") from exc


def _rim(content: bytes) -> datetime | None:
    return min(x509.load_der_x509_certificate(c).not_valid_after_utc for c in parse_signed_rim(content).certificates)


def _ocsp(content: bytes) -> datetime | None:
    ends = [single.next_update_utc for single in ocsp.load_der_ocsp_response(content).responses]
    return min((end for end in ends if end is not None), default=None)


def _crl(content: bytes) -> datetime | None:
    return x509.load_der_x509_crl(content).next_update_utc


def _vcek(content: bytes) -> datetime | None:
    return der.parse_certificate(content).not_after  # serial number 0 keeps these out of x509


def _pem_chain(content: bytes) -> datetime | None:
    return min(c.not_valid_after_utc for c in x509.load_pem_x509_certificates(content))


def _tdx(content: bytes) -> datetime | None:
    members = require_object(parse_json(content, max_bytes=_MAX_JSON, what="collateral"), "collateral")
    ends = [
        datetime.fromisoformat(require_text(json.loads(members[name])["nextUpdate"], name)).astimezone(UTC)
        for name in ("tcb_info", "qe_identity")
    ]
    crls = (x509.load_der_x509_crl(bytes.fromhex(members[name])) for name in ("pck_crl", "root_ca_crl"))
    return min([*ends, *(c.next_update_utc for c in crls if c.next_update_utc is not None)])


def _jwks(content: bytes) -> datetime | None:
    keys = json.loads(content)["keys"]
    leaves = [x509.load_der_x509_certificate(base64.b64decode(key["x5c"][0])) for key in keys if "x5c" in key]
    return min((leaf.not_valid_after_utc for leaf in leaves), default=None)


_READERS: Mapping[Kind, Callable[[bytes], datetime | None]] = {
    Kind.RIM: _rim,
    Kind.OCSP: _ocsp,
    Kind.CRL: _crl,
    Kind.VCEK: _vcek,
    Kind.AMD_CA: _pem_chain,
    Kind.TDX: _tdx,
    Kind.JWKS: _jwks,
}
