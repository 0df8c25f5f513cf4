"""One benchmark figure, and the two clocks that figures are made with.

A suite is a module of this package with `def figures() -> list[Figure]`; `python -m tests.bench` runs them all.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """`value` is a ratio unless `unit` says otherwise; `at_most`/`at_least` is the promise, None when only reported."""

    suite: str
    name: str
    value: float
    unit: str = "x"
    at_most: float | None = None
    at_least: float | None = None
    caches: str = ""  # which caches were warm

    @property
    def met(self) -> bool:
        """Whether the promise holds; a figure without a promise is only reported."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    def to_json(self) -> dict[str, object]:
        """Plain mapping."""
        return asdict(self) | {"met": self.met}


def seconds_per_call(call: Callable[[], object], *, rounds: int = 7, budget_s: float = 0.25) -> float:
    """Best of `rounds` batches of about `budget_s / rounds` each: the least disturbed measurement of one call."""
    started = time.perf_counter()
    call()
    once = max(time.perf_counter() - started, 1e-7)
    repeat = max(1, int(budget_s / rounds / once))
    best = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(repeat):
            call()
        best.append((time.perf_counter() - started) / repeat)
    return min(best)


def paired_ratio(call: Callable[[], object], peer: Callable[[], object], *, rounds: int = 9) -> float:
    """Median over rounds of call/peer, both measured next to each other, so that machine noise cancels."""
    ratios = [
        seconds_per_call(call, rounds=1, budget_s=0.05) / seconds_per_call(peer, rounds=1, budget_s=0.05)
        for _ in range(rounds)
    ]
    return statistics.median(ratios)
