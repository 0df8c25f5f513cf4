"""Standard output and error that no name from a bundle, a log or a manifest can drive: it has no control characters.

Colours stay, for they are ours. Text that has no encoding is written as its escape, never a crash.
"""

import io
import os
import re
import sys
from contextlib import suppress
from typing import TextIO

# C0 without tab, line feed and CR LF; DEL and C1; format characters that reorder what is read (Unicode UAX 9)
_CONTROL = re.compile(
    "\x1b\\[[0-9;]*m|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]|\r(?!\n)"
)


class PlainText(io.TextIOWrapper):
    """A text stream that writes U+FFFD for what would move a cursor, name a window or turn a line around."""

    def write(self, text: str, /) -> int:
        """Write the text without control characters; its whole length counts as written."""
        super().write(_CONTROL.sub(_plain, text))
        return len(text)


def _plain(match: re.Match[str]) -> str:
    return match[0] if match[0].endswith("m") and len(match[0]) > 1 else "\ufffd"


def guard_output() -> None:
    """Put both standard streams behind it."""
    sys.stdout, sys.stderr = _guarded(sys.stdout), _guarded(sys.stderr)


def drop_output() -> None:
    """Standard output took no more: what is buffered goes nowhere, or Python would fail on it again at its exit."""
    with suppress(OSError, ValueError):  # a test's stream has no descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _guarded(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    buffered = stream.line_buffering
    return PlainText(stream.detach(), encoding="utf-8", errors="backslashreplace", line_buffering=buffered)
