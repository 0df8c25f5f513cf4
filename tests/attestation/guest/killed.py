"""Kills a command line with SIGKILL before every so many of its changes to the file system, and writes down what is left.

`python -m tests.attestation.guest.killed` reads a `Plan` as JSON and prints one `Moment` a kill. Each run is a process of
its own, forked from one that has the program loaded.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

MARK = b"TOP-SECRET-WEIGHTS-"
CHANGES = frozenset(
    {"open", "pwrite", "write", "fsync", "fdatasync", "ftruncate", "fchmod", "mkdir", "rename", "replace", "unlink", "rmdir"}
)  # fmt: skip


LAST = 10  # the last changes give files their names: before each of them


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`program` is `kbs` or `guest`; `reset` is removed before every run; files below `watch` are written down."""

    program: str
    argv: list[str]
    points: int
    reset: list[str]
    watch: list[str]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One run that was killed before this change; path to size, digest and whether it holds plaintext."""

    change: int
    left: dict[str, tuple[int, str, bool]]


def kill_often(plan: Plan) -> list[Moment]:
    """Every kill of a plan."""
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(asdict(plan)),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [Moment(**row) for row in json.loads(done.stdout)]


def main() -> None:
    """The process that forks."""
    plan = Plan(**json.loads(sys.stdin.read()))
    total = _run(plan, 0)
    moments = []
    spread = {1 + number * total // plan.points for number in range(plan.points)}
    for at in sorted(spread | set(range(max(1, total - LAST + 1), total + 1))):
        _run(plan, at)
        moments.append(asdict(Moment(change=at, left=_look(plan.watch))))
    _run(plan, total // 2)  # what the test's own next run goes on with
    print(json.dumps(moments))


def _run(plan: Plan, kill_at: int) -> int:
    """Fork, run, and kill before the given change; 0 is never reached: how many changes there are."""
    for path in plan.reset:
        shutil.rmtree(path, ignore_errors=True)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _child(plan, kill_at, write_end)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if kill_at and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise RuntimeError(f"the run ended before change {kill_at}: {status}")
    if not kill_at and status != 0:
        raise RuntimeError(f"the run failed: {status}")
    return int(said or 0)


def _child(plan: Plan, kill_at: int, pipe: int) -> None:
    """Counts in every thread, and dies where it was told to."""
    count, lock = 0, threading.Lock()

    def profile(_frame: FrameType, event: str, called: Any) -> None:
        nonlocal count
        if event == "c_call" and called.__name__ in CHANGES and called.__module__ == "posix":
            with lock:
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    threading.setprofile(profile)
    sys.setprofile(profile)
    code = _program(plan)
    sys.setprofile(None)
    os.write(pipe, str(count).encode())
    os._exit(code)


def _program(plan: Plan) -> int:
    if plan.program == "guest":
        from attestation.guest.main import run

        return run(plan.argv)
    from attestation.cli import main

    return main.run(main.cli, plan.argv)


def _look(folders: list[str]) -> dict[str, tuple[int, str, bool]]:
    found = {}
    for folder in folders:
        for path in Path(folder).rglob("*"):
            if path.is_file():
                data = path.read_bytes()
                found[str(path)] = (len(data), hashlib.sha256(data).hexdigest(), MARK in data)
    return found


if __name__ == "__main__":
    main()
