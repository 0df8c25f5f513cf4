"""JSON as this broker writes it where nobody else defines the bytes: compact, and canonical where it is hashed.

`orjson` writes the evidence of a platform in microseconds. What it refuses (integers over 64 bits and unpaired
surrogates, which a guest may well put into its init-data) the standard library writes.
"""

import json
from typing import Any

import orjson


def compact(value: Any) -> bytes:
    """UTF-8 text without spaces, members in their order."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        return json.dumps(value, separators=(",", ":")).encode("ascii")


def canonical(value: Any) -> bytes:
    """UTF-8 text without spaces, members sorted by name: equal values give equal bytes."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        return json.dumps(value, separators=(",", ":"), sort_keys=True).encode("ascii")
