"""NVIDIA's RIM service, gpu-attestation.md 3.1: URL building and what its JSON must say.

The answer is transport, not proof: its `id` and `sha256` are compared because neither NVIDIA client does, and the
document inside is believed only after its signature (`attestation.verify.rim`).
"""

import binascii
from hashlib import sha256

from attestation.errors import Untrusted
from attestation.formats.collateral import MAX_DOCUMENT_BYTES, Kind, require_id
from attestation.formats.json_strict import parse_json, require_object, require_text

RIM_SERVICE = "https://rim.attestation.nvidia.com"
MAX_ANSWER_BYTES = 2 * MAX_DOCUMENT_BYTES[Kind.RIM]  # base64 and the other members
MAX_IDS_BYTES = 4 * 1024 * 1024
_FORMAT = "TCG"  # CORIM is for NICs only


def rim_url(rim_id: str, service: str = RIM_SERVICE) -> str:
    """Where a document is; the id's characters are checked, so it cannot leave the path."""
    return f"{service}/v1/rim/{require_id(rim_id, where='RIM id')}"


def ids_url(service: str = RIM_SERVICE) -> str:
    """Where the list of ids is."""
    return f"{service}/v1/rim/ids"


def parse_rim_answer(body: bytes, rim_id: str) -> bytes:
    """The document of a RIM service answer. Raises Malformed, or Untrusted where the answer contradicts itself."""
    where = f"RIM service answer for {rim_id}"
    answer = require_object(parse_json(body, max_bytes=MAX_ANSWER_BYTES, what=where), where)
    got_id = require_text(answer.get("id"), f"{where}, id")
    if got_id != rim_id:
        raise Untrusted(
            "rim-answer-id", "the service answered for another id", where=where, expected=rim_id, got=got_id
        )
    got_format = require_text(answer.get("rim_format", _FORMAT), f"{where}, rim_format")
    if got_format != _FORMAT:
        raise Untrusted("rim-answer-format", "unsupported format", where=where, expected=_FORMAT, got=got_format)
    try:
        document = binascii.a2b_base64(require_text(answer.get("rim"), f"{where}, rim"), strict_mode=True)
    except ValueError as exc:
        raise Untrusted("rim-answer-base64", "rim is not base64", where=where) from exc
    want = require_text(answer.get("sha256"), f"{where}, sha256").lower()
    if sha256(document).hexdigest() != want:
        raise Untrusted(
            "rim-answer-digest", "sha256 is not that of the document", where=where, expected=want,
            got=sha256(document).hexdigest(),
        )  # fmt: skip
    return document


def parse_ids(body: bytes) -> tuple[str, ...]:
    """The ids of a list answer that may name a document, sorted; NIC documents have ids, too, and are kept.

    Raises Malformed or Untrusted.
    """
    where = "RIM service list"
    answer = require_object(parse_json(body, max_bytes=MAX_IDS_BYTES, what=where), where)
    ids = answer.get("ids")
    if not isinstance(ids, list):
        raise Untrusted("rim-answer-ids", "no list of ids", where=where, got=type(ids).__name__)
    return tuple(sorted({require_id(require_text(i, where), where=where) for i in ids}))
