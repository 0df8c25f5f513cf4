"""Base64 both ways, canonical only: one text for one value, so that a hash over the text means the value."""

import base64
import binascii

from attestation.errors import Malformed


def b64url(raw: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def parse_b64url(text: object, *, where: str) -> bytes:
    """Inverse of `b64url`; padding, whitespace, other alphabets and stray trailing bits are Malformed."""
    if isinstance(text, str):
        try:
            raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (ValueError, binascii.Error):
            raw = None
        if raw is not None and b64url(raw) == text:
            return raw
    raise Malformed("base64url", "not canonical base64url", where=where, expected="base64url without padding")


def b64(raw: bytes) -> str:
    """Standard base64 with padding (RFC 4648 section 4)."""
    return base64.b64encode(raw).decode("ascii")


def parse_b64(text: object, *, where: str) -> bytes:
    """Inverse of `b64`, canonical only. Raises Malformed."""
    if isinstance(text, str):
        try:
            raw = base64.b64decode(text.encode("ascii"), validate=True)
        except (ValueError, binascii.Error):
            raw = None
        if raw is not None and b64(raw) == text:
            return raw
    raise Malformed("base64", "not canonical base64", where=where, expected="standard base64 with padding")
