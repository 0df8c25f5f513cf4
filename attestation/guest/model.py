"""An encrypted model on disk, opened: manifest first, then any chunk of any file, authenticated before it is used."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from attestation.crypto.stream import HEADER_BYTES, TAG_BYTES, FileCipher, Kind, open_whole, parse_header
from attestation.errors import Malformed, Misconfigured, Unavailable, Untrusted
from attestation.formats.model_manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    ModelFile,
    parse_manifest,
    stored_name,
)
from attestation.values import Digest, Secret

_MAX_STORED_MANIFEST = HEADER_BYTES + MAX_MANIFEST_BYTES + (MAX_MANIFEST_BYTES >> 16) * TAG_BYTES

Buffers = tuple[memoryview, memoryview]  # sealed and plain, one chunk each


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptedModel:
    """A folder of stored files whose manifest this key opened. `digest` names this very encryption."""

    folder: Path
    manifest: Manifest
    digest: Digest
    key: Secret

    def index(self, name: str) -> int:
        """Position of a file in the manifest; Misconfigured when there is none of that name."""
        for index, entry in enumerate(self.manifest.files):
            if entry.name == name:
                return index
        raise Misconfigured("no-such-file", "the model has no such file", where=str(self.folder), got=repr(name[:140]))


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One stored file, open for reading at any chunk. Safe to share between threads."""

    entry: ModelFile
    cipher: FileCipher
    fd: int
    tags: bytearray  # of the chunks opened so far

    def open_chunk(self, index: int, sealed: memoryview, plain: memoryview) -> memoryview:
        """Read, verify and decrypt one chunk; returns the filled part of `plain`. Nothing is released on error.

        Raises Unavailable or Untrusted.
        """
        length = self.cipher.header.plain_length(index)
        stored, out = sealed[: length + TAG_BYTES], plain[:length]
        read_exact(self.fd, stored, self.cipher.header.offset(index), self.entry.name)
        try:
            self.cipher.open_into(index, stored, out)
        except Untrusted as exc:
            raise Untrusted(exc.code, exc.what, where=f"{self.entry.name}, {exc.where}") from exc
        self.tags[index * TAG_BYTES : (index + 1) * TAG_BYTES] = stored[-TAG_BYTES:]
        return out

    def verify_digest(self) -> None:
        """After every chunk was opened: the stored file is, as a whole, the one that the manifest names.

        Raises Untrusted.
        """
        if self.cipher.digest(self.tags) != self.entry.digest.raw:
            raise Untrusted("file-digest", "not the encryption that the manifest names", where=self.entry.name)

    def chunks(self, first: int = 0, last: int | None = None, buffers: Buffers | None = None) -> Iterator[memoryview]:
        """Plaintext of chunks first..last, in order; each view is valid until the next step."""
        longest = self.cipher.header.plain_length(0)
        if buffers is None or len(buffers[1]) < longest:
            buffers = new_buffers(longest)
        end = self.cipher.header.chunks if last is None else last
        for index in range(first, end):
            yield self.open_chunk(index, *buffers)

    def read(self, offset: int, length: int) -> Iterator[memoryview]:
        """Plaintext bytes offset..offset+length, chunk by chunk, opening only the chunks that hold them.

        Raises Misconfigured where the file has no such bytes, Unavailable or Untrusted.
        """
        if offset < 0 or length < 0 or offset + length > self.entry.size:
            raise Misconfigured(
                "range", "outside the file", where=self.entry.name, expected=f"0 to {self.entry.size}", got=offset
            )
        if length == 0:
            return
        log2 = self.cipher.header.chunk_log2
        first, last = offset >> log2, (offset + length - 1) >> log2
        for index, view in enumerate(self.chunks(first, last + 1), first):
            start = index << log2
            yield view[max(0, offset - start) : offset + length - start]


def new_buffers(longest: int) -> Buffers:
    """A sealed and a plain buffer for chunks of this size."""
    return memoryview(bytearray(longest + TAG_BYTES)), memoryview(bytearray(longest))


def open_model(folder: Path, key: Secret, *, expect: Digest | None = None) -> EncryptedModel:
    """Read and verify the manifest. `expect` pins one encryption, so that an older one is refused as well."""
    path = folder / MANIFEST_NAME
    try:
        with path.open("rb") as file:
            stored = file.read(_MAX_STORED_MANIFEST + 1)
    except OSError as exc:
        raise Misconfigured(
            "no-manifest", "not an encrypted model, or its encryption never finished", where=str(path), got=exc.strerror
        ) from exc
    if len(stored) > _MAX_STORED_MANIFEST:
        raise Malformed("manifest-size", "manifest is too large", where=str(path), expected=_MAX_STORED_MANIFEST)
    digest = Digest("sha256", hashlib.sha256(stored).digest())
    if expect is not None and digest != expect:
        raise Untrusted(
            "model-digest", "another encryption than expected", where=str(path), expected=expect, got=digest
        )
    _, plain = open_whole(key, stored, kind=Kind.MANIFEST)
    return EncryptedModel(folder=folder, manifest=parse_manifest(plain), digest=digest, key=key)


@contextmanager
def open_file(model: EncryptedModel, index: int) -> Iterator[StoredFile]:
    """Open the n-th file: its header must be the very one that the manifest names, and its length exact.

    Raises Unavailable or Untrusted.
    """
    entry, name = model.manifest.files[index], stored_name(index)
    try:
        fd = os.open(f"{model.folder}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as exc:
        raise Unavailable("stored-file", exc.strerror or "cannot open", where=f"{entry.name} ({name})") from exc
    try:
        cipher = parse_header(os.pread(fd, HEADER_BYTES, 0), model.key, kind=Kind.FILE)
        header, stored_size = cipher.header, os.fstat(fd).st_size
        if header.salt != entry.salt or header.size != entry.size:
            raise Untrusted("file-swapped", "not the file that the manifest names", where=f"{entry.name} ({name})")
        if stored_size != header.stored_size:
            raise Untrusted(
                "stored-size",
                "file was cut off or extended",
                where=entry.name,
                expected=header.stored_size,
                got=stored_size,
            )
        yield StoredFile(entry=entry, cipher=cipher, fd=fd, tags=bytearray(header.chunks * TAG_BYTES))
    finally:
        os.close(fd)


def verify_file(model: EncryptedModel, index: int) -> int:
    """Open every chunk, compare digests with the manifest's; returns the plaintext size.

    Raises Unavailable or Untrusted.
    """
    entry = model.manifest.files[index]
    digest = hashlib.sha256()
    with open_file(model, index) as stored:
        for view in stored.chunks():
            if entry.sha256:
                digest.update(view)
        stored.verify_digest()
    if entry.sha256 and digest.digest() != entry.sha256.raw:
        raise Untrusted(
            "file-sha256",
            "content and manifest disagree",
            where=entry.name,
            expected=entry.sha256,
            got=digest.hexdigest(),
        )
    return entry.size


def read_exact(fd: int, view: memoryview, offset: int, where: str) -> None:
    """Fill the view from this offset; an early end is Untrusted, since the length was checked on opening.

    Raises Unavailable where the disk fails.
    """
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as exc:
            raise Unavailable("stored-read", exc.strerror or "cannot read", where=where) from exc
        if count == 0:
            raise Untrusted("stored-size", "file was cut off while it was read", where=where)
        done += count
