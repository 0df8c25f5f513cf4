"""The format itself: known answers of docs/model-format.md, the second decoder, and refusal of every changed region."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.crypto.stream import (
    HEADER_BYTES,
    TAG_BYTES,
    FileCipher,
    Header,
    Kind,
    derive,
    open_whole,
    parse_header,
    seal_whole,
)
from attestation.errors import AttestationError, Malformed, Untrusted
from attestation.values import Secret
from tests.attestation.guest.decoder import Refused, decode_file

DOC = Path(__file__).resolve().parents[3] / "docs" / "model-format.md"
KEY = Secret(bytes(range(32)))
SALT = bytes(range(32, 64))
CHUNK = 1 << 16


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """The vectors of the document."""
    block = re.search(r"```json\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert block is not None
    document: dict[str, Any] = json.loads(block[1])
    return document


def plain_of(vector: dict[str, Any]) -> bytes:
    """Plaintext of a vector."""
    if "plaintext_ascii" in vector:
        return str(vector["plaintext_ascii"]).encode("ascii")
    return bytes(k % 251 for k in range(131077))


def header_for(plain: bytes, kind: Kind = Kind.FILE, salt: bytes = SALT) -> Header:
    return Header(kind=kind, chunk_log2=16, size=len(plain), salt=salt)


@pytest.mark.parametrize("name", ["hello", "empty", "three_chunks", "manifest"])
def test_known_answers(known: dict[str, Any], name: str) -> None:
    """Both implementations agree with the document, byte for byte."""
    vector, key = known[name], bytes.fromhex(known["model_key"])
    plain, kind = plain_of(vector), Kind(vector["kind"])
    stored = seal_whole(Secret(key), header_for(plain, kind, bytes.fromhex(vector["salt"])), plain)
    if "stored" in vector:
        assert stored.hex() == vector["stored"]
    else:
        assert hashlib.sha256(stored).hexdigest() == vector["stored_sha256"]
    assert open_whole(Secret(key), stored, kind=kind)[1] == plain
    decoded, salt, digest = decode_file(stored, key, kind)
    assert (decoded, salt.hex()) == (plain, vector["salt"])
    if "digest" in vector:
        assert digest.hex() == vector["digest"]


def test_derived_keys_are_those_of_the_document(known: dict[str, Any]) -> None:
    """HKDF over salt and header, as one string of 71 bytes."""
    vector = known["hello"]
    head = bytes.fromhex(vector["stored"])[:32]
    salt = bytes.fromhex(vector["salt"])
    assert derive(KEY, salt, b"kata-gpu model v1\0" + head, 71).hex() == vector["okm"]


def test_chunk_digest_covers_header_and_tags(known: dict[str, Any]) -> None:
    """The digest of a stored file is made of its header and tags, and refuses a missing tag."""
    vector = known["three_chunks"]
    cipher = FileCipher(KEY, header_for(plain_of(vector), Kind.FILE, bytes.fromhex(vector["salt"])))
    tags = b"".join(bytes.fromhex(tag) for tag in vector["tags"])
    assert cipher.digest(tags).hex() == vector["digest"]
    with pytest.raises(Malformed, match="tag is missing"):
        cipher.digest(tags[:-TAG_BYTES])


def flip(at: int) -> Callable[[bytes], bytes]:
    """One bit of one byte."""
    return lambda stored: stored[:at] + bytes([stored[at] ^ 1]) + stored[at + 1 :]


def chunk_at(index: int) -> int:
    return HEADER_BYTES + index * (CHUNK + TAG_BYTES)


def swap_chunks(stored: bytes) -> bytes:
    """The first two chunks in each other's place."""
    first, second, rest = stored[chunk_at(0) : chunk_at(1)], stored[chunk_at(1) : chunk_at(2)], stored[chunk_at(2) :]
    return stored[:HEADER_BYTES] + second + first + rest


def repeat_chunk(stored: bytes) -> bytes:
    """The second chunk replaced by the first."""
    return stored[: chunk_at(1)] + stored[chunk_at(0) : chunk_at(1)] + stored[chunk_at(2) :]


def drop_last(stored: bytes) -> bytes:
    """Two chunks, with a header that says so but is still tagged for three."""
    size = (2 * CHUNK).to_bytes(8, "big")
    return stored[:16] + size + stored[24 : chunk_at(2)]


def resealed_without_last_flag(stored: bytes) -> bytes:
    """The last chunk as it would be sealed inside a longer file of the same key."""
    header = Header.parse(stored[:64])
    sealed = bytearray(TAG_BYTES + 5)
    cipher = FileCipher(KEY, header)
    plain = bytes(k % 251 for k in range(2 * CHUNK, 2 * CHUNK + 5))
    nonce = cipher._prefix + (2).to_bytes(4, "big") + b"\0"
    cipher._aead.encrypt_into(nonce, plain, header.render(), sealed)
    return stored[: chunk_at(2)] + bytes(sealed)


def other_salt(stored: bytes) -> bytes:
    """The header of another encryption of the same content under the same key."""
    plain = bytes(k % 251 for k in range(2 * CHUNK + 5))
    again = seal_whole(KEY, header_for(plain, salt=bytes(range(64, 96))), plain)
    return again[:HEADER_BYTES] + stored[HEADER_BYTES:]


TAMPERED: list[tuple[str, Callable[[bytes], bytes], str]] = [
    ("magic", flip(0), "magic"),
    ("version", flip(7), "magic"),
    ("kind", lambda s: s[:8] + b"\x01" + s[9:], "kind"),
    ("kind-unknown", lambda s: s[:8] + b"\x07" + s[9:], "kind"),
    ("chunk-size", lambda s: s[:9] + b"\x11" + s[10:], "header-tag"),
    ("chunk-size-range", lambda s: s[:9] + b"\x3f" + s[10:], "chunk-size"),
    ("reserved-1", flip(12), "reserved"),
    ("size", flip(23), "header-tag"),
    ("size-huge", lambda s: s[:16] + b"\xff" * 8 + s[24:], "file-size"),
    ("reserved-2", flip(31), "reserved"),
    ("salt", flip(40), "header-tag"),
    ("salt-zero", lambda s: s[:32] + bytes(32) + s[64:], "salt"),
    ("header-tag", flip(70), "header-tag"),
    ("first-byte", flip(HEADER_BYTES), "chunk-tag"),
    ("first-tag", flip(chunk_at(1) - 1), "chunk-tag"),
    ("middle", flip(chunk_at(1) + 100), "chunk-tag"),
    ("last-byte", flip(chunk_at(2)), "chunk-tag"),
    ("last-tag", lambda s: flip(len(s) - 1)(s), "chunk-tag"),
    ("order", swap_chunks, "chunk-tag"),
    ("repeated", repeat_chunk, "chunk-tag"),
    ("last-flag", resealed_without_last_flag, "chunk-tag"),
    ("dropped-chunk", drop_last, "header-tag"),
    ("other-encryption", other_salt, "chunk-tag"),
    ("truncated-tag", lambda s: s[:-1], "stored-size"),
    ("truncated-chunk", lambda s: s[: chunk_at(2)], "stored-size"),
    ("truncated-header", lambda s: s[:50], "truncated"),
    ("empty", lambda _s: b"", "truncated"),
    ("extended", lambda s: s + b"\0", "stored-size"),
    ("extended-chunk", lambda s: s + s[chunk_at(1) : chunk_at(2)], "stored-size"),
]


@pytest.mark.parametrize(("change", "code"), [pytest.param(c, code, id=name) for name, c, code in TAMPERED])
def test_every_region_is_authenticated(change: Callable[[bytes], bytes], code: str) -> None:
    """Changing any part of a stored file is an error, in both implementations."""
    plain = bytes(k % 251 for k in range(2 * CHUNK + 5))
    stored = change(seal_whole(KEY, header_for(plain), plain))
    with pytest.raises(AttestationError) as refused:
        open_whole(KEY, stored, kind=Kind.FILE)
    assert refused.value.code == code
    with pytest.raises(Refused):
        decode_file(stored, KEY.expose(), Kind.FILE)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_flipped_bit_is_refused(data: st.DataObject) -> None:
    """No bit of a stored file is free."""
    stored = bytearray(seal_whole(KEY, header_for(b"x" * 200), b"x" * 200))
    at = data.draw(st.integers(0, len(stored) * 8 - 1))
    stored[at // 8] ^= 1 << at % 8
    with pytest.raises((Malformed, Untrusted)):
        open_whole(KEY, bytes(stored), kind=Kind.FILE)


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_refused_in_our_terms(raw: bytes) -> None:
    """Random input never raises anything but our errors."""
    with pytest.raises((Malformed, Untrusted)):
        open_whole(KEY, raw, kind=Kind.FILE)
    with pytest.raises((Malformed, Untrusted)):
        open_whole(KEY, b"KATAGPU\x01\x02\x10" + raw, kind=Kind.FILE)


def test_nothing_is_released_before_it_is_authentic() -> None:
    """The caller's buffer is the only output, and the call that filled it raised."""
    cipher = FileCipher(KEY, header_for(b"secret" * 10))
    sealed = bytearray(60 + TAG_BYTES)
    cipher.seal_into(0, b"secret" * 10, sealed)
    sealed[0] ^= 1
    with pytest.raises(Untrusted, match="changed, moved or cut off"):
        cipher.open_into(0, sealed, bytearray(60))


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_wrong_key_length(size: int) -> None:
    """A model key has 32 bytes."""
    with pytest.raises(Malformed, match="not a model key"):
        FileCipher(Secret(bytes(size)), header_for(b""))


def test_wrong_key_is_told_before_any_chunk() -> None:
    """The header tag tells it."""
    stored = seal_whole(KEY, header_for(b"abc"), b"abc")
    with pytest.raises(Untrusted) as refused:
        parse_header(stored[:HEADER_BYTES], Secret(bytes(31) + b"\x01"), kind=Kind.FILE)
    assert refused.value.code == "header-tag"


@pytest.mark.parametrize(
    ("index", "length", "code"),
    [(-1, 5, "chunk-index"), (1, 5, "chunk-index"), (0, 4, "chunk-length"), (0, 6, "chunk-length")],
)
def test_chunk_bounds(index: int, length: int, code: str) -> None:
    """A chunk that the header does not have is not sealed."""
    cipher = FileCipher(KEY, header_for(b"12345"))
    with pytest.raises(Malformed) as refused:
        cipher.seal_into(index, bytes(length), bytearray(length + TAG_BYTES))
    assert refused.value.code == code


def test_headers_hold_what_they_must() -> None:
    """Chunks of 64 KiB to 4 MiB, a salt of 32 bytes, a size that is none below zero."""
    for log2, fits in ((15, False), (16, True), (22, True), (23, False)):
        if fits:
            assert Header(kind=Kind.FILE, chunk_log2=log2, size=1, salt=SALT).chunk_bytes == 1 << log2
            continue
        with pytest.raises(Malformed, match="chunk size out of range"):
            Header(kind=Kind.FILE, chunk_log2=log2, size=1, salt=SALT)
    for salt in (SALT[:-1], SALT + b"\1", bytes(32), b""):
        with pytest.raises(Malformed, match="no random salt"):
            Header(kind=Kind.FILE, chunk_log2=16, size=1, salt=salt)
    with pytest.raises(Malformed, match="size out of range"):
        Header(kind=Kind.FILE, chunk_log2=16, size=-1, salt=SALT)


def test_headers_end_where_they_end() -> None:
    stored = seal_whole(KEY, header_for(b"abc"), b"abc")
    for parse in (Header.parse, lambda data: parse_header(data + stored[64:96], KEY, kind=Kind.FILE)):
        with pytest.raises(Malformed) as refused:
            parse(stored[:64] + b"\0")
        assert refused.value.code == "trailing-bytes"


def test_a_header_of_another_size_seals_nothing() -> None:
    with pytest.raises(Malformed, match="header and content disagree"):
        seal_whole(KEY, header_for(b"abc"), b"abcd")


@pytest.mark.parametrize(
    ("index", "length", "code"),
    [(-1, 21, "chunk-index"), (1, 21, "chunk-index"), (0, 20, "chunk-length"), (0, 22, "chunk-length")],
)
def test_chunk_bounds_of_what_is_opened(index: int, length: int, code: str) -> None:
    cipher = FileCipher(KEY, header_for(b"12345"))
    with pytest.raises(Malformed) as refused:
        cipher.open_into(index, bytes(length), bytearray(length - TAG_BYTES))
    assert refused.value.code == code


def test_size_is_bounded_by_the_counter() -> None:
    """One byte more than 2^32 chunks has no nonce."""
    Header(kind=Kind.FILE, chunk_log2=16, size=1 << 48, salt=SALT)
    with pytest.raises(Malformed, match="size out of range"):
        Header(kind=Kind.FILE, chunk_log2=16, size=(1 << 48) + 1, salt=SALT)
