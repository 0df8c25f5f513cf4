"""Init-data of Confidential Containers: the document a host hands to a guest, and its digest in the TEE's own field.

The digest covers the TOML text as it is. SNP carries it in HOST_DATA (32 bytes), TDX in MRCONFIGID (48 bytes), cut
or zero padded to the field (keybroker.md 1.11, tee.md 1.8). The *host* chooses the document: the field proves which
one it was, and only a policy over digest or content proves that it was a good one.
"""

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from functools import lru_cache
from typing import Any

from attestation.errors import Malformed
from attestation.values import Digest, JsonObject, JsonValue

MAX_INIT_DATA_BYTES = 256 * 1024  # Kata carries it in an annotation; etcd objects end at 1.5 MiB
VERSION = "0.1.0"
ALGORITHMS = ("sha256", "sha384", "sha512")
MAX_KEY_DOTS = 100  # of all keys together; the standard parser takes quadratic time for `a.a.a... = 1`
MAX_CLAIM_DEPTH = 64  # far above aa.toml and cdh.toml; claims are written as JSON, which a deep value would break
MAX_CLAIM_BITS = 63  # and a sign: integers of TOML 1.0.0, and of policy engines
_MAX_REMEMBERED, _MAX_REMEMBERED_CHARS = 256, 8 * 1024  # texts that a fleet's guests share: 2 MiB at most
_POLICY_DATA = "policy_data := {"
# TOML strings and comments, each to its end or, where it has none, to the end of line or document: one linear pass.
_STRINGS_AND_COMMENTS = re.compile(
    r'"""(?:[^"\\]++|\\.|"(?!""))*+"{0,5}|'
    r"'''(?:[^']++|'(?!''))*+'{0,5}|"
    r'"(?:[^"\\\n]++|\\.)*+"?|'
    r"'[^'\n]*+'?|#[^\n]*+",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitData:
    """One document: its text, its digest by the algorithm it names, and the files it carries."""

    text: str
    digest: Digest
    data: Mapping[str, str]

    def field_value(self, size: int) -> bytes:
        """The digest cut or zero padded to a TEE field of `size` bytes."""
        return self.digest.raw[:size].ljust(size, b"\0")

    def claims(self) -> JsonObject:
        """Content for policies: `*.toml` parsed, `policy.rego` reduced to its `policy_data`, other entries as text."""
        out: dict[str, JsonValue] = {}
        for name, body in self.data.items():
            if name == "policy.rego":
                out["agent_policy_claims"] = _plain(_policy_data(body), name)
            else:
                out[name] = _plain(_toml(body, name), name) if name.endswith(".toml") else body
        return out


def _toml(text: str, where: str) -> Mapping[str, Any]:
    """The document. One text has one meaning, so those of a usual size are read once; nobody changes what is read."""
    return _known_toml(text, where) if len(text) <= _MAX_REMEMBERED_CHARS else _read_toml(text, where)


def _read_toml(text: str, where: str) -> Mapping[str, Any]:
    if (dots := _STRINGS_AND_COMMENTS.sub("", text).count(".")) > MAX_KEY_DOTS:
        raise Malformed("init-data-toml", "too many dotted keys", where=where, expected=f"<= {MAX_KEY_DOTS}", got=dots)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Malformed("init-data-toml", "not TOML", where=where, got=str(exc)[:120]) from exc


_known_toml = lru_cache(maxsize=_MAX_REMEMBERED)(_read_toml)


def parse_init_data(text: str) -> InitData:
    """`version`, `algorithm` and a `[data]` table of texts. Raises Malformed, also for unknown algorithms."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as exc:
        raise Malformed("init-data-text", "init-data is not Unicode text", where="init-data") from exc
    if size > MAX_INIT_DATA_BYTES:
        raise Malformed("init-data-size", "init-data is too large", expected=f"<= {MAX_INIT_DATA_BYTES}", got=size)
    document = _toml(text, "init-data")
    algorithm, data = document.get("algorithm"), document.get("data")
    if algorithm not in ALGORITHMS:
        raise Malformed(
            "init-data-algorithm",
            "unknown or weak digest",
            where="init-data.algorithm",
            expected="|".join(ALGORITHMS),
            got=repr(algorithm)[:40],
        )
    if document.get("version") != VERSION:
        raise Malformed(
            "init-data-version",
            "unknown version",
            where="init-data.version",
            expected=VERSION,
            got=repr(document.get("version"))[:40],
        )
    if not isinstance(data, dict) or not all(isinstance(body, str) for body in data.values()):
        raise Malformed("init-data-table", "[data] is not a table of texts", where="init-data.data", expected="texts")
    return InitData(text=text, digest=Digest(algorithm, hashlib.new(algorithm, text.encode()).digest()), data=data)


def _plain(value: Any, where: str, depth: int = 0) -> JsonValue:
    """As JSON can hold it, on every level of whoever writes it."""
    number = not isinstance(value, float) or math.isfinite(value)
    if not number or depth > MAX_CLAIM_DEPTH or (isinstance(value, int) and value.bit_length() > MAX_CLAIM_BITS):
        expected = f"{MAX_CLAIM_DEPTH} levels, integers of {MAX_CLAIM_BITS} bits"
        raise Malformed("init-data-claims", "too deep, or a number too large or none", where=where, expected=expected)
    if isinstance(value, dict):
        return {str(key): _plain(member, where, depth + 1) for key, member in value.items()}
    if isinstance(value, list):
        return [_plain(member, where, depth + 1) for member in value]
    return value.isoformat() if isinstance(value, date | time) else value


def _policy_data(rego: str) -> JsonValue:
    """The JSON object after `policy_data := ` up to the end of the text, as peers read it; None when it is not JSON."""
    start = rego.find(_POLICY_DATA)
    if start < 0:
        return None
    try:
        parsed: JsonValue = json.loads(rego[start + len(_POLICY_DATA) - 1 :])
    except (ValueError, RecursionError):
        return None
    return parsed
