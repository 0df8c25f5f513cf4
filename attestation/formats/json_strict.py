"""JSON from untrusted peers: bounded, no duplicate keys, no NaN. Two readers of one text must see one document."""

import json
from typing import Any, NoReturn

from attestation.errors import Malformed


def parse_json(text: str | bytes, *, max_bytes: int, what: str) -> Any:
    """The document. Raises Malformed for size, encoding, syntax, depth, duplicate keys and non-numbers."""
    if len(text) > max_bytes:
        raise Malformed("json-size", "JSON is too large", where=what, expected=f"at most {max_bytes}", got=len(text))

    def pairs(members: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(members)
        if len(found) != len(members):
            raise Malformed("json-duplicate-key", "a key is listed twice", where=what, expected="distinct keys")
        return found

    def constant(name: str) -> NoReturn:
        raise Malformed("json", "not a JSON number", where=what, got=name)

    try:
        if isinstance(text, bytes):
            text = text.decode()  # json would guess UTF-16 and UTF-32 as well
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as exc:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise Malformed("json", "not JSON", where=what, got=str(exc)[:120]) from exc


def require_object(value: object, what: str) -> dict[str, Any]:
    """The value itself, refused unless it is a JSON object."""
    if not isinstance(value, dict):
        raise Malformed("json-type", "wrong JSON type", where=what, expected="object", got=type(value).__name__)
    return value


def require_text(value: object, what: str) -> str:
    """The value itself, refused unless it is a string."""
    if not isinstance(value, str):
        raise Malformed("json-type", "wrong JSON type", where=what, expected="string", got=type(value).__name__)
    return value
