"""The header of a safetensors file: names, types, shapes and byte ranges of tensors, none of which leaves the file.

Format: https://github.com/huggingface/safetensors#format (8-byte little-endian header length, JSON, data without gaps).
"""

import json
import math
from dataclasses import dataclass

from attestation.errors import Malformed

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 16 << 20  # the format allows 100 MB; headers of the largest public checkpoints are below 1 MiB
MAX_DIMENSIONS = 32
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor; `start` and `end` are offsets in the file, not in its data part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def parse_header_length(prefix: bytes, file_size: int) -> int:
    """The first 8 bytes to the length of the JSON header."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) != LENGTH_BYTES or not 2 <= length <= min(MAX_HEADER_BYTES, file_size - LENGTH_BYTES):
        raise Malformed("safetensors-header", "not a safetensors file", expected="a header inside the file", got=length)
    return length


def parse_tensors(header: bytes, file_size: int) -> dict[str, Tensor]:
    """The JSON header to tensors by name, in file order. They cover the data part exactly, without gap or overlap."""
    try:
        document = json.loads(header, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as exc:
        raise Malformed("safetensors-json", "safetensors header is not JSON") from exc
    if not isinstance(document, dict):
        raise Malformed("safetensors-json", "safetensors header is not an object")
    base = LENGTH_BYTES + len(header)
    tensors = [_parse_tensor(name, row, base) for name, row in document.items() if name != "__metadata__"]
    tensors.sort(key=lambda t: (t.start, t.end))
    at = base
    for tensor in tensors:
        if tensor.start != at:
            raise Malformed("safetensors-layout", "tensors leave a gap or overlap", where=tensor.name, expected=at)
        at = tensor.end
    if at != file_size:
        raise Malformed("safetensors-layout", "data does not end with the file", expected=file_size, got=at)
    return {t.name: t for t in tensors}


def _parse_tensor(name: str, row: object, base: int) -> Tensor:
    if not isinstance(row, dict) or set(row) != {"dtype", "shape", "data_offsets"}:
        raise Malformed("safetensors-tensor", "wrong members", where=name[:140], expected="dtype, shape, data_offsets")
    dtype, shape, offsets = row["dtype"], row["shape"], row["data_offsets"]
    bits = _BITS.get(dtype) if isinstance(dtype, str) else None
    if (
        bits is None
        or not _naturals(shape)
        or len(shape) > MAX_DIMENSIONS
        or not _naturals(offsets)
        or len(offsets) != 2
    ):
        raise Malformed(
            "safetensors-tensor", "impossible type, shape or offsets", where=name[:140], got=str(dtype)[:40]
        )
    start, end = offsets
    if (end - start) * 8 != math.prod(shape) * bits:
        raise Malformed("safetensors-tensor", "size and shape disagree", where=name[:140], got=end - start)
    return Tensor(name=name, dtype=str(dtype), shape=tuple(shape), start=base + start, end=base + end)


def _naturals(values: object) -> bool:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise Malformed("safetensors-json", "a name occurs twice")
    return document
