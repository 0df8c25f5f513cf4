"""Group commit: one transaction for many, each undone by its own error alone, and none when the commit fails."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection

from attestation.errors import AttestationError, Denied, Unavailable
from attestation.sources.db import Database
from attestation.sources.group import GroupCommit
from tests.attestation.broker.broker import NOW, Broker, broker


class Counted:
    """Durable transactions of a database: how many there were. The first waits until the others have queued."""

    def __init__(self, database: Database, *, fail: bool = False) -> None:
        self._database, self._fail = database, fail
        self.opened = 0
        self.go = threading.Event()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        self.opened += 1
        first = self.opened == 1
        with self._database.write(durable=True) as connection:
            yield connection
            if first:
                assert self.go.wait(20)
            elif self._fail:
                raise Unavailable("store", "no space")


def _waited(group: GroupCommit, work: Callable[[Connection], int]) -> int:
    """`submit`, seen as `run`."""
    over, told = threading.Event(), []

    def then(result: int, error: BaseException | None) -> None:
        told.append((result, error))
        over.set()

    group.submit(work, then)
    assert over.wait(20)
    ((result, error),) = told
    if error is not None:
        raise error
    return result


def _led(group: GroupCommit, work: Callable[[Connection], int]) -> int:
    return group.run(work)


WAYS = {"run": _led, "submit": _waited}
both_ways = pytest.mark.parametrize("way", list(WAYS))


def _together(
    made: Broker, counted: Counted, way: str, refused: frozenset[int] = frozenset(), error: Exception | None = None
) -> dict[int, str]:
    """One leader, then ten callers that queue behind it; the code of what each of them raised."""
    group, outcome = GroupCommit(counted.begin), {}

    def call(number: int) -> None:
        def work(connection: Connection) -> int:
            made.world.audit.append(connection, event="test", subject=str(number), body={}, now=NOW)
            if number in refused:
                raise error or Denied("refused", "not this one")
            return number

        try:
            outcome[number] = "" if WAYS[way](group, work) == number else "another's result"
        except AttestationError as exc:
            outcome[number] = exc.code
        except ZeroDivisionError:
            outcome[number] = "defect"

    threads = [threading.Thread(target=call, args=(n,)) for n in range(11)]
    threads[0].start()
    while not counted.opened:
        pass
    for thread in threads[1:]:
        thread.start()
    while len(group._queue) < 10:
        pass
    counted.go.set()
    for thread in threads:
        thread.join()
    group.close()
    return outcome


@pytest.fixture
def kbs(tmp_path: Path) -> Iterator[Broker]:
    with broker(tmp_path) as made:
        yield made


@both_ways
def test_one_transaction_for_all_who_wait(kbs: Broker, way: str) -> None:
    """Two commits for eleven callers, and everybody gets their own result."""
    counted = Counted(kbs.world.database)
    assert set(_together(kbs, counted, way).values()) == {""}
    assert counted.opened == 2
    assert kbs.world.audit.verify() == 11


@both_ways
def test_a_refusal_undoes_its_own_part(kbs: Broker, way: str) -> None:
    """The others are committed, and the chain has no hole."""
    outcome = _together(kbs, Counted(kbs.world.database), way, frozenset({3, 7}))
    assert {number for number, code in outcome.items() if code == "refused"} == {3, 7}
    assert kbs.world.audit.verify() == 9
    assert {entry.subject for entry in kbs.world.audit.entries()} == {str(n) for n in range(11)} - {"3", "7"}


@both_ways
def test_a_defect_is_raised_where_it_came_from(kbs: Broker, way: str) -> None:
    """And nowhere else: the others are committed."""
    outcome = _together(kbs, Counted(kbs.world.database), way, frozenset({3}), ZeroDivisionError())
    assert outcome.pop(3) == "defect"
    assert set(outcome.values()) == {""}
    assert kbs.world.audit.verify() == 10


@both_ways
def test_a_failed_commit_is_nobodys_success(kbs: Broker, way: str) -> None:
    """Whoever shared it is told, and nothing of it is there."""
    outcome = _together(kbs, Counted(kbs.world.database, fail=True), way, frozenset({5}))
    assert outcome.pop(0) == ""
    assert outcome.pop(5) == "refused"
    assert set(outcome.values()) == {"store"}
    assert kbs.world.audit.verify() == 1


def test_what_must_be_durable_is_written_through_whatever_was_written_before(tmp_path: Path) -> None:
    """PRAGMA synchronous: 2 is FULL, 1 is NORMAL. Both kinds share one connection."""
    with broker(tmp_path) as made:
        database, seen = made.world.database, []
        for durable in (False, True, True, False, True):
            with database.write(durable=durable) as connection:
                seen.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())
        database.commit(lambda connection: seen.append(connection.exec_driver_sql("PRAGMA synchronous").scalar()))
    assert seen == [1, 2, 2, 1, 2, 2]


def test_what_was_handed_in_is_written_before_the_end(kbs: Broker) -> None:
    """`close` waits for it, and says what came of it."""
    told: list[int] = []
    for number in range(5):
        kbs.world.database.commit_later(_entry(kbs, number), lambda seq, _error: told.append(seq))
    kbs.world.database.close()
    assert told == [1, 2, 3, 4, 5]
    assert kbs.world.audit.verify() == 5


def test_who_cannot_be_told_stops_nobody(kbs: Broker) -> None:
    """A defect of one who waits is not the end of the thread that commits for all."""
    group, told = GroupCommit(lambda: kbs.world.database.write(durable=True)), []

    def broken(_result: object, _error: object) -> None:
        raise ZeroDivisionError

    group.submit(_entry(kbs, 0), broken)
    group.submit(_entry(kbs, 1), lambda seq, _error: told.append(seq))
    group.close()
    assert told == [2]


def _entry(made: Broker, number: int) -> Callable[[Connection], int]:
    return lambda c: made.world.audit.append(c, event="test", subject=str(number), body={}, now=NOW)


class Panic(BaseException):
    """What a library in Rust raises for a defect of its own."""


def test_what_ends_a_commit_without_an_exception_is_nobodys_success(kbs: Broker) -> None:
    """Its neighbours are committed or told; the thread goes on."""
    counted, told = Counted(kbs.world.database), dict[int, object]()
    group = GroupCommit(counted.begin)

    def hand_in(number: int) -> threading.Event:
        over = threading.Event()

        def work(connection: Connection) -> int:
            _entry(kbs, number)(connection)
            if number == 2:
                raise Panic
            return number

        def then(result: int, error: BaseException | None) -> None:
            told[number] = result if error is None else type(error)
            over.set()

        group.submit(work, then)
        return over

    waited = [hand_in(0)]
    while not counted.opened:
        pass
    waited += [hand_in(number) for number in (1, 2, 3)]
    counted.go.set()
    waited.append(hand_in(4))
    assert all(over.wait(20) for over in waited)
    group.close()
    assert told == {0: 0, 1: 1, 2: Panic, 3: 3, 4: 4}
    assert {entry.subject for entry in kbs.world.audit.entries()} == {"0", "1", "3", "4"}
