"""TOML that somebody else wrote: one error for all that is wrong with it, in linear time.

The standard parser recurses without a bound, and takes quadratic time for keys of thousands of parts.
"""

import re
import tomllib
from typing import Any

MAX_KEY_DOTS = 64  # of the keys of one line; containerd's configuration nests seven deep
# Strings and comments, each to its end or, where it has none, to the end of line or document: one linear pass.
_STRINGS_AND_COMMENTS = re.compile(
    r'"""(?:[^"\\]++|\\.|"(?!""))*+"{0,5}|'
    r"'''(?:[^']++|'(?!''))*+'{0,5}|"
    r'"(?:[^"\\\n]++|\\.)*+"?|'
    r"'[^'\n]*+'?|#[^\n]*+",
    re.DOTALL,
)


def loads(text: str | bytes) -> dict[str, Any]:
    """The document. Raises ValueError for everything that is not TOML, nests too deep or has keys of too many parts."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")  # UnicodeDecodeError is a ValueError
    keys = _STRINGS_AND_COMMENTS.sub("", text)
    if max((line.count(".") for line in keys.splitlines()), default=0) > MAX_KEY_DOTS:
        raise ValueError(f"more than {MAX_KEY_DOTS} dots in the keys of a line")
    try:
        return tomllib.loads(text)
    except RecursionError as exc:
        raise ValueError("nested too deep") from exc
