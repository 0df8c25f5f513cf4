"""When an agent looks: at each wake-up, after PERIOD without one, and never closer than MIN_APART_S.

Whoever may make kernel events, or write our slices, could otherwise keep a processor of the node busy.
"""

import threading
import time
from collections.abc import Callable

from kata_gpu.ops.agent import PERIOD

MIN_APART_S = 1.0  # from the end of a pass to the next; a hot plug comes as some ten events within milliseconds


class Passes:
    """`wake` and `stop` are called by other threads."""

    def __init__(self, *, period_s: float = PERIOD.total_seconds(), min_apart_s: float = MIN_APART_S) -> None:
        self._period_s = period_s
        self._min_apart_s = min_apart_s
        self._news = threading.Event()
        self._stopped = threading.Event()

    def wake(self) -> None:
        """Something may have happened: another pass, and one more where it happens during a pass."""
        self._news.set()

    def stop(self) -> None:
        """No further pass."""
        self._stopped.set()
        self._news.set()

    def run(self, step: Callable[[], None]) -> None:
        """`step` again and again, until `stop`."""
        while not self._stopped.is_set():
            self._news.clear()  # before the look: what happens during it leads to another
            step()
            earliest = time.monotonic() + self._min_apart_s
            self._news.wait(self._period_s)
            self._stopped.wait(max(0.0, earliest - time.monotonic()))
