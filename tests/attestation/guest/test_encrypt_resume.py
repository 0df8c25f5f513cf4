"""Interrupted encryption: what is kept, what starts again, and that no nonce serves two plaintexts."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attestation.crypto.stream import HEADER_BYTES, TAG_BYTES
from attestation.errors import AttestationError, Misconfigured
from attestation.ops.encrypt_journal import BATCH_BYTES
from attestation.ops.model_encrypt import Encrypted, Options, encrypt_model
from attestation.ops.model_sources import plan_sources
from attestation.values import Secret
from tests.attestation.guest.decoder import decode_model
from tests.attestation.guest.models import KEY, counting

SIZE = 3 * BATCH_BYTES + 12345
CHUNK_LOG2 = 20
OPTIONS = Options(threads=2, chunk_log2=CHUNK_LOG2)


class Interrupted(Exception):
    """What a test throws into a run."""


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of three batches and a bit."""
    path = tmp_path / "weights.bin"
    path.write_bytes(np.random.default_rng(3).bytes(SIZE))
    return path


def run(source: Path, out: Path, *, seed: str, stop_after: int | None = None, key: Secret = KEY) -> Encrypted:
    """Encrypt; stop by an exception once so many bytes were written."""
    seen = 0

    def progress(size: int) -> None:
        nonlocal seen
        seen += size
        if stop_after is not None and seen > stop_after:
            raise Interrupted

    return encrypt_model(plan_sources(source), out, key, random=counting(seed), options=OPTIONS, progress=progress)


def interrupted(source: Path, out: Path, *, seed: str = "first", at: int = BATCH_BYTES + (5 << 20)) -> bytes:
    """An interrupted run; returns the partial file."""
    with pytest.raises(Interrupted):
        run(source, out, seed=seed, stop_after=at)
    assert not (out / "manifest.kgm").exists()
    return (out / "000000.partial").read_bytes()


def change(path: Path, at: int) -> None:
    """One byte of the source."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0xFF]))


def test_resume_keeps_what_is_durable(big: Path, tmp_path: Path) -> None:
    """The salt stays, kept chunks are not written again, the result is right."""
    partial = interrupted(big, tmp_path / "out")
    result = run(big, tmp_path / "out", seed="second")
    assert result.kept_bytes > BATCH_BYTES
    stored = (tmp_path / "out" / "000000.kgf").read_bytes()
    assert stored[:HEADER_BYTES] == partial[:HEADER_BYTES]
    assert decode_model(tmp_path / "out", KEY.expose()) == {"weights.bin": big.read_bytes()}
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.kgf", "manifest.kgm"]


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda big, _out: change(big, 10), id="source-changed-in-a-kept-chunk"),
        pytest.param(lambda big, _out: change(big, BATCH_BYTES + (9 << 20)), id="source-changed-in-a-recorded-batch"),
        pytest.param(lambda big, _out: big.write_bytes(big.read_bytes() + b"x"), id="source-grew"),
        pytest.param(lambda _big, out: cut(out / "000000.journal", HEADER_BYTES), id="journal-lost-its-records"),
        pytest.param(lambda _big, out: cut(out / "000000.journal", HEADER_BYTES + 36), id="journal-behind-the-file"),
        pytest.param(lambda _big, out: change(out / "000000.journal", HEADER_BYTES + 20), id="journal-record-changed"),
        pytest.param(lambda _big, out: change(out / "000000.journal", 40), id="journal-header-changed"),
        pytest.param(lambda _big, out: (out / "000000.journal").unlink(), id="journal-gone"),
        pytest.param(lambda _big, out: (out / "000000.partial").unlink(), id="partial-gone"),
    ],
)
def test_anything_else_is_a_new_salt_and_a_new_start(
    big: Path, tmp_path: Path, spoil: Callable[[Path, Path], object]
) -> None:
    """Nothing of the earlier run is kept, and the result is right."""
    out = tmp_path / "out"
    partial = interrupted(big, out)
    spoil(big, out)
    result = run(big, out, seed="second")
    assert result.kept_bytes == 0
    assert (out / "000000.kgf").read_bytes()[32:64] != partial[32:64]
    assert decode_model(out, KEY.expose()) == {"weights.bin": big.read_bytes()}


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def test_another_key_starts_again(big: Path, tmp_path: Path) -> None:
    """What was encrypted for another key is of no use."""
    partial = interrupted(big, tmp_path / "out")
    other = Secret(bytes(31) + b"\x07")
    assert run(big, tmp_path / "out", seed="second", key=other).kept_bytes == 0
    assert (tmp_path / "out" / "000000.kgf").read_bytes()[32:64] != partial[32:64]


@pytest.mark.parametrize("at", [HEADER_BYTES + 5, HEADER_BYTES + (1 << CHUNK_LOG2) + TAG_BYTES + 7])
def test_a_damaged_stored_chunk_is_written_again(big: Path, tmp_path: Path, at: int) -> None:
    """Same salt, same nonce, same plaintext: the very same bytes."""
    out = tmp_path / "out"
    partial = interrupted(big, out)
    change(out / "000000.partial", at)
    result = run(big, out, seed="second")
    stored = (out / "000000.kgf").read_bytes()
    assert 0 < result.kept_bytes < SIZE
    assert stored[: HEADER_BYTES + (8 << 20)] == partial[: HEADER_BYTES + (8 << 20)]


def test_no_nonce_is_used_for_two_plaintexts(big: Path, tmp_path: Path) -> None:
    """Interrupt, change the source anywhere, run again: wherever salts are equal, common ciphertext is equal."""
    for number, at in enumerate([0, BATCH_BYTES - 1, BATCH_BYTES + 1, 2 * BATCH_BYTES + 5, SIZE - 1]):
        out = tmp_path / f"out{number}"
        partial = interrupted(big, out, seed=f"first{number}")
        change(big, at)
        run(big, out, seed=f"second{number}")
        stored = (out / "000000.kgf").read_bytes()
        if stored[32:64] != partial[32:64]:
            continue
        step = (1 << CHUNK_LOG2) + TAG_BYTES
        for start in range(HEADER_BYTES, len(partial), step):
            ours = partial[start : start + step]
            assert not any(ours) or ours == stored[start : start + len(ours)]


def test_small_files_are_kept_when_complete(tmp_path: Path) -> None:
    """Twenty files, interrupted in the middle; one of them changes."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        (source / f"{number:02d}").write_bytes(bytes([number]) * 100_000)
    with pytest.raises(Interrupted):
        run(source, tmp_path / "out", seed="first", stop_after=1_000_000)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").glob("*.kgf")}
    assert before
    victim = min(before)
    change(source / f"{int(victim[:6]):02d}", 5)
    result = run(source, tmp_path / "out", seed="second")
    assert result.kept_bytes == (len(before) - 1) * 100_000
    after = {name: (tmp_path / "out" / name).read_bytes() for name in before}
    assert {name for name in before if before[name] != after[name]} == {victim}
    assert before[victim][32:64] != after[victim][32:64]
    assert decode_model(tmp_path / "out", KEY.expose()) == {p.name: p.read_bytes() for p in source.iterdir()}


def test_a_complete_folder_is_not_written_again(tmp_path: Path) -> None:
    """Another version goes to another folder."""
    (tmp_path / "a").write_bytes(b"x")
    run(tmp_path / "a", tmp_path / "out", seed="first")
    with pytest.raises(Misconfigured) as refused:
        run(tmp_path / "a", tmp_path / "out", seed="second")
    assert refused.value.code == "out-complete"


def test_a_source_that_shrinks_while_it_is_read(big: Path, tmp_path: Path) -> None:
    """An error, not a short file."""

    def progress(_size: int) -> None:
        os.truncate(big, SIZE // 2)

    with pytest.raises(AttestationError):
        encrypt_model(plan_sources(big), tmp_path / "out", KEY, random=counting(), options=OPTIONS, progress=progress)
    assert not (tmp_path / "out" / "manifest.kgm").exists()
