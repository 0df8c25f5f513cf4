"""Upstream's local resource stores, read once: a file for each key with `/` written as `\\x2F`, or one JSON file."""

import base64
import binascii
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from attestation.broker.keys import MAX_SECRET_BYTES
from attestation.errors import Malformed, Misconfigured
from attestation.formats.json_strict import parse_json, require_object
from attestation.sources.atomic import read_bounded
from attestation.values import Secret

MAX_JSON_BYTES = 256 * 1024 * 1024
MAX_RESOURCES = 100_000
_SLASH = "\\x2F"


def read_resources(where: Path) -> Iterator[tuple[str, Secret | None]]:
    """Names and secrets, by name; None for what is no regular file or too long. Raises Misconfigured and Malformed."""
    try:
        mode = where.lstat().st_mode
    except OSError as exc:
        raise Misconfigured("trustee-resources", f"cannot read: {exc.strerror}", where=str(where)) from exc
    if stat.S_ISDIR(mode):
        yield from _folder(where)
    else:
        yield from _json(where)


def _folder(where: Path) -> Iterator[tuple[str, Secret | None]]:
    paths = sorted(where.iterdir())
    if len(paths) > MAX_RESOURCES:
        raise Misconfigured("trustee-resources", "too many files", where=str(where), expected=MAX_RESOURCES)
    for path in paths:
        yield path.name.replace(_SLASH, "/"), _file(path)


def _file(path: Path) -> Secret | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        raw = file.read(MAX_SECRET_BYTES + 1)
    return Secret(raw) if len(raw) <= MAX_SECRET_BYTES else None


def _json(where: Path) -> Iterator[tuple[str, Secret | None]]:
    document = parse_json(read_bounded(where, MAX_JSON_BYTES), max_bytes=MAX_JSON_BYTES, what=where.name)
    for name, text in sorted(require_object(document, where.name).items()):
        try:
            raw = base64.b64decode(str(text).encode("ascii"), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError) as exc:
            raise Malformed("trustee-resources", "a value is not base64url", where=name[:80]) from exc
        yield name, Secret(raw) if len(raw) <= MAX_SECRET_BYTES else None
