"""A real PostgreSQL for tests: initialised, started on a unix socket only, stopped; as `nobody` where we are root."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
ABSENT = "postgresql: run `make test-deps` to install it"
_USER = "nobody"  # the server refuses root


def _run(argv: list[str]) -> None:
    kwargs = {"user": _USER, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(argv, capture_output=True, text=True, cwd="/", timeout=120, **kwargs)  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{argv[0]}: {done.stdout[-500:]}{done.stderr[-500:]}")


@contextmanager
def postgres() -> Iterator[str]:
    """URL of an empty database cluster."""
    tools = FOUND[-1]
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: a socket path has 107 characters
    try:
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam(_USER).pw_uid, -1)
        data = str(folder / "data")
        _run([str(tools / "initdb"), "-D", data, "-U", "kbs", "-A", "trust", "-N", "--no-instructions"])
        options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
        _run([str(tools / "pg_ctl"), "-D", data, "-w", "-s", "-l", f"{folder}/log", "-o", options, "start"])
        try:
            yield f"postgresql://kbs@/postgres?host={folder}"
        finally:
            _run([str(tools / "pg_ctl"), "-D", data, "-w", "-s", "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
