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
from queue import SimpleQueue
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, text

from attestation.errors import Unavailable
from attestation.sources.statement import Statement

log = structlog.get_logger()
MAX_GROUP = 64  # bounds how long the first of a group waits for the last
GATHER_S = 0.001  # less than most disks take to sync
_PART, _UNDO, _KEEP = (
    Statement(text(f"{verb} part")) for verb in ("SAVEPOINT", "ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT")
)
T = TypeVar("T")
Then = Callable[[Any, BaseException | None], None]


class _Job:
    """One caller's part. `error` until it is known to be committed."""

    __slots__ = ("done", "error", "result", "then", "work")

    def __init__(self, work: Callable[[Connection], Any], then: Then | None = None) -> None:
        self.work, self.then = work, then
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None


class GroupCommit:
    """`begin` opens a durable transaction. Whoever gets the leader's lock commits the queue.

    Callers of `run` lead themselves; what was handed to `submit` has a thread that does.
    """

    def __init__(self, begin: Callable[[], AbstractContextManager[Connection]]) -> None:
        self._begin = begin
        self._leading = threading.Lock()
        self._queue: deque[_Job] = deque()
        self._company = False
        self._calls: SimpleQueue[bool] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[Connection], T]) -> T:
        """The result of `work`, once it is durable."""
        job = _Job(work)
        self._queue.append(job)
        self._lead(lambda: job.done)
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def submit(self, work: Callable[[Connection], Any], then: Then) -> None:
        """Likewise in a thread of this object's own, which calls `then` with the result or the error."""
        self._queue.append(_Job(work, then))
        if self._thread is None:
            with self._leading:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._serve, name="group-commit", daemon=True)
                    self._thread.start()
        self._calls.put(True)

    def close(self) -> None:
        """Commit what was handed in, and end the thread."""
        if self._thread is not None:
            self._calls.put(False)
            self._thread.join()
            self._thread = None

    def _serve(self) -> None:
        while self._calls.get():
            self._lead(lambda: not self._queue)

    def _lead(self, enough: Callable[[], bool]) -> None:
        """Commit groups until there are enough of them; what was waited for is said without the lock."""
        over: list[_Job] = []
        try:
            with self._leading:
                if self._company and not enough():
                    time.sleep(GATHER_S)
                while not enough():
                    jobs = [self._queue.popleft() for _ in range(min(len(self._queue), MAX_GROUP))]
                    self._company = len(jobs) > 1
                    over += jobs
                    self._finish(jobs)
        finally:
            for job in over:
                _tell(job)

    def _finish(self, jobs: list[_Job]) -> None:
        failure: BaseException | None = None
        try:
            self._commit(jobs, parts=False)
        except Unavailable as exc:
            failure = exc
        except BaseException as exc:  # noqa: BLE001 - it is raised where the job came from
            failure = exc if len(jobs) == 1 else self._apart(jobs)
        # Nothing of a failed commit may look as if it had happened.
        for job in jobs:
            job.done, job.error = True, job.error or failure

    def _apart(self, jobs: list[_Job]) -> BaseException | None:
        """One of them refused: once more, so that it undoes nothing but itself."""
        try:
            self._commit(jobs, parts=True)
        except BaseException as exc:  # noqa: BLE001 - likewise
            return exc
        return None

    def _commit(self, jobs: list[_Job], *, parts: bool) -> None:
        with self._begin() as connection:
            for job in jobs:
                if parts:
                    _attempt(job, connection)
                else:
                    job.result = job.work(connection)


def _tell(job: _Job) -> None:
    """Whoever waits for the others shall hear of it, whatever becomes of one."""
    try:
        if job.then is not None:
            job.then(job.result, job.error)
    except Exception as exc:  # noqa: BLE001 - a defect of the one who asked to be told
        log.error("commit.not-told", error=type(exc).__name__)


def _attempt(job: _Job, connection: Connection) -> None:
    """Run one part. What it refuses is undone by itself; a store that does not answer ends the whole group."""
    _PART.run(connection, {})
    try:
        job.result = job.work(connection)
    except Unavailable:
        raise
    except BaseException as exc:  # noqa: BLE001 - it is raised where the job came from
        _UNDO.run(connection, {})
        job.error = exc
    _KEEP.run(connection, {})
