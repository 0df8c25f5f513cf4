"""How far a long run is, as a line now and then: what a pod's log can hold and a person can read."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

EVERY_S = 10.0  # a run that ends before says nothing
_GB = 1_000_000_000


@dataclass(slots=True, kw_only=True)
class Progress:
    """Counts bytes, from any thread."""

    what: str
    total: int
    clock: Callable[[], float]
    say: Callable[[str], None]
    done: int = 0
    next_at: float = field(init=False)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """The first line is due in `EVERY_S`."""
        self.next_at = self.clock() + EVERY_S

    def __call__(self, size: int) -> None:
        """So many bytes more."""
        with self.lock:
            self.done += size
            now = self.clock()
            if now < self.next_at:
                return
            self.next_at = now + EVERY_S
            line = f"{self.what}: {self.done / _GB:.1f} of {self.total / _GB:.1f} GB"
        self.say(line)
