"""The agent's loop: prompt, patient, and not to be kept busy."""

import threading
import time
from itertools import pairwise

from kata_gpu.dra.passes import Passes


def run(passes: Passes, moments: list[float], until: int) -> threading.Thread:
    """The loop in a thread; it stops itself after as many passes."""

    def step() -> None:
        moments.append(time.monotonic())
        if len(moments) >= until:
            passes.stop()

    thread = threading.Thread(target=passes.run, args=(step,))
    thread.start()
    return thread


def test_a_flood_of_events_does_not_make_it_spin() -> None:
    passes, moments = Passes(period_s=30, min_apart_s=0.05), list[float]()
    thread = run(passes, moments, 6)
    while thread.is_alive():
        passes.wake()
    assert min(b - a for a, b in pairwise(moments)) >= 0.05


def test_an_event_during_a_pass_leads_to_another() -> None:
    passes, seen = Passes(period_s=30, min_apart_s=0.01), 0

    def step() -> None:
        nonlocal seen
        seen += 1
        passes.wake() if seen < 3 else passes.stop()

    passes.run(step)
    assert seen == 3


def test_it_looks_without_any_event_and_ends_at_once() -> None:
    moments: list[float] = []
    run(Passes(period_s=0.01, min_apart_s=0), moments, 3).join(10)
    assert len(moments) == 3
    patient = Passes(period_s=30, min_apart_s=30)
    thread = run(patient, moments, 100)
    patient.stop()
    thread.join(10)
    assert not thread.is_alive()
