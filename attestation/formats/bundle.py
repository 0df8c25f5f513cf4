"""The collateral bundle: one signed, reproducible file that carries a store to an air-gapped site.

    magic "KGPUBND1" | u32le manifest size | manifest | u16le signature size | signature | documents

The manifest is canonical JSON (RFC 8785), sorted, and names every document by kind, id, size and SHA-256; documents
follow in manifest order, each distinct content once. What is signed is everything before the signature size, so
nothing after it needs trust before its digest was compared. The id of a bundle is the SHA-256 of that signed part: it
does not depend on who signed. Numbers and lengths are exact; there is nothing to normalise, and no path in the file.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import rfc8785

from attestation.errors import Malformed
from attestation.formats.collateral import Document, Kind, State
from attestation.formats.reader import Reader
from attestation.values import Digest

MAGIC = b"KGPUBND1"
SUFFIX = ".kgpubundle"
MAX_BUNDLE_BYTES = 256 * 1024 * 1024  # about 10 000 RIMs of 25 kB
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
MAX_DOCUMENTS = 20_000
MAX_SOURCE_CHARS = 512
_ENTRY = {"bytes", "first_seen", "id", "kind", "sha256", "source", "state"}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnverifiedBundle:
    """A bundle as parsed: nothing in it may be used before `verify.bundle.verify_bundle` returned."""

    signed: bytes = field(repr=False)
    signature: bytes
    issued_at: datetime
    documents: tuple[Document, ...] = field(repr=False)

    @property
    def digest(self) -> Digest:
        """The bundle's id."""
        return Digest("sha256", sha256(self.signed).digest())


def _time_text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def render_signed_part(documents: Iterable[Document], *, issued_at: datetime) -> bytes:
    """The part to be signed. Equal documents and issue time give equal bytes."""
    entries: list[dict[str, str | int]] = [
        {
            "kind": str(d.kind),
            "id": d.id,
            "sha256": d.sha256,
            "bytes": len(d.content),
            "first_seen": _time_text(d.first_seen),
            "source": d.source[:MAX_SOURCE_CHARS],
            "state": str(d.state),
        }
        for d in sorted(documents, key=lambda d: d.name)
    ]
    if not 0 < len(entries) <= MAX_DOCUMENTS:
        raise Malformed("bundle-count", "bad number of documents", expected=f"1 to {MAX_DOCUMENTS}", got=len(entries))
    manifest = rfc8785.dumps({"issued_at": _time_text(issued_at), "documents": entries})
    return MAGIC + len(manifest).to_bytes(4, "little") + manifest


def render_bundle(signed: bytes, signature: bytes, documents: Iterable[Document]) -> bytes:
    """The whole file: signed part, its signature, and the documents that the signed part names."""
    contents = dict.fromkeys(d.content for d in sorted(documents, key=lambda d: d.name))
    return b"".join((signed, len(signature).to_bytes(2, "little"), signature, *contents))


def _entries(manifest: bytes) -> tuple[datetime, list[dict[str, Any]]]:
    try:
        value = json.loads(manifest)
        # Canonical text has one spelling: duplicate keys, spaces, floats and wrong order all differ from it.
        canonical = rfc8785.dumps(value) == manifest
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as exc:
        raise Malformed("bundle-manifest", "manifest is not JSON", where="bundle") from exc
    if not canonical or not isinstance(value, dict) or set(value) != {"issued_at", "documents"}:
        raise Malformed("bundle-manifest", "manifest is not canonical", where="bundle", expected="issued_at, documents")
    entries = value["documents"]
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_DOCUMENTS:
        raise Malformed("bundle-count", "bad number of documents", where="bundle", expected=f"1 to {MAX_DOCUMENTS}")
    for entry in entries:
        if not isinstance(entry, dict) or set(entry) != _ENTRY:
            raise Malformed("bundle-manifest", "unexpected members", where="bundle document", expected=sorted(_ENTRY))
        if type(entry["bytes"]) is not int or not all(isinstance(entry[k], str) for k in _ENTRY - {"bytes"}):
            raise Malformed("bundle-manifest", "member of the wrong type", where="bundle document")
    names = [(e["kind"], e["id"], e["sha256"]) for e in entries]
    if names != sorted(set(names)):
        raise Malformed("bundle-order", "documents are not sorted, or listed twice", where="bundle")
    return _time(value["issued_at"]), entries


def _time(text: object) -> datetime:
    try:
        moment = datetime.strptime(str(text), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as exc:
        raise Malformed("bundle-time", "not a time", where="bundle", expected="YYYY-MM-DDTHH:MM:SSZ", got=text) from exc
    return moment


def _document(entry: dict[str, Any], content: bytes) -> Document:
    try:
        kind, state = Kind(entry["kind"]), State(entry["state"])
    except ValueError as exc:
        raise Malformed("bundle-kind", "unknown kind or state", where="bundle document", got=str(exc)) from exc
    if len(entry["source"]) > MAX_SOURCE_CHARS:
        raise Malformed("bundle-manifest", "source is too long", where="bundle document", expected=MAX_SOURCE_CHARS)
    return Document(
        kind=kind,
        id=entry["id"],
        content=content,
        first_seen=_time(entry["first_seen"]),
        source=entry["source"],
        state=state,
    )


def parse_bundle(raw: bytes) -> UnverifiedBundle:
    """Exact parse, including the digest of every document. Raises Malformed and nothing else."""
    if len(raw) > MAX_BUNDLE_BYTES:
        raise Malformed("bundle-size", "bundle too large", expected=f"at most {MAX_BUNDLE_BYTES}", got=len(raw))
    reader = Reader(raw, "bundle")
    if reader.take(len(MAGIC), "magic") != MAGIC:
        raise Malformed("bundle-magic", "not a collateral bundle", where="bundle", expected=MAGIC.decode())
    size = reader.u32le("manifest size")
    if size > MAX_MANIFEST_BYTES:
        raise Malformed("bundle-size", "manifest too large", expected=f"at most {MAX_MANIFEST_BYTES}", got=size)
    issued_at, entries = _entries(reader.take(size, "manifest"))
    signed = raw[: reader.position]
    signature = reader.take(reader.u16le("signature size"), "signature")
    contents: dict[str, bytes] = {}
    documents = []
    for entry in entries:
        content = contents.get(entry["sha256"])
        if content is None:
            content = reader.take(entry["bytes"], f"document {entry['id']}"[:160])
            if sha256(content).hexdigest() != entry["sha256"]:
                raise Malformed("bundle-digest", "document does not have its digest", where=f"bundle {entry['id']}")
            contents[entry["sha256"]] = content
        if len(content) != entry["bytes"]:
            raise Malformed("bundle-manifest", "one digest, two sizes", where=f"bundle {entry['id']}")
        documents.append(_document(entry, content))
    reader.finish()
    return UnverifiedBundle(signed=signed, signature=signature, issued_at=issued_at, documents=tuple(documents))
