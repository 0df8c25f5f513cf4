"""The file that processes share a simulated host by, and the directories beside it that are real."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kata_gpu.errors import Malformed, Misconfigured
from kata_gpu.host.durable import replace_file
from kata_gpu.host.simkernel.machine import Machine

FORMAT = "kata-gpu simulated host 1"
MAX_STATE_BYTES = 16 << 20  # an 8+4 host takes some 60 KiB

OURS = {"/run/cdi": "cdi", "/var/lib/kata-gpu": "state"}
"""Directories of the simulated host that are real: below `run_directory`, for our own files."""


def run_directory(path: Path) -> Path:
    """Where the real files of the simulated host in `path` are: its /run/cdi and our state."""
    return path.with_name(f"{path.name}.d")


class StateFile:
    """A machine in a file; `changed` says whether somebody else has written it since we read or wrote it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing it. Raises OSError."""
        with self.path.with_name(self.path.name + ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def changed(self) -> bool:
        """Whether it is not what we know."""
        return self._stamp() != self._seen

    def load(self) -> Machine:
        """Read it. Raises Malformed or Misconfigured."""
        try:
            self._seen = self._stamp()
            raw = self.path.read_bytes()
        except OSError as exc:
            raise Misconfigured(
                "sim-state",
                "the simulated host cannot be read",
                where=str(self.path),
                got=exc.strerror,
                hint=f"kata-gpu sim create --preset hgx-h100 {self.path}",
            ) from exc
        try:
            data = json.loads(raw[: MAX_STATE_BYTES + 1])
            if data.pop("format") != FORMAT:
                raise ValueError(f"a format that is not {FORMAT}")
            return Machine.from_json(data)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            got = f"no {exc}" if isinstance(exc, KeyError) else exc
            raise Malformed(
                "sim-state",
                "not the state of a simulated host",
                where=str(self.path),
                expected="a file that `kata-gpu sim create` wrote",
                got=got,
            ) from exc

    def save(self, machine: Machine) -> None:
        """Replace it. Raises Unavailable."""
        data = json.dumps({"format": FORMAT} | machine.to_json(), separators=(",", ":")).encode()
        replace_file(self.path, data, durable=False)
        self._seen = self._stamp()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
