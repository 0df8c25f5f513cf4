"""Admission: where use cases run, and who has to come back later.

A bounded pool of threads (signature checks release the interpreter lock) and a bounded queue. What does not fit is
refused at once with `Unavailable`: a guest that waits for a minute times out anyway. New handshakes are refused before
those that are under way, so that work already done is finished and not thrown away.
"""

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import ParamSpec, TypeVar

from attestation.errors import Denied, Unavailable

P = ParamSpec("P")
T = TypeVar("T")
MAX_PEERS = 10_000  # buckets kept; the oldest is forgotten


class Workers:
    """`run` executes a blocking call in the pool, or refuses."""

    def __init__(self, *, threads: int, queue: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kbs")
        self.limit = threads + queue
        self._door = threads + queue // 2
        self._inside = 0

    @property
    def inside(self) -> int:
        """Calls running or waiting."""
        return self._inside

    def admit(self, *, new: bool = False) -> None:
        """Unavailable where a call would not fit; `new` ones leave half of the queue to those under way."""
        if self._inside >= (self._door if new else self.limit):
            raise Unavailable("overloaded", "the broker is busy; try again")

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of the call, which keeps its exceptions."""
        self.admit()
        self._inside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._pool, functools.partial(call, *args, **kwargs)
            )
        finally:
            self._inside -= 1

    def close(self) -> None:
        """Wait for what runs."""
        self._pool.shutdown(wait=True)


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
