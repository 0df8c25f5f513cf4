"""What was verified before, kept by whoever wants speed and passed in: there is no module-level state.

Entries are results that do not depend on time, trust anchors are part of every key, and only what verified is stored;
validity in time and revocation are judged again on every use. Keys are the exact bytes that were read, not digests of
them: comparing them costs less than hashing, and needs no argument about collisions.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

V = TypeVar("V")

MAX_CHAINS = 1024  # suffixes of chains: three shared ones per product line, one per device
MAX_DEVICES = 1024  # device chains that attest again and again; 15 kB each
MAX_RIMS = 128  # documents; a parsed one takes about 60 kB


class BoundedCache(Generic[V]):
    """Least-recently-used map of fixed capacity, safe to share between threads."""

    __slots__ = ("_capacity", "_entries", "_lock")

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> V | None:
        """The stored value, now the most recently used one."""
        with self._lock:
            value = self._entries.get(key)
            if value is not None:
                self._entries.move_to_end(key)
            return value

    def remember(self, key: Hashable, make: Callable[[], V]) -> V:
        """The stored value, or what `make` gives; what raises is not stored."""
        known = self.get(key)
        if known is None:
            known = make()
            self.put(key, known)
        return known

    def put(self, key: Hashable, value: V) -> None:
        """Store, and forget the least recently used entry when full."""
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._capacity:
                self._entries.popitem(last=False)
