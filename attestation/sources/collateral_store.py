"""The collateral store: a directory of documents keyed by (kind, id, sha256). The only code that writes it.

    KIND/ID/SHA256         the document, byte for byte
    KIND/ID/SHA256.json    first-seen time, source, state, and whether a bundle or this site brought it
    bundle.json            id and issue time of the bundle in use

A document exists when its .json exists, which is written last; content whose digest differs from its name is refused.
"""

import fcntl
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from attestation.errors import Malformed, Misconfigured, Unavailable
from attestation.formats.collateral import MAX_DOCUMENT_BYTES, Document, Kind, State, require_id
from attestation.sources.atomic import read_bounded, sync_directory, write_atomic
from attestation.sources.collateral import Collateral
from attestation.values import Digest
from attestation.verify.bundle import BundleInfo, VerifiedBundle

MAX_STORED_DOCUMENTS = 50_000  # 2.5 times a full bundle
KEPT_ANSWERS = 8  # OCSP responses and CRLs of one id; older ones are superseded by nextUpdate
_META_BYTES = 4096
_LOCK = ".lock"
_ANSWERS = (Kind.OCSP, Kind.CRL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A document and who brought it: the next bundle replaces what the last one brought, and nothing else."""

    document: Document
    from_bundle: bool


def _read_json(path: Path, members: set[str]) -> dict[str, Any]:
    try:
        value = json.loads(read_bounded(path, _META_BYTES))
    except ValueError as exc:
        raise Malformed("store-corrupt", "not JSON", where=str(path)) from exc
    if not isinstance(value, dict) or set(value) != members:
        raise Malformed("store-corrupt", "unexpected members", where=str(path), expected=sorted(members))
    return value


def _time(text: object, path: Path) -> datetime:
    try:
        return datetime.fromisoformat(str(text)).astimezone(UTC)
    except ValueError as exc:
        raise Malformed("store-corrupt", "not a time", where=str(path), got=text) from exc


class CollateralStore:
    """A store directory. Readers share a lock, writers take it alone; every write is atomic."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        """Where the store is."""
        return self._root

    def load(self) -> Collateral:
        """Everything usable, as one immutable value. Raises Malformed where the store was tampered with or damaged."""
        return Collateral.of((s.document for s in self.stored()), self.bundle_in_use())

    def stored(self) -> list[Stored]:
        """Every document, retired ones too, sorted by name."""
        if not self._root.is_dir():
            raise Misconfigured(
                "no-store",
                "there is no collateral store",
                where=str(self._root),
                expected="a folder that `collateral fetch` or `collateral import` made",
            )
        try:
            lock = (self._root / _LOCK).open("rb")
        except FileNotFoundError:  # a read-only copy: nobody writes
            return self._all()
        except OSError as exc:
            raise Unavailable("read-failed", "cannot read", where=str(self._root), got=exc.strerror) from exc
        with lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            return self._all()

    def _all(self) -> list[Stored]:
        paths = sorted(path for kind in Kind for path in self._root.glob(f"{kind}/*/*.json"))
        if len(paths) > MAX_STORED_DOCUMENTS:
            raise Malformed("store-corrupt", "too many documents", where=str(self._root), expected=MAX_STORED_DOCUMENTS)
        return [self._read(path) for path in paths]

    def _read(self, meta_path: Path) -> Stored:
        meta = _read_json(meta_path, {"first_seen", "source", "state", "from_bundle"})
        kind, identifier = Kind(meta_path.parent.parent.name), meta_path.parent.name
        content = read_bounded(meta_path.with_suffix(""), MAX_DOCUMENT_BYTES[kind])
        try:
            state = State(meta["state"])
        except ValueError as exc:
            raise Malformed("store-corrupt", "unknown state", where=str(meta_path), got=meta["state"]) from exc
        document = Document(
            kind=kind,
            id=identifier,
            content=content,
            first_seen=_time(meta["first_seen"], meta_path),
            source=str(meta["source"]),
            state=state,
        )
        if document.sha256 != meta_path.stem:
            raise Malformed("store-corrupt", "content does not have its digest", where=str(meta_path.with_suffix("")))
        return Stored(document=document, from_bundle=meta["from_bundle"] is True)

    def bundle_in_use(self) -> BundleInfo | None:
        """The bundle that was imported last, if any."""
        path = self._root / "bundle.json"
        if not path.exists():
            return None
        value = _read_json(path, {"id", "issued_at"})
        return BundleInfo(digest=Digest.parse(str(value["id"])), issued_at=_time(value["issued_at"], path))

    def add(self, document: Document) -> bool:
        """Keep a document; False if it was there. First-seen time and state of a known document do not change."""
        with self._writing():
            added = self._put(document, from_bundle=False)
            if added and document.kind in _ANSWERS:
                self._prune(document.kind, document.id)
            return added

    def set_state(self, kind: Kind, identifier: str, sha256: str, state: State) -> Document:
        """Retire, pin or reactivate one document. Raises Misconfigured where it is not stored."""
        with self._writing():
            path = self._meta_path(kind, identifier, sha256)
            if not path.exists():
                raise Misconfigured("not-stored", "no such document", where=f"{kind} {identifier} {sha256}")
            found = self._read(path)
            changed = replace(found, document=replace(found.document, state=state))
            self._write(changed)
            return changed.document

    def import_bundle(self, bundle: VerifiedBundle, *, replacing: BundleInfo | None) -> int:
        """Make a bundle the one in use: its documents come in, those of the previous bundle that it lacks go out.

        `replacing` is the bundle against which rollback was judged; Unavailable if it is no longer the one in use.
        Ends as before or complete: documents first, `bundle.json` next, removals last. Returns how many are new.
        """
        with self._writing():
            if self.bundle_in_use() != replacing:
                raise Unavailable("store-changed", "another import came first; try again", where=str(self._root))
            new = sum(self._put(d, from_bundle=True) for d in bundle.documents)
            record = {"id": str(bundle.info.digest), "issued_at": bundle.info.issued_at.isoformat()}
            write_atomic(self._root / "bundle.json", json.dumps(record).encode())
            names = {d.name for d in bundle.documents}
            self._remove(s.document for s in self._all() if s.from_bundle and s.document.name not in names)
            return new

    def _put(self, document: Document, *, from_bundle: bool) -> bool:
        path = self._meta_path(*document.name)
        known = self._read(path) if path.exists() else None
        if known is None:
            write_atomic(path.with_suffix(""), document.content)
            self._write(Stored(document=document, from_bundle=from_bundle))
            return True
        if from_bundle:
            # The earlier of two first-seen times is the truth. A site's own retirement outlives a bundle's opinion.
            kept = replace(known.document, first_seen=min(known.document.first_seen, document.first_seen))
            if kept.state is not State.RETIRED:
                kept = replace(kept, state=document.state)
            self._write(Stored(document=kept, from_bundle=known.from_bundle))
        return False

    def _write(self, stored: Stored) -> None:
        document = stored.document
        meta = {
            "first_seen": document.first_seen.isoformat(),
            "source": document.source,
            "state": str(document.state),
            "from_bundle": stored.from_bundle,
        }
        write_atomic(self._meta_path(*document.name), json.dumps(meta).encode())

    def _prune(self, kind: Kind, identifier: str) -> None:
        found = [self._read(path) for path in (self._root / kind / identifier).glob("*.json")]
        active = [s.document for s in found if s.document.state is State.ACTIVE]
        active.sort(key=lambda d: d.first_seen, reverse=True)
        self._remove(active[KEPT_ANSWERS:])

    def _remove(self, documents: Iterable[Document]) -> None:
        for document in documents:
            path = self._meta_path(*document.name)
            path.unlink(missing_ok=True)
            path.with_suffix("").unlink(missing_ok=True)
            sync_directory(path.parent)

    def _meta_path(self, kind: str, identifier: str, sha256: str) -> Path:
        return self._root / kind / require_id(identifier) / f"{Digest.parse(f'sha256:{sha256}').raw.hex()}.json"

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            lock = (self._root / _LOCK).open("ab")
        except OSError as exc:
            raise Unavailable("write-failed", "cannot write", where=str(self._root), got=exc.strerror) from exc
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
