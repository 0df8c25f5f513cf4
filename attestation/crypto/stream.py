"""The encrypted model format, version 1: chunked AES-256-GCM in the STREAM construction (docs/model-format.md).

One stored file is a 64-byte header, a 32-byte header tag, and chunks of ciphertext with a 16-byte tag each. Keys come
from the model key by HKDF over a random salt and the header itself, so that no two encryptions share a key and any
changed header byte changes every key. The nonce of a chunk holds its index and whether it is the last one (Hoang,
Reyhanitabar, Rogaway, Vizar, "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", 2015): chunks
cannot be reordered, dropped, repeated or cut off, and each can be opened alone.

Pure: bytes and buffers in, bytes and buffers out; the salt is an argument.
"""

import hashlib
import hmac
from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from attestation.errors import Malformed, Untrusted
from attestation.formats.reader import Reader
from attestation.values import Secret

Buffer = bytes | bytearray | memoryview

MAGIC = b"KATAGPU\x01"  # seven letters and the format version
MODEL_KEY_BYTES = 32  # AES-256
SALT_BYTES = 32
FIELD_BYTES = 64  # the header without its tag: additional data of every chunk
HEADER_BYTES = FIELD_BYTES + 32  # and HMAC-SHA-256
TAG_BYTES = 16  # NIST SP 800-38D, the full tag
MIN_CHUNK_LOG2, MAX_CHUNK_LOG2 = 16, 22  # 64 KiB to 4 MiB: two buffers a thread stay far below 100 MiB
DEFAULT_CHUNK_LOG2 = 18  # 256 KiB: ciphertext and plaintext of a chunk stay in the second-level cache of a core
MAX_CHUNKS = 1 << 32  # the chunk counter has 32 bits; SP 800-38D's limit of 2^32 invocations a key as well
_NONCE_PREFIX_BYTES = 7  # and 4 bytes of counter and 1 of last flag: the 96-bit nonce
_INFO = b"kata-gpu model v1\0"


class Kind(IntEnum):
    """What a stored file holds. A manifest can never be taken for a model file, nor the other way round."""

    MANIFEST = 1
    FILE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The first 64 bytes: everything that a reader needs to know before the first chunk. Sizes are in bytes."""

    kind: Kind
    chunk_log2: int
    size: int  # of the plaintext
    salt: bytes

    def __post_init__(self) -> None:
        if not MIN_CHUNK_LOG2 <= self.chunk_log2 <= MAX_CHUNK_LOG2:
            raise Malformed(
                "chunk-size",
                "chunk size out of range",
                where="header.chunk_log2",
                expected=f"{MIN_CHUNK_LOG2} to {MAX_CHUNK_LOG2}",
                got=self.chunk_log2,
            )
        if len(self.salt) != SALT_BYTES or not any(self.salt):
            raise Malformed("salt", "no random salt", where="header.salt", expected=f"{SALT_BYTES} random bytes")
        if not 0 <= self.size <= MAX_CHUNKS << self.chunk_log2:
            raise Malformed("file-size", "size out of range", where="header.size", got=self.size)

    @property
    def chunk_bytes(self) -> int:
        """Plaintext bytes of every chunk but the last."""
        return 1 << self.chunk_log2

    @property
    def chunks(self) -> int:
        """Number of chunks; an empty file has one, empty, so that its end is authenticated too."""
        return max(1, -(-self.size >> self.chunk_log2))

    @property
    def stored_size(self) -> int:
        """Bytes of the whole stored file. Nothing may follow."""
        return HEADER_BYTES + self.size + self.chunks * TAG_BYTES

    def plain_length(self, index: int) -> int:
        """Plaintext bytes of one chunk."""
        return min(self.chunk_bytes, self.size - (index << self.chunk_log2))

    def offset(self, index: int) -> int:
        """Where a chunk starts in the stored file."""
        return HEADER_BYTES + index * (self.chunk_bytes + TAG_BYTES)

    def render(self) -> bytes:
        """The 64 bytes, without the tag."""
        fixed = bytes((self.kind, self.chunk_log2)) + bytes(6) + self.size.to_bytes(8, "big") + bytes(8)
        return MAGIC + fixed + self.salt

    @classmethod
    def parse(cls, data: bytes) -> "Header":
        """Exactly 64 bytes; reserved bytes must be zero. Not yet authenticated: see `FileCipher.verify_header`.

        Raises Malformed.
        """
        reader = Reader(data, "header")
        if (magic := reader.take(len(MAGIC), "magic")) != MAGIC:
            raise Malformed("magic", "not an encrypted model file", where="header", expected=MAGIC, got=magic)
        kind = reader.u8("kind")
        if kind not in tuple(Kind):
            raise Malformed("kind", "unknown kind", where="header.kind", expected="1 or 2", got=kind)
        chunk_log2 = reader.u8("chunk_log2")
        reader.zeros(6, "reserved")
        size = int.from_bytes(reader.take(8, "size"), "big")
        reader.zeros(8, "reserved")
        salt = reader.take(SALT_BYTES, "salt")
        reader.finish()
        return cls(kind=Kind(kind), chunk_log2=chunk_log2, size=size, salt=salt)


class FileCipher:
    """Seals and opens the chunks of one stored file. Buffers are the caller's; methods release the GIL while at work.

    Safe to share between threads: every call is a function of its arguments and the key.
    """

    __slots__ = ("_aead", "_fields", "_last", "_prefix", "_tag", "header")

    def __init__(self, model_key: Secret, header: Header) -> None:
        self.header = header
        self._fields = header.render()
        okm = derive(model_key, header.salt, _INFO + self._fields[: FIELD_BYTES - SALT_BYTES], 64 + _NONCE_PREFIX_BYTES)
        self._aead = AESGCM(okm[:32])
        self._tag = hmac.digest(okm[32:64], self._fields, "sha256")
        self._prefix, self._last = okm[64:], header.chunks - 1

    def render_header(self) -> bytes:
        """The 96 bytes that start the stored file."""
        return self._fields + self._tag

    def digest(self, tags: Buffer) -> bytes:
        """SHA-256 over the 96 header bytes and the tags of all chunks in order: names this very encryption.

        Raises Malformed.
        """
        if len(tags) != self.header.chunks * TAG_BYTES:
            raise Malformed("tags", "a tag is missing", expected=f"{self.header.chunks} tags", got=len(tags))
        return hashlib.sha256(self.render_header() + tags).digest()

    def verify_header(self, tag: bytes) -> None:
        """Untrusted unless this model key wrote this header. Tells a wrong key before any chunk is read."""
        if not hmac.compare_digest(self._tag, tag):
            raise Untrusted("header-tag", "wrong model key, or the header was changed", where="header.tag")

    def seal_into(self, index: int, plain: Buffer, out: Buffer) -> None:
        """Encrypt one chunk; `out` is exactly 16 bytes longer."""
        self._check(index, len(plain), 0)
        self._aead.encrypt_into(self._nonce(index), plain, self._fields, out)

    def open_into(self, index: int, sealed: Buffer, out: Buffer) -> None:
        """Verify and decrypt one chunk; `out` is exactly 16 bytes shorter and must not be used when this raises."""
        self._check(index, len(sealed), TAG_BYTES)
        try:
            self._aead.decrypt_into(self._nonce(index), sealed, self._fields, out)
        except InvalidTag as exc:
            raise Untrusted(
                "chunk-tag", "chunk was changed, moved or cut off", where=f"chunk {index} of {self.header.chunks}"
            ) from exc

    def _check(self, index: int, got: int, extra: int) -> None:
        if not 0 <= index <= self._last:
            raise Malformed("chunk-index", "no such chunk", expected=f"below {self.header.chunks}", got=index)
        want = self.header.plain_length(index) + extra
        if got != want:
            raise Malformed(
                "chunk-length", "wrong chunk length", where=f"chunk {index}", expected=f"{want} bytes", got=got
            )

    def _nonce(self, index: int) -> bytes:
        return self._prefix + index.to_bytes(4, "big") + bytes((index == self._last,))


def derive(model_key: Secret, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA-256 (RFC 5869). Misuse of a model key of another length is refused here, for every caller."""
    if len(model_key) != MODEL_KEY_BYTES:
        raise Malformed(
            "model-key", "not a model key", expected=f"{MODEL_KEY_BYTES} bytes", got=f"{len(model_key)} bytes"
        )
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=info).derive(model_key.expose())


def parse_header(data: bytes, model_key: Secret, *, kind: Kind) -> FileCipher:
    """The first 96 bytes of a stored file to a cipher whose header is authentic and of the kind expected.

    Raises Malformed or Untrusted.
    """
    reader = Reader(data, "header")
    fields, tag = reader.take(FIELD_BYTES, "fields"), reader.take(HEADER_BYTES - FIELD_BYTES, "tag")
    reader.finish()
    header = Header.parse(fields)
    if header.kind is not kind:
        raise Untrusted("kind", "a file of another kind", where="header.kind", expected=kind.name, got=header.kind.name)
    cipher = FileCipher(model_key, header)
    cipher.verify_header(tag)
    return cipher


def seal_whole(model_key: Secret, header: Header, plain: bytes) -> bytes:
    """A complete stored file in memory; for manifests. Raises Malformed."""
    cipher = FileCipher(model_key, header)
    out = bytearray(header.stored_size)
    view, source = memoryview(out), memoryview(plain)
    view[:HEADER_BYTES] = cipher.render_header()
    if len(plain) != header.size:
        raise Malformed("file-size", "header and content disagree", expected=header.size, got=len(plain))
    for index in range(header.chunks):
        start, length = index << header.chunk_log2, header.plain_length(index)
        at = header.offset(index)
        cipher.seal_into(index, source[start : start + length], view[at : at + length + TAG_BYTES])
    return bytes(out)


def open_whole(model_key: Secret, stored: bytes, *, kind: Kind) -> tuple[Header, bytes]:
    """The authenticated plaintext of a complete stored file in memory; for manifests. The caller bounds its size.

    Raises Malformed or Untrusted.
    """
    cipher = parse_header(stored[:HEADER_BYTES], model_key, kind=kind)
    header = cipher.header
    if len(stored) != header.stored_size:
        raise Malformed("stored-size", "stored file has another length", expected=header.stored_size, got=len(stored))
    out = bytearray(header.size)
    view, source = memoryview(out), memoryview(stored)
    for index in range(header.chunks):
        start, length = index << header.chunk_log2, header.plain_length(index)
        at = header.offset(index)
        cipher.open_into(index, source[at : at + length + TAG_BYTES], view[start : start + length])
    return header, bytes(out)
