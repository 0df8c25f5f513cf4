"""A copy of the embedded store while the broker runs: SQLite's online backup, checked, in place whole or not at all."""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from attestation.errors import Misconfigured, Unavailable
from attestation.sources.atomic import sync_directory

_FILE = "kbs.sqlite3"  # in the store's directory: sources/db.py
PAGES = 1024  # copied per step; the broker writes between two steps
BUSY_S = 10.0


def snapshot(store: Path, target: Path) -> int:
    """Copy the store's database to `target`. Returns its bytes.

    The copy is of one moment, private (0600) and durable. It holds keys only as the root key wrapped them, and the
    root key is not in it. Raises Misconfigured for a store that is not there and Unavailable for everything else; an
    older file at `target` is then untouched.
    """
    source = store / _FILE
    if not source.is_file():
        raise Misconfigured("store-missing", "no embedded store", where=str(source))
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True, timeout=BUSY_S)) as live,
            closing(sqlite3.connect(temporary)) as copy,
        ):
            live.backup(copy, pages=PAGES)
            (verdict,) = copy.execute("PRAGMA integrity_check").fetchone()
            if verdict != "ok":
                raise Unavailable("snapshot-integrity", "the copy is damaged", where=str(source), got=verdict)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_directory(target.parent)
        return target.stat().st_size
    except (OSError, sqlite3.Error) as exc:
        raise Unavailable("snapshot-failed", "cannot copy the store", where=str(target), got=exc) from exc
    finally:
        with suppress(OSError):
            temporary.unlink()
