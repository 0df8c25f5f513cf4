"""What somebody who waits for `collateral fetch` sees."""

import os
import pty
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO

import pytest

from attestation.cli.collateral_fetch import _progress
from attestation.ops.collect import Outcome, Step

STEPS = [Step("RIM a", tuple), Step("RIM b", tuple)]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    yield master, slave
    os.close(slave)
    os.close(master)


def fetch_two() -> None:
    with _progress() as (begin, done):
        begin(STEPS[:1])
        done(Outcome(step="RIM a"))
        begin(STEPS[1:])
        done(Outcome(step="RIM b" + "c" * 100))


def test_one_line_on_a_terminal(terminal: tuple[int, int]) -> None:
    """Written over with each step, cut to its width, and gone at the end."""
    master, slave = terminal
    with os.fdopen(os.dup(slave), "w") as stream, redirect_stderr(stream):
        fetch_two()
    over = "\r\x1b[K"
    expected = f"{over}1/1 RIM a{over}2/2 RIM b{'c' * 55}{over}"
    seen = ""
    while len(seen) < len(expected):  # a terminal hands out what it has
        seen += os.read(master, 4096).decode()
    assert seen == expected


def test_nothing_elsewhere() -> None:
    """Logs and pipes get the result alone."""
    with redirect_stderr(StringIO()) as stream:
        fetch_two()
    assert stream.getvalue() == ""
