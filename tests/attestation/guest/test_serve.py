"""The loopback reader: files, ranges and tensors over HTTP, authenticated chunk by chunk."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests

from attestation.errors import Misconfigured
from attestation.guest.serve import ModelServer
from tests.attestation.guest.models import copy, opened, tensors

TOKEN = "a-token-of-a-test"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
WEIGHTS = "/files/model.safetensors"


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A server on a free port."""
    with ModelServer(opened(folder), 0, TOKEN) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def url(encrypted: Path) -> Iterator[str]:
    with serving(encrypted) as address:
        yield address


def get(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers=AUTH | headers, timeout=10)


def test_listens_on_loopback_only(encrypted: Path) -> None:
    """Never on another address."""
    with ModelServer(opened(encrypted), 0, TOKEN) as server:
        assert server.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_said(encrypted: Path) -> None:
    """Which one, and why; no traceback."""
    with ModelServer(opened(encrypted), 0, TOKEN) as server:
        port = server.server_address[1]
        with pytest.raises(Misconfigured) as caught:
            ModelServer(opened(encrypted), int(port), TOKEN)
    said = f"127.0.0.1:{port}: cannot listen: Address already in use, expected a free port"
    assert (caught.value.code, str(caught.value)) == ("listen-address", said)


def test_whole_files(url: str, source: Path) -> None:
    """Also nested and empty ones."""
    for path in (p for p in source.rglob("*") if p.is_file()):
        answer = get(f"{url}/files/{path.relative_to(source).as_posix()}")
        assert (answer.status_code, answer.content) == (200, path.read_bytes())


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=65530-65545", 65530, 65546),
        ("bytes=500000-", 500000, None),
        ("bytes=5-99999999", 5, None),
    ],
)
def test_ranges(url: str, source: Path, wanted: str, start: int, end: int | None) -> None:
    """Partial content, with its place in the file."""
    plain = (source / "model.safetensors").read_bytes()
    answer = get(url + WEIGHTS, Range=wanted)
    assert (answer.status_code, answer.content) == (206, plain[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{(end or len(plain)) - 1}/{len(plain)}"


@pytest.mark.parametrize(
    "wanted", ["bytes=99999999-", "bytes=9-3", "bytes=-5", "lines=1-2", "bytes=0-1,4-5", "bytes=a-b"]
)
def test_ranges_that_are_none(url: str, wanted: str) -> None:
    """Refused, not guessed."""
    assert get(url + WEIGHTS, Range=wanted).status_code == 416


@pytest.mark.parametrize("token", ["", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
def test_without_the_token(url: str, token: str) -> None:
    """Containers of one pod share the loopback interface."""
    for path in ("/manifest", WEIGHTS, "/nothing"):
        assert requests.get(url + path, headers={"Authorization": token}, timeout=10).status_code == 401
    assert requests.get(f"{url}/healthz", timeout=10).json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path", ["/files/other", "/files/../manifest.kgm", "/files/%2e%2e/key", "/", "/tensors/config.jso"]
)
def test_what_is_not_there(url: str, path: str) -> None:
    """Names are looked up in the manifest, never on the disk."""
    assert get(url + path).status_code == 404


def test_manifest_and_tensors(url: str) -> None:
    """Names and sizes; one tensor as its raw bytes."""
    names = [f["name"] for f in get(f"{url}/manifest").json()["files"]]
    assert names == ["config.json", "empty", "model.safetensors", "tokenizer/vocab.txt"]
    assert sorted(get(f"{url}/tensors/model.safetensors").json()) == sorted(tensors(0.5))
    raw = get(f"{url}/tensors/model.safetensors?name=model.norm.bias").content
    assert np.array_equal(np.frombuffer(raw, np.float16), tensors(0.5)["model.norm.bias"])
    assert get(f"{url}/tensors/model.safetensors?name=none").status_code == 404
    assert get(f"{url}/tensors/config.json").status_code == 502


def test_a_damaged_chunk_is_never_sent(encrypted: Path, tmp_path: Path) -> None:
    """In the first chunk it is an error; later it cuts the connection short of its promised length."""
    for at, status in ((100, 502), (200_000, 200)):
        folder = copy(encrypted, tmp_path / str(at))
        stored = bytearray((folder / "000002.kgf").read_bytes())
        stored[at] ^= 1
        (folder / "000002.kgf").write_bytes(stored)
        with serving(folder) as url:
            if status == 502:
                assert get(url + WEIGHTS).json()["error"] == "chunk-tag"
                continue
            with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError)):
                get(url + WEIGHTS)
