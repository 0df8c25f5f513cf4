"""The command line as a pod runs it: exit codes, the termination message, what goes to stdout."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from attestation.errors import ExitCode, Malformed, Misconfigured
from attestation.formats.initdata import parse_init_data
from attestation.guest.main import MAX_TERMINATION_BYTES, cli, run
from attestation.guest.pci import count_devices
from attestation.guest.settings import read_settings, settings_of
from attestation.values import BindingProfile
from kata_gpu.core.yaml12 import load
from tests.attestation.guest.fake_kbs import FakeKbs, problem, serving
from tests.attestation.guest.models import KEY, tree

GUEST = "import sys; from attestation.guest.main import run; sys.exit(run(sys.argv[1:]))"
PEM = "-----BEGIN CERTIFICATE-----\n"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY.expose())
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The termination message file, which kubelet makes."""
    path = tmp_path / "termination-log"
    path.touch()
    return path


def guest(log: Path, *arguments: object) -> int:
    return run(["--termination-log", str(log), *map(str, arguments)])


def test_decrypt(
    encrypted: Path, source: Path, memory: Path, key_file: Path, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0, one JSON document, nothing in the termination message."""
    code = guest(log, "model", "decrypt", encrypted, memory / "out", "--key-file", key_file, "--output", "json",
                 "--unsafe-plaintext-with-swap", "--unsafe-plaintext-on-disk")  # fmt: skip
    assert (code, log.read_text()) == (ExitCode.OK, "")
    assert json.loads(capsys.readouterr().out)["files"] == 4
    assert tree(memory / "out") == tree(source)


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        pytest.param("key", ExitCode.NEGATIVE, "error[header-tag]: header.tag: wrong model key", id="wrong-key"),
        pytest.param("short-key", ExitCode.USAGE, "error[model-key]", id="no-key"),
        pytest.param("chunk", ExitCode.NEGATIVE, "error[chunk-tag]: model.safetensors, chunk", id="damaged"),
        pytest.param("manifest", ExitCode.USAGE, "error[no-manifest]", id="no-model"),
        pytest.param("--model-digest", ExitCode.NEGATIVE, "error[model-digest]", id="another-encryption"),
        pytest.param("--expect", ExitCode.NEGATIVE, "error[model-digest]", id="another-encryption-by-the-old-name"),
        pytest.param("mode", ExitCode.USAGE, "error[mode]", id="bad-mode"),
    ],
)
def test_why_it_failed_is_in_the_termination_message(
    encrypted: Path, tmp_path: Path, memory: Path, key_file: Path, log: Path, spoil: str, code: ExitCode, says: str
) -> None:
    """The same line as on stderr."""
    folder, extra = tmp_path / "model.kgm", []
    folder.mkdir()
    for stored in encrypted.iterdir():
        (folder / stored.name).write_bytes(stored.read_bytes())
    if spoil == "key":
        key_file.write_bytes(bytes(32))
    elif spoil == "short-key":
        key_file.write_bytes(b"short")
    elif spoil == "chunk":
        data = bytearray((folder / "000002.kgf").read_bytes())
        data[-1] ^= 1
        (folder / "000002.kgf").write_bytes(data)
    elif spoil == "manifest":
        (folder / "manifest.kgm").unlink()
    elif spoil.startswith("--"):
        extra = [spoil, f"sha256:{'00' * 32}"]
    else:
        extra = ["--mode", "rw"]
    assert guest(log, "model", "decrypt", folder, memory / "out", "--key-file", key_file, *extra) == code
    assert log.read_text().startswith(says)
    assert not (memory / "out").exists() or list((memory / "out").iterdir()) == []


def test_usage_errors_reach_kubelet_too(log: Path, tmp_path: Path) -> None:
    """A wrong flag in a pod specification is the most common of all."""
    assert guest(log, "model", "decrypt", "--nonsense") == ExitCode.USAGE
    assert "No such option" in log.read_text()
    assert run([f"--termination-log={log}", "key", "get"]) == ExitCode.USAGE
    assert "Missing" in log.read_text()
    assert run(["--termination-log", str(tmp_path / "absent"), "nothing"]) == ExitCode.USAGE
    assert not (tmp_path / "absent").exists()


def test_the_message_is_cut_where_kubelet_cuts(log: Path, key_file: Path, encrypted: Path) -> None:
    """At 4096 bytes."""
    guest(log, "model", "cat", encrypted, "x" * 10_000, "--key-file", key_file)
    assert 0 < len(log.read_bytes()) <= MAX_TERMINATION_BYTES


def test_cat_verify_and_tensor(
    encrypted: Path, source: Path, key_file: Path, log: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Content on stdout as it is."""
    assert guest(log, "model", "cat", encrypted, "tokenizer/vocab.txt", "--key-file", key_file) == ExitCode.OK
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == b"a\nb\n"
    tensor = ("--tensor", "model.step", "--key-file", key_file)
    assert guest(log, "model", "cat", encrypted, "model.safetensors", *tensor) == ExitCode.OK
    sys.stdout.flush()
    assert capfdbinary.readouterr().out == (12345).to_bytes(8, "little")
    assert guest(log, "model", "verify", encrypted, "--key-file", key_file) == ExitCode.OK
    assert b"authentic and complete: 4 files" in capfdbinary.readouterr().out


def test_sigterm_unwinds(tmp_path: Path, encrypted: Path, key_file: Path) -> None:
    """Kubelet's way to stop a container ends in our exit code, not in a traceback."""
    token = tmp_path / "token"
    token.write_text("a-token-of-a-test")
    arguments = ["model", "serve", str(encrypted), "--token-file", str(token), "--key-file", str(key_file)]
    with subprocess.Popen([sys.executable, "-c", GUEST, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == ExitCode.NEGATIVE
        assert process.stderr.read().strip() == "interrupted"


def test_no_start_without_a_real_token(tmp_path: Path, encrypted: Path, key_file: Path, log: Path) -> None:
    """A short token is no token."""
    token = tmp_path / "token"
    token.write_text("short\n")
    assert guest(log, "model", "serve", encrypted, "--token-file", token, "--key-file", key_file) == ExitCode.USAGE
    assert log.read_text().startswith("error[token-short]")


# -- keys from the data hub ------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[FakeKbs]:
    """The pod's hub on another port."""
    with serving(FakeKbs()) as running:
        yield running


def test_model_key_through_the_data_hub(hub: FakeKbs, encrypted: Path, source: Path, memory: Path, log: Path) -> None:
    """What an ordinary container does: no TEE, no GPU evidence, the hub attests."""
    hub.script["/cdh/resource/models/llama/key"] = [(200, {}, KEY.expose())]
    options = ("--unsafe-plaintext-with-swap", "--unsafe-plaintext-on-disk")
    arguments = (
        "model",
        "decrypt",
        encrypted,
        memory / "out",
        "--key",
        "kbs:///models/llama/key",
        "--via",
        "cdh",
        "--cdh-url",
        hub.url,
    )
    assert guest(log, *arguments, *options) == ExitCode.OK
    assert tree(memory / "out") == tree(source)


def test_key_get(hub: FakeKbs, memory: Path, log: Path) -> None:
    """Into a file that only its owner can read; a refusal leaves no file."""
    hub.script["/cdh/resource/a/b/c"] = [(200, {}, b"secret"), problem(403, "no")]
    options = ("--via", "cdh", "--cdh-url", hub.url, "--unsafe-plaintext-with-swap", "--unsafe-plaintext-on-disk")
    assert guest(log, "key", "get", "kbs:///a/b/c", "--out", memory / "key", *options) == ExitCode.OK
    assert (memory / "key").read_bytes() == b"secret"
    assert (memory / "key").stat().st_mode & 0o777 == 0o600
    assert guest(log, "key", "get", "kbs:///a/b/c", "--out", memory / "other", *options) == ExitCode.NEGATIVE
    assert log.read_text().startswith("error[denied]")
    assert [p.name for p in memory.iterdir()] == ["key"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--out", "{memory}/k"), "broker-unknown"),
        (("--out", "{memory}/k", "--broker", "http://broker.example"), "broker-http"),
        (("--out", "{memory}/k", "--broker", "x", "--init-data", "{init}"), "broker-twice"),
    ],
)
def test_whom_to_ask_is_never_guessed(
    memory: Path, log: Path, tmp_path: Path, arguments: tuple[str, ...], code: str
) -> None:
    """No broker, plain http, two brokers."""
    init = tmp_path / "init.toml"
    init.write_text("x")
    filled = [a.format(memory=memory, init=init) for a in arguments]
    options = ("--unsafe-plaintext-with-swap", "--unsafe-plaintext-on-disk")
    assert guest(log, "key", "get", "kbs:///a/b/c", *filled, *options) == ExitCode.USAGE
    assert log.read_text().startswith(f"error[{code}]")


# -- settings from init-data -----------------------------------------------------------------------------------------


def init_data(own: str = "", aa: str = '[token_configs.kbs]\nurl = "https://kbs:8080"\ncert = """pem"""\n') -> str:
    body = f"version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"aa.toml\" = '''\n{aa}'''\n"
    return body + (f"\"kata-gpu.toml\" = '''\n{own}'''\n" if own else "")


def test_settings_come_from_measured_init_data(tmp_path: Path) -> None:
    """Broker, certificate, device count, profile, model digest."""
    own = f'expected_devices = 8\nbinding_profile = "cgpu-v1"\nmodel_digest = "sha256:{"ab" * 32}"\n'
    path = tmp_path / "init.toml"
    path.write_text(init_data(own))
    settings = read_settings(path, None, None)
    assert (settings.broker_url, settings.broker_certificate) == ("https://kbs:8080", "pem")
    assert (settings.expected_devices, settings.profiles) == (8, (BindingProfile.CGPU_V1,))
    assert str(settings.model_digest) == f"sha256:{'ab' * 32}"
    assert settings.init_data == path.read_text()
    assert settings_of(parse_init_data(init_data())).expected_devices is None


@pytest.mark.parametrize(
    ("own", "aa", "code"),
    [
        pytest.param("", "x = 1\n", "init-data-broker", id="no-table"),
        pytest.param("", "[token_configs.kbs]\n", "init-data-broker", id="no-url"),
        pytest.param("", "[token_configs.kbs]\nurl = 5\n", "init-data-broker", id="url-number"),
        pytest.param("", "[[[", "init-data-toml", id="no-toml"),
        pytest.param("expected_devices = -1\n", None, "init-data-member", id="negative"),
        pytest.param("expected_devices = true\n", None, "init-data-member", id="bool"),
        pytest.param('binding_profile = "none"\n', None, "init-data-member", id="profile"),
        pytest.param("expected_device = 1\n", None, "init-data-member", id="misspelt"),
        pytest.param('model_digest = "md5:00"\n', None, "digest-algorithm", id="digest"),
    ],
)
def test_init_data_that_says_nonsense(own: str, aa: str | None, code: str) -> None:
    """Unknown members are refused: a misspelt one would silently not count."""
    text = init_data(own) if aa is None else init_data(own, aa)
    with pytest.raises(Malformed) as refused:
        settings_of(parse_init_data(text))
    assert refused.value.code == code


def test_init_data_without_broker() -> None:
    """The entry itself is missing."""
    with pytest.raises(Malformed) as refused:
        settings_of(parse_init_data('version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'))
    assert refused.value.code == "init-data-entry"


def test_devices_are_counted_from_the_kernels_list(tmp_path: Path) -> None:
    """3D controllers, VGA and bridges of NVIDIA; audio functions and other vendors do not count."""
    for number, (vendor, kind) in enumerate(
        [
            ("0x10de", "0x030200"),
            ("0x10de", "0x030000"),
            ("0x10de", "0x040300"),
            ("0x10de", "0x068000"),
            ("0x8086", "0x030000"),
        ]
    ):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    found = count_devices(tmp_path)
    assert (found.gpus, found.switches) == (2, 1)


def test_start_imports_little() -> None:
    """`--help` needs neither requests nor cryptography; it stays quick to start."""
    code = "import sys; from attestation.guest.main import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    assert not {"requests", "cryptography", "pynvml"} & set(loaded)


def test_settings_from_the_command_line(tmp_path: Path) -> None:
    """Where there is no init-data."""
    pem = tmp_path / "ca.pem"
    pem.write_text(PEM)
    assert read_settings(None, "https://kbs", pem).broker_certificate == PEM
    with pytest.raises(Misconfigured):
        read_settings(None, None, pem)


DOC = Path(__file__).resolve().parents[3] / "docs" / "guest.md"


@pytest.mark.parametrize("line", [ln for ln in DOC.read_text().splitlines() if ln.startswith("kata-gpu-guest ")])
def test_documented_commands_exist(line: str) -> None:
    """Every option of every example is one of the command's."""
    words = line.split()[1:]
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words.pop(0))
        assert found is not None
        command = found
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_documented_init_container_is_a_command_line_of_ours() -> None:
    """The pod example parses, and its arguments are accepted up to the folder that is not here."""
    block = DOC.read_text().split("```yaml\n")[1].split("```")[0]
    (container,) = load(block, where="docs/guest.md")["spec"]["initContainers"]
    assert run(container["args"]) == ExitCode.USAGE
    assert container["args"][:2] == ["model", "decrypt"]
