"""A stored file while it is written, or while it is compared with its source; and the buffers that this takes."""

import hashlib
import hmac
from dataclasses import dataclass

from attestation.crypto.stream import TAG_BYTES, FileCipher
from attestation.errors import AttestationError
from attestation.sources.blocks import read_exact, write_all
from attestation.values import Digest


@dataclass(frozen=True, slots=True)
class Buffers:
    """Three chunks of one thread."""

    plain: memoryview
    sealed: memoryview
    opened: memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A stored file in the making, or one to compare with: collects the tags that its digest is made of."""

    fd: int
    cipher: FileCipher
    tags: bytearray

    def seal(self, index: int, plain: memoryview, buffers: Buffers) -> None:
        """Encrypt and write one chunk."""
        view = buffers.sealed[: len(plain) + TAG_BYTES]
        self.cipher.seal_into(index, plain, view)
        write_all(self.fd, view, self.cipher.header.offset(index))
        self._note(index, view)

    def holds(self, index: int, plain: memoryview, buffers: Buffers) -> bool:
        """Whether the stored chunk is durable, authentic and equal to this plaintext."""
        view, out = buffers.sealed[: len(plain) + TAG_BYTES], buffers.opened[: len(plain)]
        try:
            read_exact(self.fd, view, self.cipher.header.offset(index), "stored chunk")
            self.cipher.open_into(index, view, out)
        except AttestationError:
            return False
        self._note(index, view)
        return hmac.compare_digest(out, plain)

    def _note(self, index: int, view: memoryview) -> None:
        self.tags[index * TAG_BYTES : (index + 1) * TAG_BYTES] = view[-TAG_BYTES:]

    @property
    def digest(self) -> Digest:
        """Of this encryption, once every chunk was sealed or compared."""
        return Digest("sha256", self.cipher.digest(self.tags))


def stored_file(fd: int, cipher: FileCipher) -> StoredFile:
    """Nothing sealed or compared yet."""
    return StoredFile(fd=fd, cipher=cipher, tags=bytearray(cipher.header.chunks * TAG_BYTES))


@dataclass(frozen=True, slots=True)
class PlainDigest:
    """Plaintext digest, or nothing where nobody asked for it."""

    state: "hashlib._Hash | None"

    def update(self, view: memoryview) -> None:
        """More plaintext, in order."""
        if self.state:
            self.state.update(view)

    def digest(self) -> Digest | None:
        """SHA-256 of all of it, if asked for."""
        return Digest("sha256", self.state.digest()) if self.state else None
