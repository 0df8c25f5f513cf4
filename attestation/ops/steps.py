"""Use cases that end in a durable transaction, written so that no thread has to wait for it.

Such a use case is a generator: it yields what shall be written, goes on with the result once that is durable, and
returns what may leave. An error of the transaction is raised where it yields.
"""

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from attestation.sources.db import Connection, Database

T = TypeVar("T")
Work = Callable[[Connection], Any]
Steps = Generator[Work, Any, T]


def finish(database: Database, steps: Steps[T]) -> T:
    """All of it, in this thread."""
    try:
        work = next(steps)
        while True:
            try:
                written = database.commit(work)
            except Exception as exc:  # noqa: BLE001 - it is raised where the use case yielded
                work = steps.throw(exc)
            else:
                work = steps.send(written)
    except StopIteration as end:
        result: T = end.value
        return result
