"""Tensors of an encrypted safetensors file, read without decrypting the rest of it."""

from collections.abc import Iterator

from attestation.errors import Misconfigured
from attestation.formats.safetensors import LENGTH_BYTES, Tensor, parse_header_length, parse_tensors
from attestation.guest.model import StoredFile


def read_tensors(stored: StoredFile) -> dict[str, Tensor]:
    """Names, types, shapes and ranges: opens only the chunks that hold the header."""
    size = stored.entry.size
    prefix = b"".join(bytes(v) for v in stored.read(0, min(LENGTH_BYTES, size)))
    length = parse_header_length(prefix, size)
    header = b"".join(bytes(v) for v in stored.read(LENGTH_BYTES, length))
    return parse_tensors(header, size)


def read_tensor(stored: StoredFile, name: str) -> Iterator[memoryview]:
    """The raw little-endian bytes of one tensor, chunk by chunk. Misconfigured where it has no such tensor."""
    tensor = read_tensors(stored).get(name)
    if tensor is None:
        raise Misconfigured(
            "no-such-tensor", "the file has no such tensor", where=stored.entry.name, got=repr(name[:140])
        )
    return stored.read(tensor.start, tensor.end - tensor.start)
