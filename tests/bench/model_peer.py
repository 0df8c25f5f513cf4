"""A broker process on loopback that trusts simulated roots, and a model on its way through it into a simulated VM."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attestation.simulate.amd import MEASUREMENT
from tests.attestation.guest.vm import SimulatedGuest

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerProcess:
    """Where it listens, and files that its owner needs."""

    url: str
    admin_url: str
    token: Path
    policy: Path

    def owner_options(self, key: str) -> list[str]:
        """Options of `model encrypt` that store a new key here."""
        files = ["--policy", str(self.policy), "--admin-token-file", str(self.token)]
        return ["--key", f"kbs:///{key}", "--label", "test", "--broker", self.admin_url, *files]


def travel(broker: BrokerProcess, source: Path, guest: SimulatedGuest, *, key: str) -> Path:
    """Encrypt `source` under a key that only the broker gets, release it to the VM, decrypt there: the plaintext folder.

    Three processes, `kata-gpu-kbs model encrypt`, `kata-gpu-kbs serve` and `kata-gpu-guest model decrypt`, and nothing
    but the encrypted model, init-data and the network between them.
    """
    encrypted, plain = source.with_suffix(".travelling"), source.with_suffix(".arrived")
    subprocess.run(
        [*KBS, "model", "encrypt", str(source), str(encrypted), *broker.owner_options(key)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    guest.launch(broker.url, expected=guest.gpus)
    done = guest.run(
        "model", "decrypt", encrypted, plain, "--key", f"kbs:///{key}", "--init-data", guest.init_data,
        "--unsafe-plaintext-with-swap",
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return plain


@contextmanager
def start_broker(folder: Path) -> Iterator[BrokerProcess]:
    """A store with one key, KEY, served by a process of its own."""
    policy, token, store = folder / "policy.toml", folder / "token", str(folder / "store")
    policy.write_text(POLICY)
    for command in (
        ["key", "add", KEY, "--policy", str(policy), "--label", "test"],
        ["reference", "set", "snp_launch_measurement", MEASUREMENT.hex(), "--provenance", "bench"],
        ["user", "add", "owner", "--role", "operator", "--repository", "models"],
    ):
        subprocess.run([*KBS, *command, "--store", store], check=True, stdout=subprocess.DEVNULL)
    with token.open("wb") as out:
        subprocess.run([*KBS, "user", "token", "owner", "--store", store], check=True, stdout=out)
    guests, admins = _port(), _port()
    serve = ["serve", "--store", store, "--listen", f"127.0.0.1:{guests}", "--admin-listen", f"127.0.0.1:{admins}"]
    with (folder / "broker.log").open("wb") as log:
        process = subprocess.Popen([*KBS, *serve, "--unsafe-trust-simulated-roots"], stdout=log, stderr=log)
    try:
        _wait(guests, process, folder / "broker.log")
        yield BrokerProcess(
            url=f"http://127.0.0.1:{guests}", admin_url=f"http://127.0.0.1:{admins}", token=token, policy=policy
        )
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
