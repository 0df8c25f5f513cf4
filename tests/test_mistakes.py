"""What people get wrong with the three programs: the right exit code, one clear line that says where and what, no traceback."""

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import click
import pytest

from attestation.cli.main import cli as kbs
from attestation.cli.main import run as run_kbs
from attestation.guest.main import run as run_guest
from kata_gpu.cli.main import cli as node
from kata_gpu.cli.main import run as run_node

OLD_STORE = "user add owner --role admin --store store"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
FILES = {
    "empty": b"",
    "text": b"hello\n",
    "binary": bytes(range(256)),
    "bad.toml": b"version = 1\n[cpu\n",
    "bad.yaml": b"a: [1\nb: }",
    "bad.json": b'{"a": 1,',
    "other.json": b'{"a": 1}',
    "rendered.yaml": b"---\n---\nkind: Pod\napiVersion: v1\nmetadata: {name: a}\nspec: {containers: []}\n",
    "typo.toml": b'version = 1\n[cpu]\ntee = "snp"\nmesurement = { accept = ["00"] }\n',
    "policy.rego": b"package agent_policy\n",
    "kbs.pem": CERTIFICATE.encode(),
}
SIM = "--sim host.sim"
LEASE = "kata-gpu-kbs lease --admin-token-file text"
ROWS = (
    ("kata-gpu nod setup", 2, "Did you mean 'node'?"),
    ("kata-gpu-kbs polic check x", 2, "Did you mean 'policy'?"),
    ("kata-gpu-guest modle verify x", 2, "Did you mean 'model'?"),
    ("kata-gpu gpus --output yaml", 2, "'yaml' is not one of 'text', 'json'"),
    ("kata-gpu-kbs key list", 2, "Missing option '--store'"),
    ("kata-gpu gpus --sim absent", 2, "fix: kata-gpu sim create"),
    ("kata-gpu gpus --sim binary", 2, "binary: not the state of a simulated host, expected a file that `kata-gpu sim"),
    ("kata-gpu gpus --sim other.json", 2, "got no 'format'"),
    ("kata-gpu doctor --sim host.sim --profile gpu,sev", 2, "expected gpu,ppcie,snp,tdx, got gpu,sev"),
    (f"kata-gpu cc set on 0000:ff:00.0 {SIM}", 2, "no GPU or NVSwitch at this address, expected 0000:"),
    (f"kata-gpu bind zzz {SIM}", 2, "not a PCI address, expected like 0000:17:00.0, got zzz"),
    (f"kata-gpu node setup {SIM}", 2, "give either --policy FILE or --cc-mode MODE"),
    (f"kata-gpu node setup {SIM} --policy bad.yaml", 2, "bad.yaml: not valid YAML, got while parsing"),
    (f"kata-gpu node setup {SIM} --policy binary", 2, "binary: not valid YAML"),
    ("kata-gpu install --kubeconfig text", 2, "text: not a kubeconfig, expected YAML with clusters"),
    ("kata-gpu install --kubeconfig bad.yaml", 2, "bad.yaml: not a kubeconfig"),
    ("kata-gpu install --server http://127.0.0.1:1", 8, "cannot reach the API server"),
    ("kata-gpu lint absent", 2, "absent: cannot read, got No such file"),
    ("kata-gpu lint folder", 2, "folder: cannot read, got Is a directory"),
    ("kata-gpu lint empty", 2, "empty: nothing to check"),
    ("kata-gpu lint text", 2, "text: not a Kubernetes object, expected apiVersion and kind, got 'hello'"),
    ("kata-gpu lint rendered.yaml", 0, ""),
    ("kata-gpu kata check --config absent --tee snp", 2, "absent: cannot read"),
    ("kata-gpu initdata digest absent", 2, "absent: cannot read"),
    ("kata-gpu initdata digest bad.toml", 2, "bad.toml: not valid TOML"),
    (
        "kata-gpu initdata build --tee snp --kbs-url https://kbs --kbs-cert text --agent-policy policy.rego",
        2,
        "kbs-cert: not a certificate: no guest could reach this broker, expected PEM",
    ),
    ("kata-gpu-kbs policy check typo.toml", 2, "cpu.measurement: a required field is missing, got mesurement"),
    ("kata-gpu-kbs policy check bad.toml", 2, "bad.toml: not TOML"),
    ("kata-gpu-kbs policy check binary", 2, "binary: not UTF-8 text"),
    ("kata-gpu-kbs audit verify --store absent", 2, "absent: there is no store"),
    ("kata-gpu-kbs key list --store text", 2, "text: there is no store"),
    ("kata-gpu-kbs key show models/llama/key --store store", 2, "models/llama/key: no such key"),
    ("kata-gpu-kbs key show llama --store store", 2, "expected repository/type/tag, got 'llama'"),
    ("kata-gpu-kbs user add owner --role admin --store store", 2, "owner: there is a user of this name"),
    ("kata-gpu-kbs verify gpu --report text --chain text --rim text", 2, "text rim: not well-formed XML"),
    ("kata-gpu-kbs verify gpu --report text --chain text --rim folder", 2, "folder: no reference documents"),
    ("kata-gpu-kbs verify gpu --report text", 2, "expected --report and --chain, or --evidence"),
    ("kata-gpu-kbs verify gpu --report text --chain text --at yesterday", 2, "expected RFC 3339, got 'yesterday'"),
    ("kata-gpu-kbs explain bad.json", 2, "result: not JSON"),
    ("kata-gpu-kbs collateral show --store absent", 2, "absent: there is no collateral store"),
    (
        "kata-gpu-kbs serve --store store --tls-cert text --tls-key text",
        2,
        "text: cannot use certificate and key: no PEM",
    ),
    ("kata-gpu-kbs serve --store store --listen nonsense", 2, "bad address, expected host:port, got nonsense"),
    (
        "kata-gpu-kbs serve --store store --listen 0.0.0.0:0",
        2,
        "0.0.0.0:0: plain http off loopback, expected --tls-cert",
    ),
    (
        "kata-gpu-kbs serve --store store --listen 127.0.0.1:0 --admin-listen [::]:0",
        2,
        "[::]:0: plain http off loopback",
    ),
    (f"{LEASE} --broker 127.0.0.1:1", 2, "expected https://host[:port], got 127.0.0.1:1"),
    (f"{LEASE} --broker https://127.0.0.1:1", 2, "no certificate to pin"),
    (f"{LEASE} --broker https://127.0.0.1:1 --broker-cert text", 2, "not a PEM certificate"),
    ("kata-gpu-guest model verify folder --key-file text --model-digest abc", 2, "expected sha256:<hex>, got 'abc'"),
    ("kata-gpu-guest model verify folder", 2, "expected either --key or --key-file"),
    ("kata-gpu-guest key get llama --out - --init-data text", 2, "expected repository/type/tag, got 'llama'"),
    ("kata-gpu install --kubeconfig absent", 2, "absent: no usable access to the Kubernetes API, got No such file"),
    ("kata-gpu claims --kubelet-root absent", 2, "absent: kubelet's folder is not here"),
    ("kata-gpu sim fault host.sim 0000:17:00.0 explode", 2, "Invalid value for '[FAULT]...'"),
    ("kata-gpu measure tdx --firmware absent", 2, "absent: cannot read"),
    (
        "kata-gpu initdata build --tee snp --kbs-url https://kbs --agent-policy policy.rego -o absent/init.toml",
        8,
        "absent/init.toml: cannot write the file, got No such file",
    ),
    (
        "kata-gpu-kbs reference set snp_launch_measurement zz --provenance x --store store",
        2,
        "snp_launch_measurement: no launch measurement has this form: every guest would be refused, expected 96 hex",
    ),
    ("kata-gpu-kbs revoke add chip 6b184e7d36d4... --reason x --store store", 2, "chip: not a whole chip id"),
    ("kata-gpu-kbs backup verify rendered.yaml --passphrase-file rendered.yaml", 2, "not a backup"),
    (
        "kata-gpu-guest key get a/b/c --out - --broker https://127.0.0.1:1",
        2,
        "no certificate to pin, expected --broker-cert",
    ),
    ("kata-gpu-guest evidence collect --nonce abc", 2, "nonce is not base64, expected 32 bytes, got 'abc'"),
)


def run(line: str) -> int:
    program, *argv = line.split()
    if program == "kata-gpu-guest":
        return run_guest(argv)
    command: click.Group = kbs if program == "kata-gpu-kbs" else node
    return run_kbs(command, argv) if program == "kata-gpu-kbs" else run_node(command, argv)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("line", "code", "says"), ROWS, ids=[line for line, _, _ in ROWS])
def test_mistake(folder: Path, capsys: pytest.CaptureFixture[str], line: str, code: int, says: str) -> None:
    if "host.sim" in line:
        assert run("kata-gpu sim create --preset mixed host.sim") == 0
    if "--store store" in line:
        assert run(f"kata-gpu-kbs {OLD_STORE}") == 0
    before = {*os.listdir(folder), "host.sim.d"}  # locks of the simulated host
    capsys.readouterr()
    assert run(line) == code
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 5  # click's usage, or one line and its fix
    assert before.issuperset(os.listdir(folder))  # a mistake makes no file


BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "line",
    [
        "kata-gpu doctor --list",
        "kata-gpu initdata digest init.toml",
        "kata-gpu-kbs policy check --help",
        "kata-gpu-guest -h",
    ],
)
def test_no_room_for_the_output(folder: Path, line: str) -> None:
    """`... > file` on a full disk: one line and exit code 8, and nothing more when the program ends."""
    (folder / "init.toml").write_text('version = "0.1.0"\nalgorithm = "sha256"\n[data]\na = "b"\n')
    program, *argv = line.split()
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([BIN / program, *argv], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (8, "error[io]: output: No space left on device\n")


NO_ROOM = ["bash", "-c", 'ulimit -f 0; exec "$@"', "bash"]  # no file may grow: as on a full disk


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (f"kata-gpu-kbs {OLD_STORE}", "store/root.key"),
        ("kata-gpu-kbs model encrypt text text.kgm --key-file model.key", "model.key"),
    ],
)
def test_no_room_for_a_key(folder: Path, line: str, where: str) -> None:
    """Half a key is not left behind: the next run, with room, makes a whole one."""
    program, *rest = line.split()
    argv = [str(BIN / program), *rest]
    done = subprocess.run([*NO_ROOM, *argv], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (8, 1)
    assert f": {where}: " in done.stderr
    assert not (folder / where).exists()
    assert subprocess.run(argv, cwd=folder, capture_output=True, check=False).returncode == 0


def test_ctrl_c_in_the_middle_says_how_to_go_on(folder: Path) -> None:
    """And what it says does it. The program cannot end before: it waits for room in a pipe that is nearly full."""
    program = str(BIN / "kata-gpu")
    subprocess.run([program, "sim", "create", "--preset", "hgx-h100", "host.sim"], cwd=folder, check=True)
    reading, writing = os.pipe()
    room = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, b"." * (room - 200) + b"\n")
    setup = [program, "node", "setup", "--cc-mode", "on", "--sim", "host.sim"]
    with subprocess.Popen(setup, cwd=folder, stderr=writing, stdout=subprocess.DEVNULL) as process:
        os.close(writing)
        with os.fdopen(reading) as stderr:
            while process.poll() is None and waiting(stderr.fileno()) < room - 100:  # two of its lines
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            said = stderr.read().splitlines()
    assert (process.returncode, said[-2]) == (1, "interrupted")
    assert "kata-gpu recover" in said[-1]
    again = [program, "recover", "--sim", "host.sim"]
    done = subprocess.run(again, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.partition(" of ")[0]) == (0, "undone: setup")


def waiting(pipe: int) -> int:
    """Bytes in it that nobody has read."""
    (count,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(count)
