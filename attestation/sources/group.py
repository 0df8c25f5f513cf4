"""Group commit: transactions that wait for the disk together share one fsync.

A release must be durable before its key leaves, and a disk syncs some hundred times a second. While one caller syncs,
others queue; the next one commits for all of them. Where the group before had more than one member it waits a moment
for more: a transaction of eight costs hardly more than one of one, and who is alone waits for nobody.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from sqlalchemy import Connection, text

from attestation.errors import AttestationError, Unavailable
from attestation.sources.statement import Statement

MAX_GROUP = 64  # bounds how long the first of a group waits for the last
GATHER_S = 0.001  # less than most disks take to sync
_PART, _UNDO, _KEEP = (
    Statement(text(f"{verb} part")) for verb in ("SAVEPOINT", "ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT")
)
T = TypeVar("T")


class _Job:
    """One caller's part. `error` until it is known to be committed."""

    __slots__ = ("done", "error", "result", "work")

    def __init__(self, work: Callable[[Connection], Any]) -> None:
        self.work = work
        self.done = False
        self.result: Any = None
        self.error: AttestationError | None = None


class GroupCommit:
    """`begin` opens a durable transaction. Callers wait for the leader's lock; whoever gets it commits the queue."""

    def __init__(self, begin: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._begin = begin
        self._leading = threading.Lock()
        self._queue: deque[_Job] = deque()
        self._company = False

    def run(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, once it is durable."""
        job = _Job(work)
        self._queue.append(job)
        with self._leading:
            if self._company and not job.done:
                time.sleep(GATHER_S)
            while not job.done:
                jobs = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GROUP))]
                self._company = len(jobs) > 1
                self._lead(jobs)
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def _commit(self, jobs: list[_Job], *, parts: bool) -> None:
        with self._begin() as connection:
            for job in jobs:
                if parts:
                    _attempt(job, connection)
                else:
                    job.result = job.work(connection)

    def _lead(self, jobs: list[_Job]) -> None:
        outcome = Unavailable("group-commit", "a transaction committed together with this one failed; try again")
        try:
            try:
                self._commit(jobs, parts=False)
            except AttestationError as exc:
                if isinstance(exc, Unavailable) or len(jobs) == 1:
                    raise
                self._commit(jobs, parts=True)  # one of them refused: once more, so that it undoes nothing but itself
        except Unavailable as exc:
            outcome = exc
        else:
            for job in jobs:
                job.done = True
        finally:
            # Nothing of a failed commit may look as if it had happened. An unexpected error leaves here as well, to the
            # caller that led; the others may retry.
            for job in jobs:
                if not job.done:
                    job.done, job.error = True, job.error or outcome


def _attempt(job: _Job, connection: Connection) -> None:
    """Run one part. What it refuses is undone by itself; a store that does not answer ends the whole group."""
    _PART.run(connection, {})
    try:
        job.result = job.work(connection)
    except Unavailable:
        raise
    except AttestationError as exc:
        _UNDO.run(connection, {})
        job.error = exc
    _KEEP.run(connection, {})
