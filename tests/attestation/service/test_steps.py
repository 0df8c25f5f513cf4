"""Use cases whose transaction no thread waits for: what comes back where, and that nothing is lost on the way."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Generator
from typing import Any

import pytest

from attestation.errors import Denied, Unavailable
from attestation.ops.steps import Work
from attestation.service.workers import Workers

Then = Callable[[Any, Exception | None], None]


def _write(_connection: object) -> str:
    return "written"


class Store:
    """`Database.commit_later` that answers from another thread, with an error where one is given."""

    def __init__(self, *errors: Exception | None) -> None:
        self.errors, self.works = list(errors), list[Work]()

    def commit_later(self, work: Work, then: Then) -> None:
        self.works.append(work)
        error = self.errors.pop(0) if self.errors else None
        result = None if error else work(None)  # type: ignore[arg-type]
        threading.Thread(target=then, args=(result, error)).start()


def take(steps: Generator[Work, Any, Any], store: Store) -> Any:
    workers = Workers(threads=1, queue=1)
    try:
        return asyncio.run(workers.take(steps, store.commit_later))
    finally:
        assert workers.inside == 0
        workers.close()


def test_the_result_comes_after_the_transaction() -> None:
    """And with what the transaction gave."""
    store = Store()

    def steps() -> Generator[Work, Any, tuple[str, int]]:
        written = yield _write
        return written, len(store.works)

    assert take(steps(), store) == ("written", 1)


def test_a_use_case_may_write_nothing_or_twice() -> None:
    """The answer to evidence that was answered before needs no transaction."""

    def steps(times: int) -> Generator[Work, Any, int]:
        for _ in range(times):
            yield _write
        return times

    for times in range(3):
        store = Store()
        assert take(steps(times), store) == times
        assert len(store.works) == times


def test_an_error_of_the_transaction_is_raised_inside() -> None:
    """Where the use case can still refuse, and clean up."""
    seen: list[str] = []

    def steps() -> Generator[Work, Any, None]:
        try:
            yield _write
        except Denied:
            seen.append("denied")
            raise
        finally:
            seen.append("left")

    with pytest.raises(Denied):
        take(steps(), Store(Denied("exhausted", "no more")))
    assert seen == ["denied", "left"]


@pytest.mark.parametrize("after", [False, True])
def test_errors_of_the_use_case_reach_the_caller(after: bool) -> None:
    """Before its transaction and after it."""

    def steps() -> Generator[Work, Any, None]:
        if after:
            yield _write
        raise Unavailable("later", "later")

    store = Store()
    with pytest.raises(Unavailable) as caught:
        take(steps(), store)
    assert caught.value.code == "later"
    assert len(store.works) == after


def test_a_thread_is_free_while_the_disk_is_not() -> None:
    """One thread, two use cases whose transactions end together."""
    held: list[Then] = []

    def steps() -> Generator[Work, Any, str]:
        written: str = yield _write
        return written

    def submit(_work: Work, then: Then) -> None:
        held.append(then)
        if len(held) == 2:
            for each in held:
                each("both", None)

    async def run() -> tuple[str, str]:
        return await asyncio.gather(workers.take(steps(), submit), workers.take(steps(), submit))

    workers = Workers(threads=1, queue=1)
    assert list(asyncio.run(asyncio.wait_for(run(), 20))) == ["both", "both"]
    workers.close()


@pytest.mark.parametrize("fails", ["never", "before", "after"])
def test_nothing_is_left_to_the_collector(fails: str) -> None:
    """An error, its traceback and what waits for it must not hold each other: refusals are what strangers send."""

    def steps() -> Generator[Work, Any, None]:
        if fails == "before":
            raise Denied("refused", "refused")
        yield _write
        if fails == "after":
            raise Denied("refused", "refused")

    def submit(work: Work, then: Then) -> None:
        then(work(None), None)  # type: ignore[arg-type]

    async def run(times: int) -> int:
        gc.collect()
        for _ in range(times):
            with contextlib.suppress(Denied):
                await workers.take(steps(), submit)
        return gc.collect()

    workers = Workers(threads=1, queue=1)
    gc.disable()
    try:
        assert asyncio.run(run(200)) < 200
    finally:
        gc.enable()
        workers.close()
