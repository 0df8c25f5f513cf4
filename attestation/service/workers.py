"""Admission: where use cases run, and who has to come back later.

A bounded pool of threads (signature checks release the interpreter lock) and a bounded queue. What does not fit is
refused at once with `Unavailable`: a guest that waits for a minute times out anyway. The queue takes a burst; where
requests have been waiting for longer than a moment all the time it is a standing one, which helps nobody, and hardly
anything is let into it until it is gone (CoDel, RFC 8289). New handshakes are refused before those that are under way,
so that work already done is finished and not thrown away.
"""

import asyncio
import contextlib
import functools
import time
from collections import OrderedDict
from collections.abc import Callable
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, ParamSpec, TypeVar

from attestation.errors import Denied, Unavailable
from attestation.ops.steps import Steps, Work

P = ParamSpec("P")
T = TypeVar("T")
Submit = Callable[[Work, Callable[[Any, BaseException | None], None]], None]  # `Database.commit_later`
TARGET_S = 0.01  # a wait that nobody notices next to a handshake
TAKEN_S = 0.02  # likewise, with the work and the disk: one use case with nobody before it takes a quarter
INTERVAL_S = 0.1  # RFC 8289 4.3: a queue that lasts longer than this is no burst
MAX_PEERS = 10_000  # buckets kept; the oldest is forgotten


class Workers:
    """`run` executes a blocking call in the pool, or refuses."""

    def __init__(self, *, threads: int, queue: int) -> None:
        self._pool = _Pool(threads)
        self.limit = threads + queue
        self._threads = threads
        self._inside = 0
        self._late_since: float | None = None
        self._standing = False
        self._refused = 0.0

    @property
    def inside(self) -> int:
        """Calls running or waiting."""
        return self._inside

    def admits(self, *, new: bool = False) -> bool:
        """Whether a call would fit; `new` ones leave half of the queue, or the last thread, to those under way."""
        if self._standing:
            most = max(1, self._threads - 1) if new else self._threads
        else:
            most = self._threads + (self.limit - self._threads) // 2 if new else self.limit
        fits = self._inside < most
        if not fits:
            self._refused = time.monotonic()
        return fits

    def admit(self, *, new: bool = False) -> None:
        """Unavailable where a call would not fit."""
        if not self.admits(new=new):
            raise Unavailable("overloaded", "the broker is busy; try again")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of the call, which keeps its exceptions."""
        job = functools.partial(self._start, time.monotonic(), functools.partial(call, *args, **kwargs))
        result: T = await self._pass(job)
        return result

    async def take(self, steps: Steps[T], submit: Submit) -> T:
        """The result of a use case, for whose transaction no thread here waits: `submit` goes on with it."""
        queued = time.monotonic()
        job = functools.partial(_advance, steps=steps, step=functools.partial(next, steps), submit=submit)
        result: T = await self._pass(job)
        self._judge(queued, TAKEN_S)  # it may have waited for others' transactions as well as for a thread
        return result

    async def _pass(self, job: Callable[["_Answer"], None]) -> Any:
        self.admit()
        self._inside += 1
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        try:
            self._pool.put(functools.partial(job, _Answer(loop, answer)))
            return await answer
        finally:
            self._inside -= 1
            if not self._inside:
                self._relax(time.monotonic())
            del answer  # an error's traceback holds this frame, and the future the error

    def _start(self, queued: float, call: Callable[[], Any], answer: "_Answer") -> None:
        self._judge(queued, TARGET_S)
        try:
            result = call()
        except BaseException as exc:  # noqa: BLE001 - it is raised where the answer is waited for
            answer.give(None, exc)
        else:
            answer.give(result)

    def _judge(self, queued: float, target: float) -> None:
        now = time.monotonic()
        if now - queued <= target:
            self._relax(now)
        elif self._late_since is None:
            self._late_since = now
        elif now - self._late_since > INTERVAL_S:
            self._standing = True

    def _relax(self, now: float) -> None:
        """Nobody waits for long. A queue that is short because others are refused may not grow again at once."""
        self._late_since = None
        if now - self._refused > INTERVAL_S:
            self._standing = False

    def close(self) -> None:
        """Wait for what runs."""
        self._pool.close()


class _Pool:
    """Threads that take jobs from one queue: an executor of the standard library costs two locks and futures more."""

    def __init__(self, threads: int) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=f"kbs-{number}", daemon=True) for number in range(threads)]
        for thread in self._threads:
            thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Have it done. A job raises nothing: it has an answer to give."""
        self._jobs.put(job)

    def close(self) -> None:
        """Wait for what runs."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # nothing of this request stays while the next one is waited for


class _Answer:
    """Where the result of a job is waited for; given from any thread."""

    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]") -> None:
        self._loop = loop
        self._future: asyncio.Future[Any] | None = future

    def give(self, result: object, error: BaseException | None = None) -> None:
        """Either of them."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: object, error: BaseException | None) -> None:
        # Let go of it: frames in the traceback of an error know this object, and the future would know the error.
        future, self._future = self._future, None
        if future is None or future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def _advance(answer: _Answer, *, steps: Steps[Any], step: Callable[[], Work], submit: Submit) -> None:
    """One step of a use case, up to its next transaction or its end."""
    try:
        submit(step(), functools.partial(_go_on, answer, steps, submit))
    except StopIteration as end:
        answer.give(end.value)
    except BaseException as exc:  # noqa: BLE001 - likewise
        answer.give(None, exc)


def _go_on(answer: _Answer, steps: Steps[Any], submit: Submit, written: object, error: BaseException | None) -> None:
    step = functools.partial(steps.send, written) if error is None else functools.partial(steps.throw, error)
    _advance(answer, steps=steps, step=step, submit=submit)


class RateLimit:
    """One token bucket for each name (a peer's address, a chip id): `rate` a second, bursts of `burst`."""

    def __init__(self, *, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = Lock()

    def take(self, name: str, at: float) -> None:
        """Take one token, or Denied. `at` is any monotonic clock in seconds."""
        with self._lock:
            tokens, last = self._buckets.pop(name, (float(self._burst), at))
            tokens = min(self._burst, tokens + (at - last) * self._rate)
            self._buckets[name] = (tokens - (tokens >= 1), at)
            if len(self._buckets) > MAX_PEERS:
                self._buckets.popitem(last=False)
        if tokens < 1:
            raise Denied("rate-limited", "too many requests; try again")
