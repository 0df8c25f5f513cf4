"""What makes an interrupted encryption safe to continue: for each batch, a durable keyed digest of the source.

A record is made durable before any chunk that it covers is written. So a chunk nonce is spent only for plaintext that a
record vouches for, and a source that no longer matches its records is given a new salt. Where storage forgets records
and chunks alike, the source still vouches: the key of the records holds when it was changed. The digests are keyed (the
journal lies beside the ciphertext and says nothing about the plaintext) and fast (a hash would cost more than AES-GCM);
their nonces are random, because one salt may see two versions of a batch.
"""

import hmac
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.crypto.stream import HEADER_BYTES, TAG_BYTES, FileCipher, derive
from attestation.errors import Unavailable
from attestation.sources.blocks import opened, read_exact, sync_folder, write_all
from attestation.values import Secret

BATCH_BYTES = 16 << 20  # a multiple of every chunk size; two batches are in memory
NONCE_BYTES = 12
_RECORD_BYTES = NONCE_BYTES + 8 + TAG_BYTES  # random nonce, batch number (enciphered), tag
_INFO = b"kata-gpu model v1 journal\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """Records of one file under one salt, as they were when the run started."""

    cipher: FileCipher
    mac: AESGCM
    records: tuple[bytes, ...] = ()

    def record(self, number: int, batch: memoryview, nonce: bytes) -> bytes:
        """The n-th batch of the source, as nonce, number and GMAC (SP 800-38D: the batch is additional data)."""
        return nonce + self.mac.encrypt(nonce, number.to_bytes(8, "big"), batch)

    def holds(self, number: int, batch: memoryview) -> bool:
        """Whether the n-th record describes this batch."""
        stored = self.records[number]
        return hmac.compare_digest(stored, self.record(number, batch, stored[:NONCE_BYTES]))

    def matches(self, source: int, size: int, where: str) -> bool:
        """Whether every record still describes the source, read from its beginning."""
        buffer = memoryview(bytearray(BATCH_BYTES))
        for number in range(len(self.records)):
            start = number * BATCH_BYTES
            batch = buffer[: min(BATCH_BYTES, size - start)]
            read_exact(source, batch, start, where)
            if not self.holds(number, batch):
                return False
        return True


def start_journal(path: Path, partial: Path, cipher: FileCipher, key: Secret, changed_ns: int) -> Journal:
    """Header into an emptied partial file, then durably into a new journal: both name the same salt.

    `changed_ns` is the source's time of modification.
    """
    path.unlink(missing_ok=True)
    with opened(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as fd:
        write_all(fd, cipher.render_header(), 0)
        os.fsync(fd)
    with opened(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
        write_all(fd, cipher.render_header(), 0)
        os.fsync(fd)
    sync_folder(path.parent)
    return Journal(cipher=cipher, mac=_mac(key, cipher, changed_ns))


def load_journal(path: Path, partial: Path, cipher: FileCipher, key: Secret, changed_ns: int) -> Journal | None:
    """Records of an interrupted run; None where nothing can be kept.

    A stored byte that no record covers means a nonce spent for unknown plaintext: then there is nothing to keep.
    """
    size = cipher.header.size
    with opened(path, os.O_RDWR) as fd:
        count = min((os.fstat(fd).st_size - HEADER_BYTES) // _RECORD_BYTES, -(-size // BATCH_BYTES))
        if count < 1:
            return None
        raw = bytearray(count * _RECORD_BYTES)
        read_exact(fd, memoryview(raw), HEADER_BYTES, path.name)
        os.ftruncate(fd, HEADER_BYTES + len(raw))  # a torn last record never covered a write
        os.fsync(fd)
    covered = min(count * BATCH_BYTES, size)
    if partial.stat().st_size > HEADER_BYTES + covered + -(-covered // cipher.header.chunk_bytes) * TAG_BYTES:
        return None
    records = tuple(bytes(raw[at : at + _RECORD_BYTES]) for at in range(0, len(raw), _RECORD_BYTES))
    return Journal(cipher=cipher, mac=_mac(key, cipher, changed_ns), records=records)


def append_durably(fd: int, record: bytes) -> None:
    """One record, on the disk when this returns. `fd` appends. Raises Unavailable."""
    if os.write(fd, record) != len(record):
        raise Unavailable("journal-write", "could not write the journal", where="journal")
    os.fdatasync(fd)


def _mac(key: Secret, cipher: FileCipher, changed_ns: int) -> AESGCM:
    return AESGCM(derive(key, cipher.header.salt, _INFO + changed_ns.to_bytes(8, "big", signed=True), 32))
