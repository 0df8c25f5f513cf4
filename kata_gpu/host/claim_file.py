"""The checkpoint on disk: atomic, durable, with its previous generation, behind one lock.

The lock is a flock, so that it frees itself when a process dies and orders two instances of a rolling update; the
thread lock in front of it orders threads, which share one flock per open file.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kata_gpu.core.checkpoint import MAX_BYTES, Checkpoint, parse_checkpoint, render_checkpoint
from kata_gpu.errors import Malformed, TimedOut, Unavailable
from kata_gpu.host.durable import sync_directory

CHECKPOINT = "checkpoint.json"
PREVIOUS = "checkpoint.previous.json"
LOCK = "serialize.lock"
POLL_S = 0.01  # between two tries for a flock that another process has
KEEP_CORRUPT = 8  # files set aside; older evidence is not worth a full disk


class ClaimFileReader:
    """The checkpoint for those who only look: status and the bridge. Creates and locks nothing."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory

    def load(self) -> Checkpoint:
        """The current generation; empty where no file is."""
        return self._read(CHECKPOINT) or Checkpoint()

    def _read(self, name: str) -> Checkpoint | None:
        path = self._dir / name
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise Unavailable(
                "checkpoint-read", "cannot read the checkpoint", where=str(path), got=exc.strerror
            ) from exc
        return parse_checkpoint(data)


class ClaimFileStore(ClaimFileReader):
    """`ClaimStore` over one directory, which is made with mode 0700. Raises Unavailable where it cannot be."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._threads = threading.Lock()
        self._was_there = False
        self._make_folder()

    @contextmanager
    def locked(self, deadline_s: float) -> Iterator[None]:
        """Exclusive among threads and processes, or TimedOut. Raises Unavailable where there can be no lock file."""
        until = time.monotonic() + deadline_s
        if not self._threads.acquire(timeout=max(0.0, deadline_s)):
            raise self._busy()
        try:
            fd = self._flock(until)
            try:
                yield
            finally:
                os.close(fd)
        finally:
            self._threads.release()

    def load(self) -> Checkpoint:
        """The current generation; empty where there was none yet.

        Raises Unavailable where it was removed since this process saw it: its claims are promised all the same, and
        whoever went on with none would give their devices away.
        """
        found = self._read(CHECKPOINT)
        if found is None and self._was_there:
            raise Unavailable(
                "checkpoint-lost", "somebody removed the checkpoint", where=str(self._dir / CHECKPOINT),
                hint="the agent rebuilds it at its next look; kubelet retries",
            )  # fmt: skip
        self._was_there = found is not None
        return found or Checkpoint()

    def load_previous(self) -> Checkpoint | None:
        """The generation before, as a hint for recovery; None where it is missing or unreadable."""
        with suppress(Malformed):
            return self._read(PREVIOUS)
        return None

    def lost(self) -> bool:
        """Whether there is no checkpoint at all: nothing was promised yet, or somebody removed it."""
        return not (self._dir / CHECKPOINT).exists()

    def save(self, checkpoint: Checkpoint) -> None:
        """Write, sync, keep the old generation, rename, sync. Raises Unavailable and leaves the old file."""
        current, temporary = self._dir / CHECKPOINT, self._dir / f".{CHECKPOINT}.tmp"
        try:
            write_synced(temporary, render_checkpoint(checkpoint), mode=0o600)
            self._keep_previous(current)
            os.rename(temporary, current)  # noqa: PTH104 - the exact system call
            sync_directory(self._dir)
        except OSError as exc:
            with suppress(OSError):
                temporary.unlink()
            raise Unavailable(
                "checkpoint-write", "cannot write the checkpoint", where=str(current), got=exc.strerror
            ) from exc
        self._was_there = True

    def set_aside(self) -> str:
        """Move an unreadable checkpoint out of the way and return its new name. Raises Unavailable."""
        current = self._dir / CHECKPOINT
        taken = sorted(p for p in self._dir.glob("checkpoint.corrupt-*.json") if _number(p).isdecimal())
        target = self._dir / f"checkpoint.corrupt-{1 + max((int(_number(p)) for p in taken), default=0):06d}.json"
        try:
            for old in taken[: max(0, len(taken) - KEEP_CORRUPT + 1)]:
                old.unlink()
            os.rename(current, target)  # noqa: PTH104
            sync_directory(self._dir)
        except OSError as exc:
            raise Unavailable(
                "checkpoint-aside", "cannot put the broken checkpoint away", where=str(current), got=exc.strerror
            ) from exc
        return target.name

    def _keep_previous(self, current: Path) -> None:
        link = self._dir / f".{PREVIOUS}.tmp"
        with suppress(FileNotFoundError):
            link.unlink()
        with suppress(FileNotFoundError):
            os.link(current, link)
            os.rename(link, self._dir / PREVIOUS)  # noqa: PTH104

    def _flock(self, until: float) -> int:
        """A descriptor that has the lock. The folder is made again where somebody has removed it.

        A file that was removed while we waited for it locks nothing: the next one opens another.
        """
        path = self._dir / LOCK
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:
                self._make_folder()
            except OSError as exc:
                raise self._no_lock(exc) from exc
            else:
                with suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(fd).st_nlink:
                        return fd
                os.close(fd)
            if time.monotonic() >= until:
                raise self._busy()
            time.sleep(POLL_S)

    def _make_folder(self) -> None:
        try:
            self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as exc:
            raise self._no_lock(exc) from exc

    def _no_lock(self, exc: OSError) -> Unavailable:
        return Unavailable("claims-lock", "cannot lock the claims", where=str(self._dir / LOCK), got=exc.strerror)

    def _busy(self) -> TimedOut:
        return TimedOut(
            "claims-locked", "another call works on claims", where=str(self._dir / LOCK), hint="kubelet retries"
        )


def _number(corrupt: Path) -> str:
    return corrupt.stem.rsplit("-", 1)[1]


def write_synced(path: Path, content: bytes, *, mode: int) -> None:
    """A new file with `content`, on disk when this returns. Never follows a link at `path`."""
    with suppress(FileNotFoundError):
        path.unlink()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
