"""kill -9 at any time: no plaintext on a disk, nothing half done under a final name, and the next run is right."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from attestation.cli.main import cli, run
from attestation.errors import ExitCode
from attestation.guest.decrypt import STAGING
from attestation.guest.main import run as guest
from attestation.guest.memory_fs import MEMORY_TYPES
from tests.attestation.guest.decoder import decode_model
from tests.attestation.guest.killed import MARK, Plan, kill_often
from tests.attestation.guest.models import KEY, PROC, encrypt, tree

POINTS = 12
LARGE = 18 << 20  # more than one batch of the journal


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A model that is recognised wherever it lies: a large file, a small one, one in a folder."""
    folder = tmp_path / "source"
    (folder / "more").mkdir(parents=True)
    (folder / "large.bin").write_bytes(MARK * (LARGE // len(MARK)))
    (folder / "small.bin").write_bytes(MARK * 5000)
    (folder / "more" / "one.bin").write_bytes(MARK)
    return folder


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_bytes(KEY.expose())
    return path


def test_an_encryption_that_is_killed(secret: Path, key_file: Path, tmp_path: Path) -> None:
    """Before every so many changes: ciphertext only, a manifest only when all is there, and the next run finishes the work."""
    disk, out = tmp_path / "disk", tmp_path / "disk" / "out"
    command = ["model", "encrypt", str(secret), str(out), "--key-file", str(key_file), "--chunk-log2", "18"]
    plan = Plan(program="kbs", argv=command, points=POINTS, reset=[str(out)], watch=[str(disk)])
    disk.mkdir()
    moments = kill_often(plan)
    assert len(moments) >= POINTS
    assert [path for moment in moments for path, (_, _, plain) in moment.left.items() if plain] == []
    assert any(path.endswith(".journal") for moment in moments for path in moment.left)
    for moment in moments:
        kinds = {Path(path).suffix for path in moment.left}
        assert ".kgm" not in kinds or kinds == {".kgm", ".kgf"}
    assert run(cli, command) == ExitCode.OK
    assert decode_model(out, KEY.expose()) == tree(secret)


def test_a_crash_writes_no_memory() -> None:
    """The console script: no core file, and to a handler of the kernel's the process is not dumpable."""
    script = (
        "import ctypes, resource, sys\n"
        "from attestation.guest.main import main\n"
        "sys.argv = ['kata-gpu-guest', '--version']\n"
        "try: main()\n"
        "finally: print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "(0, 0) 0"


def test_a_decryption_that_is_killed(secret: Path, key_file: Path, tmp_path: Path, memory: Path) -> None:
    """Nothing on the disk changes; a file under its final name is whole; the next run leaves nothing of the killed one."""
    if PROC.filesystem_of(memory.stat().st_dev) not in MEMORY_TYPES:
        pytest.skip("memory: no tmpfs here")
    disk, target = tmp_path / "disk", memory / "plain"
    encrypt(secret, disk / "out", chunk_log2=18)
    before = sorted(disk.rglob("*"))
    command = ["model", "decrypt", str(disk / "out"), str(target), "--key-file", str(key_file),
               "--unsafe-plaintext-with-swap"]  # fmt: skip
    plan = Plan(program="guest", argv=command, points=POINTS, reset=[str(target)], watch=[str(disk), str(memory)])
    moments = kill_often(plan)
    whole = {name: hashlib.sha256(content).hexdigest() for name, content in tree(secret).items()}
    seen = set()
    for moment in moments:
        assert [path for path, (_, _, plain) in moment.left.items() if plain and path.startswith(str(disk))] == []
        for path, (_, digest, _) in moment.left.items():
            parts = Path(path).relative_to(target if path.startswith(str(memory)) else disk).parts
            if path.startswith(str(memory)) and parts[0] != STAGING and not parts[0].startswith(".kata-gpu"):
                assert digest == whole["/".join(parts)]
                seen.add("/".join(parts))
    assert any(STAGING in path for moment in moments for path in moment.left)
    assert seen == set(whole)
    assert sorted(disk.rglob("*")) == before
    assert guest(command) == ExitCode.OK
    assert tree(target) == tree(secret)
    assert not (target / STAGING).exists()
