"""How much of requests' bodies is held while it arrives: slow senders on many connections do not fill memory."""

from collections import Counter
from threading import Lock

from attestation.errors import Unavailable

MAX_BYTES = 256 * 1024 * 1024  # of one process; evidence of 8 GPUs is 0.2 MiB, the longest body 4 MiB
MAX_BYTES_EACH = 64 * 1024 * 1024  # of one address: hundreds of guests behind a gateway


class Intake:
    """Bytes that were received of bodies which are not complete, of all and of each address."""

    def __init__(self, total: int = MAX_BYTES, each: int = MAX_BYTES_EACH) -> None:
        self._total, self._each = total, each
        self._held: Counter[str] = Counter()
        self._all = 0
        self._lock = Lock()

    def take(self, name: str, size: int) -> None:
        """Hold so much more, or Unavailable."""
        with self._lock:
            if self._all + size > self._total or self._held[name] + size > self._each:
                raise Unavailable("overloaded", "the broker is busy; try again")
            self._all += size
            self._held[name] += size

    def give(self, name: str, size: int) -> None:
        """The body is complete, or nobody wants it any more."""
        with self._lock:
            self._all -= size
            self._held[name] -= size
            if self._held[name] <= 0:
                del self._held[name]
