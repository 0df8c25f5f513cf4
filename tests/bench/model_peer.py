"""A broker on loopback that trusts simulated roots and holds one key, for measuring the client."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attestation.simulate.amd import MEASUREMENT

KBS = [sys.executable, "-c", "import sys; from attestation.cli.main import cli, run; sys.exit(run(cli, sys.argv[1:]))"]
KEY = "models/bench/key"
START_S = 20.0
POLICY = f"""\
version = 1
[cpu]
tee = "snp"
measurement = "{MEASUREMENT.hex()}"
[gpus]
count = 1
arch = "hopper"
mode = "on"
driver_version = {{ unchecked = "a measurement of time, not of policy" }}
vbios_version = {{ unchecked = "a measurement of time, not of policy" }}
[init_data]
unchecked = "a measurement of time, not of policy"
"""


@contextmanager
def start_broker(folder: Path) -> Iterator[tuple[str, str]]:
    """URL of the broker and the name of its key."""
    (folder / "policy.toml").write_text(POLICY)
    store = str(folder / "store")
    add = ["key", "add", KEY, "--policy", str(folder / "policy.toml"), "--label", "test", "--store", store]
    known = ["reference", "set", "snp_launch_measurement", MEASUREMENT.hex(), "--provenance", "bench", "--store", store]
    for command in (add, known):
        subprocess.run([*KBS, *command], check=True, stdout=subprocess.DEVNULL)
    guests, admins = _port(), _port()
    serve = ["serve", "--store", store, "--listen", f"127.0.0.1:{guests}", "--admin-listen", f"127.0.0.1:{admins}"]
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen([*KBS, *serve, "--unsafe-trust-simulated-roots"], stdout=log, stderr=log)
    try:
        _wait(guests, process, folder / "broker.log")
        yield f"http://127.0.0.1:{guests}", KEY
    finally:
        process.terminate()
        process.wait()


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the broker did not start\n{log.read_text()}")
