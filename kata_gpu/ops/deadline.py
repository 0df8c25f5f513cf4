"""How long a caller will still wait. Kubelet gives a call 45 s; nobody may block past it (dra.md 1.6)."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from kata_gpu.errors import TimedOut


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on a monotonic clock."""

    at: float
    clock: Callable[[], float]

    @classmethod
    def after(cls, seconds: float, clock: Callable[[], float] = time.monotonic) -> Self:
        """`seconds` from now."""
        return cls(clock() + seconds, clock)

    def remaining(self, what: str, *, at_most: float = float("inf")) -> float:
        """Seconds left, bounded by `at_most`. Raises TimedOut, naming `what` was about to start, when none is left."""
        left = self.at - self.clock()
        if left <= 0:
            raise TimedOut(
                "deadline", "no time left for this call", where=what, hint="kubelet retries; nothing is lost"
            )
        return min(left, at_most)
