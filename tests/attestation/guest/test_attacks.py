"""What an attacker tried with encrypted models (docs/threat-model.md, "What was tried")."""

import secrets
from pathlib import Path

import pytest

from attestation.crypto.stream import DEFAULT_CHUNK_LOG2, HEADER_BYTES, TAG_BYTES
from attestation.ops.encrypt_journal import BATCH_BYTES
from attestation.ops.model_encrypt import Options, encrypt_model
from attestation.values import Secret

RECORD_BYTES = 36  # docs/model-format.md
COVERED = HEADER_BYTES + BATCH_BYTES + (BATCH_BYTES >> DEFAULT_CHUNK_LOG2) * TAG_BYTES


class Interrupted(Exception):
    pass


def test_storage_that_forgets_makes_no_nonce_repeat(tmp_path: Path) -> None:
    """A run is interrupted, its folder taken back to one batch, and the source retrained after that batch."""
    source, out, key = tmp_path / "weights", tmp_path / "out", Secret(bytes(range(32)))
    first = secrets.token_bytes(3 * BATCH_BYTES)
    source.write_bytes(first)
    done = 0

    def progress(size: int) -> None:
        nonlocal done
        done += size
        if done > 2 * BATCH_BYTES:
            raise Interrupted

    with pytest.raises(Interrupted):
        encrypt_model(
            {"weights": source}, out, key, random=secrets.token_bytes, options=Options(threads=1), progress=progress
        )
    before = (out / "000000.partial").read_bytes()
    for name, size in (("000000.partial", COVERED), ("000000.journal", HEADER_BYTES + RECORD_BYTES)):
        with (out / name).open("r+b") as file:
            file.truncate(size)
    second = first[:BATCH_BYTES] + secrets.token_bytes(2 * BATCH_BYTES)
    source.write_bytes(second)
    encrypt_model({"weights": source}, out, key, random=secrets.token_bytes, options=Options(threads=1))
    after = (out / "000000.kgf").read_bytes()
    assert before[:HEADER_BYTES] != after[:HEADER_BYTES]
    assert _xor(before, after, COVERED) != _xor(first, second, BATCH_BYTES)


def _xor(one: bytes, other: bytes, start: int) -> bytes:
    return bytes(a ^ b for a, b in zip(one[start : start + 4096], other[start : start + 4096], strict=True))
