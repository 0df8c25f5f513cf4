"""Reference values in the formats of upstream's RVPS (keybroker.md 3.7), each from somebody who answers for it.

`sample` is what an authenticated administrator sends. `swid` is an NVIDIA reference document, verified down to NVIDIA's
root: upstream reads it without. `corim` is refused: upstream's form of it is unsigned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from attestation.crypto.b64 import parse_b64
from attestation.errors import Malformed
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.values import JsonValue
from attestation.verify.nv_policy import SignerExpiry
from attestation.verify.rim import require_signer_time, verify_rim
from attestation.verify.roots import Anchors

MESSAGE_VERSION = "0.1.0"
MAX_MESSAGE_BYTES = 1024 * 1024  # genuine documents are under 30 kB, a fleet's measurements under 300 kB
MAX_NAMES = 4096
_MANUFACTURER = "NVIDIA_Corporation"  # upstream: the document's manufacturer with underscores; ours has one root
_NO_DIGEST = bytes(48)  # stands for "nothing at this index"; upstream leaves it out too


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """Values by name, and where they come from."""

    values: Mapping[str, JsonValue]
    provenance: str


def parse_message(text: str | bytes, *, rim_roots: Anchors, now: datetime) -> Imported:
    """An RVPS message: `{"version":"0.1.0","type":...,"payload":base64}`. Raises Malformed and Untrusted."""
    message = require_object(parse_json(text, max_bytes=MAX_MESSAGE_BYTES, what="message"), "message")
    if message.get("version") != MESSAGE_VERSION:
        raise Malformed("reference-value", "unsupported RVPS message", expected=f"version {MESSAGE_VERSION}")
    kind = require_text(message.get("type"), "message.type")
    return parse_payload(kind, parse_b64(message.get("payload"), where="payload"), rim_roots=rim_roots, now=now)


def parse_payload(kind: str, payload: bytes, *, rim_roots: Anchors, now: datetime) -> Imported:
    """One document of a named format. Raises Malformed and Untrusted."""
    if kind == "sample":
        return _sample(payload)
    if kind == "swid":
        return _swid(payload, rim_roots, now)
    hint = "a CoRIM of this kind is unsigned, so that nobody vouches for it" if kind == "corim" else "unknown format"
    raise Malformed("reference-value", hint, where="message.type", expected="sample|swid", got=kind[:40])


def _sample(payload: bytes) -> Imported:
    values = require_object(parse_json(payload, max_bytes=MAX_MESSAGE_BYTES, what="payload"), "payload")
    if not 0 < len(values) <= MAX_NAMES:
        raise Malformed("reference-value", "wrong number of names", where="payload", expected=f"1 to {MAX_NAMES}")
    return Imported(values=values, provenance="rvps-sample")


def _swid(payload: bytes, rim_roots: Anchors, now: datetime) -> Imported:
    rim = verify_rim(payload, anchors=rim_roots)
    require_signer_time(rim, SignerExpiry(), now)
    values: dict[str, JsonValue] = {}
    for index, golden in sorted(rim.content.golden.items()):
        if digests := [digest.hex() for digest in golden.alternatives if digest != _NO_DIGEST]:
            values[f"{_MANUFACTURER}.{rim.content.edition}.measurement_{index}"] = digests
    content = rim.content
    return Imported(
        values=values, provenance=f"swid {content.tag_id[:120]} {content.version} sha256:{rim.sha256} signed by NVIDIA"
    )
