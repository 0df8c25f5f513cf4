"""Use cases that end in a durable transaction, written so that no thread has to wait for it.

Such a use case is a generator: it yields what shall be written, goes on with the result once that is durable, and
returns what may leave. An error of the transaction is raised where it yields.
"""

from collections.abc import Callable, Generator
from typing import Any, TypeVar

from attestation.sources.db import Connection

T = TypeVar("T")
Work = Callable[[Connection], Any]
Steps = Generator[Work, Any, T]
