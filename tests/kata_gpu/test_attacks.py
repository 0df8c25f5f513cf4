"""Attacks on the node's side, each as somebody outside of it would try."""

import gzip
import os
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from kata_gpu.core.claim import ClaimRef
from kata_gpu.core.kata.effective import parse_layer
from kata_gpu.core.kata.initdata import appraise_initdata, parse_initdata
from kata_gpu.core.node_policy import parse_policy
from kata_gpu.core.yaml12 import load
from kata_gpu.dra.http import MAX_CONNECTIONS, StatusServer
from kata_gpu.dra.socket import UnixServer
from kata_gpu.errors import Malformed
from kata_gpu.host import bundle, isolate
from kata_gpu.host.durable import replace_file


@pytest.mark.parametrize(
    "kind", [pytest.param(tarfile.XHDTYPE, id="pax"), pytest.param(tarfile.GNUTYPE_LONGNAME, id="gnu")]
)
def test_a_bundle_of_a_megabyte_does_not_become_a_gigabyte_of_memory(
    kind: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No member is ever seen: the size is that of a header, which tarfile reads whole."""
    monkeypatch.setattr(bundle, "MAX_BYTES", 1 << 20)
    monkeypatch.setattr(bundle, "MAX_ENTRIES", 16)
    header = tarfile.TarInfo("header")
    header.type, header.size = kind, 64 << 20
    bomb = tmp_path / "bomb.tar.gz"
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(header.tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(header.size + 1024))
    with pytest.raises(Malformed, match="more than a support bundle may hold"):
        bundle.unpack(bomb, tmp_path / "out")


@pytest.mark.parametrize("text", [pytest.param("1: a\nfoo: b", id="number"), pytest.param("~: a\nfoo: b", id="null")])
def test_keys_of_a_policy_that_are_no_text(text: str) -> None:
    with pytest.raises(Malformed, match="unknown field"):
        parse_policy(load(text, where="t"), where="t")


_ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        pytest.param(["doctor", "--verbose", "--host-root", "."], 1, id="doctor"),
        pytest.param(["gpus", "--host-root", "."], 0, id="gpus"),
        pytest.param(["doctor", "--host-root", _ESCAPE], 2, id="error"),
        pytest.param(["lint", "pod.yaml"], 1, id="lint"),
    ],
)
def test_names_of_others_do_not_drive_the_terminal(command: list[str], code: int, tmp_path: Path) -> None:
    """A support bundle, a path and a manifest, each with a title for the window, a cleared screen and a turned line."""
    release = tmp_path / "proc/sys/kernel/osrelease"
    release.parent.mkdir(parents=True)
    release.write_text(f"6.17.0{_ESCAPE}x\n")
    (tmp_path / "sys/bus/pci/devices").mkdir(parents=True)
    (tmp_path / "pod.yaml").write_text(
        'apiVersion: v1\nkind: Pod\nmetadata: {name: "\\e[2J\\ud800x"}\n'
        "spec:\n  runtimeClassName: kata-nvidia-gpu-snp\n  containers: [{name: a, image: b}]\n"
    )
    ended = subprocess.run([sys.executable, "-m", "kata_gpu.cli", *command], cwd=tmp_path, capture_output=True)
    said = (ended.stdout + ended.stderr).decode()
    assert ended.returncode == code, said
    assert "x" in said
    assert "Traceback" not in said
    assert not set(said) & set("\x1b\x07\u202e")


def test_slow_clients_neither_keep_the_probe_out_nor_pile_up() -> None:
    """Any pod of the cluster can open connections to the agent and never end a request."""
    server = StatusServer("127.0.0.1", 0, {"/healthz": lambda: (200, "text/plain", b"ok\n")})
    server.start()
    before = threading.active_count()
    clients = []
    try:
        for _ in range(3 * MAX_CONNECTIONS):
            clients.append(client := socket.create_connection(("127.0.0.1", server.port), timeout=5))
            client.sendall(b"GET /healthz HTTP/1.1\r\nX: y")
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=1) as answer:
            assert answer.read() == b"ok\n"
        assert clients[0].recv(1) == b""
        assert threading.active_count() - before <= MAX_CONNECTIONS + 1
    finally:
        for client in clients:
            client.close()
        server.stop()


_DOCUMENT = 'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = "x"\n'


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a = " + "[" * 100_000, id="array"),
        pytest.param("a = " + "{a=" * 50_000, id="table"),
        pytest.param("a." * 20_000 + "a = 1", id="dots"),
        pytest.param("[" + "a." * 100_000 + "a]", id="header"),
        pytest.param("a = " + "9" * 5_000, id="number"),
    ],
)
def test_toml_of_others_ends_in_our_error_and_soon(text: str) -> None:
    """Init-data of a pod, files inside it, and Kata's configuration in a bundle."""
    inner = _DOCUMENT.replace('"x"', f"'{text}'")
    before = time.process_time()
    with pytest.raises(Malformed):
        parse_initdata((_DOCUMENT + text).encode(), where="t")
    with pytest.raises(Malformed):
        parse_layer(text.encode(), "t")
    assert "missing-file" in {p.code for p in appraise_initdata(parse_initdata(inner.encode(), where="t"))}
    assert time.process_time() - before < 1


def test_a_file_that_somebody_put_where_ours_is_written_gets_nothing(tmp_path: Path) -> None:
    """`kata-gpu bundle -o /tmp/x.tar.gz`: its temporary name is known before, and a file of somebody else keeps its mode."""
    target = tmp_path / "x.tar.gz"
    planted = tmp_path / f".{target.name}.{os.getpid()}.tmp"
    planted.touch(mode=0o666)
    with planted.open("rb") as reader:
        replace_file(target, b"redacted, and still not for everybody", mode=0o600)
        assert reader.read() == b""
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_link_where_a_socket_is_published_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other, path = tmp_path / "other", tmp_path / "plugin.sock"
    other.write_text("theirs")
    path.symlink_to(other)
    server = UnixServer(path, lambda _: None, workers=1)
    server.start()
    try:
        assert (stat.S_ISSOCK(path.lstat().st_mode), path.lstat().st_mode & 0o777) == (True, 0o700)
        assert other.read_text() == "theirs"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "plugin.sock"]
    finally:
        server.stop(0)


@pytest.mark.parametrize(
    ("namespace", "name", "uid"),
    [
        pytest.param("default", "c", "../../etc/x", id="uid-path"),
        pytest.param("default", "c", "u\n", id="uid-line"),
        pytest.param("default", "c", "u" * 64, id="uid-long"),
        pytest.param("../secrets", "c", "u", id="namespace-path"),
        pytest.param("default", "c?watch=1", "u", id="name-query"),
        pytest.param("default", "c%2f", "u", id="name-escape"),
    ],
)
def test_names_that_would_become_paths(namespace: str, name: str, uid: str) -> None:
    """Of CDI files, and of requests with the rights of the agent."""
    with pytest.raises(Malformed):
        ClaimRef(namespace=namespace, name=name, uid=uid)


def test_a_child_inherits_neither_descriptors_nor_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKEN", "secret")
    with (tmp_path / "open").open("w") as leaked:
        os.set_inheritable(leaked.fileno(), True)
        code, out, _ = isolate.run(["sh", "-c", "readlink /proc/$$/fd/*; env"], deadline_s=5, where="t")
    assert (code, b"secret" in out, str(tmp_path).encode() in out) == (0, False, False)
