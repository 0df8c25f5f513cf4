"""`root-key install` and `--store-file`: what the broker's Deployment needs from Secrets."""

import os
import stat
from pathlib import Path

import pytest

from attestation.cli.main import cli, run
from attestation.cli.serve import MAX_STORE_BYTES, _store
from attestation.errors import ExitCode, Malformed, Misconfigured
from attestation.sources.envelope import FileRootKey

KEY = bytes(range(32))


def install(source: Path, target: Path) -> int:
    return run(cli, ["root-key", "install", "--from", str(source), "--to", str(target)])


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A mounted Secret: a symlink to a file that the group can read."""
    data = tmp_path / "..data"
    data.mkdir()
    (data / "root.key").write_bytes(KEY)
    (data / "root.key").chmod(0o640)
    link = tmp_path / "root.key"
    link.symlink_to("..data/root.key")
    return link


def test_a_mounted_secret_becomes_a_key_that_the_broker_takes(secret: Path, tmp_path: Path) -> None:
    target = tmp_path / "keys" / "root.key"
    with pytest.raises(Misconfigured):
        FileRootKey.load(secret, os.urandom)
    assert install(secret, target) == ExitCode.OK
    assert install(secret, target) == ExitCode.OK
    assert target.read_bytes() == KEY
    assert stat.S_IMODE(target.lstat().st_mode) == 0o600
    assert FileRootKey.load(target, os.urandom).name.startswith("file:")


def test_another_key_is_never_overwritten(secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "other.key"
    target.write_bytes(bytes(32))
    target.chmod(0o600)
    assert install(secret, target) == ExitCode.USAGE
    assert "error[root-key-exists]" in capsys.readouterr().err
    assert target.read_bytes() == bytes(32)


@pytest.mark.parametrize("content", [KEY[:31], KEY + b"\n", b""])
def test_a_key_of_another_length_is_refused(content: bytes, tmp_path: Path) -> None:
    source = tmp_path / "short"
    source.write_bytes(content)
    assert install(source, tmp_path / "t") == ExitCode.USAGE
    assert not (tmp_path / "t").exists()


def test_a_symlink_at_the_target_is_not_followed(secret: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "t").symlink_to(victim)
    assert install(secret, tmp_path / "t") == ExitCode.USAGE
    assert not victim.exists()


def test_the_store_may_be_named_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://kbs:secret@db/kbs\n")
    assert _store(None, file) == "postgresql://kbs:secret@db/kbs"
    assert _store("dir", None) == "dir"


@pytest.mark.parametrize(("store", "content", "error"), [
    pytest.param(None, None, Misconfigured, id="neither"),
    pytest.param("dir", "dir", Misconfigured, id="both"),
    pytest.param(None, "", Misconfigured, id="empty"),
    pytest.param(None, "a\nb", Misconfigured, id="two-lines"),
    pytest.param(None, "a" * (MAX_STORE_BYTES + 1), Malformed, id="too-long"),
])  # fmt: skip
def test_bad_store_options(store: str | None, content: str | None, error: type[Exception], tmp_path: Path) -> None:
    file = None
    if content is not None:
        file = tmp_path / "url"
        file.write_text(content)
    with pytest.raises(error):
        _store(store, file)
