"""Commands of ours as processes of their own: long-running ones with a log each, short ones at a console."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
START_S = 60.0  # two loaded cores
STOP_S = 20.0


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = START_S) -> None:
    """Wait for a condition, or fail saying what did not happen."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(0.05)


@dataclass
class Program:
    """`argv` is a command line whose first word is one of our console scripts, or the path of a program."""

    argv: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    _process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def pid(self) -> int:
        """Of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs."""
        assert self._process is not None
        return self._process.poll()

    @property
    def said(self) -> str:
        """Everything that it wrote, over all its starts."""
        return self.log.read_text()

    def start(self, ready: Callable[[], bool]) -> None:
        """Returns when `ready`."""
        with self.log.open("ab") as log:
            program = self.argv[0] if "/" in self.argv[0] else str(BIN / self.argv[0])
            self._process = subprocess.Popen(
                [program, *self.argv[1:]], stdout=log, stderr=log, cwd=ROOT, env=os.environ | self.environment
            )

        def up() -> bool:
            if self.code is not None:
                raise ChildProcessError(f"{self.argv[:3]} ended with {self.code}:\n{self.said[-3000:]}")
            return ready()

        until(up, f"{self.argv[:3]} is ready:\n{self.said[-3000:]}")

    def wait(self) -> int:
        """Exit code of a process that ends by itself."""
        assert self._process is not None
        return self._process.wait(START_S)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(STOP_S)

    def kill(self) -> None:
        """SIGKILL: no handler runs, no buffer is flushed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S)


@dataclass(frozen=True)
class Console:
    """Runs our commands to their ends and keeps what they say."""

    log: Path

    def __call__(self, *argv: str | Path, secret: bool = False) -> str:
        """Stdout, which is not kept where it is `secret`. A command that fails fails the test with what it said."""
        words = [str(word) for word in argv]
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]], capture_output=True, text=True, timeout=START_S, check=False
        )
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(words)}\n{'' if secret else done.stdout}{done.stderr}")
        assert done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout
