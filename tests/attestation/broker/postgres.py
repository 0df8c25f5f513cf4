"""A real PostgreSQL for tests: initialised, started on a unix socket only, stopped; as `nobody` where we are root."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
ABSENT = "postgresql: not installed (make test-deps)"
_USER = "nobody"  # the server refuses root


def _run(argv: list[str]) -> None:
    kwargs = {"user": _USER, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=120, **kwargs)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{argv[0]}: {done.stdout[-500:]}{done.stderr[-500:]}")


@dataclass(frozen=True)
class Cluster:
    """One server that can be stopped and started again."""

    folder: Path
    fsync: bool = False  # tests crash the server, not the machine

    @property
    def url(self) -> str:
        return f"postgresql://kbs@/postgres?host={self.folder}"

    def database(self, name: str) -> str:
        """URL of a new, empty database."""
        _run([str(FOUND[-1] / "createdb"), "-h", str(self.folder), "-U", "kbs", name])
        return f"postgresql://kbs@/{name}?host={self.folder}"

    def _ctl(self, *argv: str) -> None:
        _run([str(FOUND[-1] / "pg_ctl"), "-D", str(self.folder / "data"), "-w", "-s", *argv])

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder}"
        options += "" if self.fsync else " -c fsync=off"
        self._ctl("-l", f"{self.folder}/log", "-o", options, "start")

    def stop(self, how: str = "immediate") -> None:
        """`immediate` is a crash: the next start recovers from the log."""
        self._ctl("-m", how, "stop")


@contextmanager
def cluster(*, fsync: bool = False) -> Iterator[Cluster]:
    """A running, empty cluster."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket path has 107 characters
    try:
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam(_USER).pw_uid, -1)
        data = str(folder / "data")
        _run([str(FOUND[-1] / "initdb"), "-D", data, "-U", "kbs", "-A", "trust", "-N", "--no-instructions"])
        made = Cluster(folder, fsync)
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres() -> Iterator[str]:
    """URL of an empty database cluster."""
    with cluster() as made:
        yield made.url
