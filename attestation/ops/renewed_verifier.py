"""The verifier over a collateral store that others renew: new documents are used without a restart."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from attestation.broker.session import Challenged, Submission
from attestation.errors import Malformed, Unavailable
from attestation.formats.collateral import Document, Kind
from attestation.ops.local_verifier import LocalVerifier
from attestation.sources.collateral import Collateral
from attestation.sources.collateral_store import CollateralStore
from attestation.sources.expiry import expiry_of
from attestation.verify.verified import BoundPlatform

_Stamp = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfLife:
    """One stored document: how long we have had it and when it ends, None where it names no end."""

    kind: Kind
    id: str
    first_seen: datetime
    ends: datetime | None


class RenewedVerifier:
    """`verify` with what was last read; `renew` reads again where the store has changed."""

    def __init__(self, store: CollateralStore, build: Callable[[Collateral], LocalVerifier]) -> None:
        """Raises Malformed or Misconfigured where the store cannot be read."""
        self._store, self._build = store, build
        self._stamp = _stamp(store.root)
        self._use(store.load())

    def verify(self, submission: Submission, challenged: Challenged, *, now: datetime) -> BoundPlatform:
        """One platform against one challenge, by one state of the collateral."""
        return self.current.verify(submission, challenged, now=now)

    def renew(self) -> bool:
        """Whether the store had changed. Where it cannot be read the old state stays in use, and this raises."""
        stamp = _stamp(self._store.root)
        if stamp == self._stamp:
            return False
        self._use(self._store.load())
        self._stamp = stamp
        return True

    def require_usable(self, now: datetime) -> None:
        """Unavailable where nothing in the store is usable any more: no GPU could be more than authentic."""
        if not any(entry.ends is None or entry.ends > now for entry in self.shelf):
            raise Unavailable("collateral", "no usable collateral", where=str(self._store.root))

    def _use(self, collateral: Collateral) -> None:
        current = self._build(collateral)
        self.shelf = tuple(
            ShelfLife(kind=d.kind, id=d.id, first_seen=d.first_seen, ends=_end(d))
            for found in collateral.documents.values()
            for d in found[:1]  # the newest of an id is what counts
        )
        self.current = current


def _end(document: Document) -> datetime | None:
    """A document that cannot be read helps nobody: it counts as ended, and does not keep the broker from starting."""
    try:
        return expiry_of(document)
    except Malformed:
        return document.first_seen


def _stamp(root: Path) -> _Stamp:
    """Number and newest time of the directories: every write to a store adds, replaces or removes a file in one."""
    times = [entry.stat().st_mtime_ns for pattern in ("", "*", "*/*") for entry in _directories(root, pattern)]
    return len(times), max(times, default=0)


def _directories(root: Path, pattern: str) -> list[Path]:
    return [path for path in ([root] if not pattern else root.glob(pattern)) if path.is_dir()]
