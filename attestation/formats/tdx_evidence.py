"""TDX evidence as guests send it: `{"quote": b64, "cc_eventlog": b64 | null}` (tee.md 2.5)."""

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attestation.errors import Malformed
from attestation.formats.event_log import MAX_LOG_BYTES
from attestation.formats.json_strict import require_text
from attestation.formats.tdx_quote import MAX_QUOTE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class TdxEvidence:
    """The quote as the guest's buffer held it, and the event log that explains its registers, if one was sent."""

    quote: bytes
    event_log: bytes | None = None


def read_tdx_evidence(document: Mapping[str, Any]) -> TdxEvidence:
    """The stock attester's object. Raises Malformed."""
    log = document.get("cc_eventlog")
    return TdxEvidence(
        quote=_base64(document.get("quote"), "quote", MAX_QUOTE_BYTES),
        event_log=None if log is None else _base64(log, "cc_eventlog", MAX_LOG_BYTES),
    )


def _base64(value: object, name: str, limit: int) -> bytes:
    text = require_text(value, f"tdx-evidence.{name}")
    if len(text) > limit * 4 // 3 + 4:
        raise Malformed("tdx-size", "too large", where=f"tdx-evidence.{name}", expected=f"<= {limit}", got=len(text))
    try:
        return b64decode(text, validate=True)
    except ValueError as exc:
        raise Malformed("tdx-evidence-base64", "not base64", where=f"tdx-evidence.{name}") from exc
