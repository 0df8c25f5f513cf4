"""Exact cursor over untrusted bytes: short, non-zero reserved and trailing input all raise Malformed."""

from attestation.errors import Malformed


class Reader:
    """Reads fields in order. `take` is exact, `zeros` checks reserved bytes, `finish` refuses trailing bytes."""

    __slots__ = ("_data", "_pos", "_what")

    def __init__(self, data: bytes, what: str) -> None:
        self._data, self._pos, self._what = data, 0, what

    @property
    def position(self) -> int:
        """Offset of the next byte."""
        return self._pos

    @property
    def remaining(self) -> int:
        """Bytes not yet taken."""
        return len(self._data) - self._pos

    def take(self, size: int, field: str) -> bytes:
        """Exactly `size` bytes."""
        chunk = self._data[self._pos : self._pos + size]
        if len(chunk) != size:
            raise Malformed(
                "truncated",
                "input ends early",
                where=f"{self._what}.{field}",
                expected=f"{size} bytes at offset {self._pos}",
                got=len(chunk),
            )
        self._pos += size
        return chunk

    def u8(self, field: str) -> int:
        """One byte."""
        return self.take(1, field)[0]

    def u16le(self, field: str) -> int:
        """Little-endian 16-bit."""
        return int.from_bytes(self.take(2, field), "little")

    def u32le(self, field: str) -> int:
        """Little-endian 32-bit."""
        return int.from_bytes(self.take(4, field), "little")

    def u64le(self, field: str) -> int:
        """Little-endian 64-bit."""
        return int.from_bytes(self.take(8, field), "little")

    def zeros(self, size: int, field: str) -> None:
        """Reserved bytes that must be zero."""
        if any(self.take(size, field)):
            raise Malformed("reserved", "reserved bytes are not zero", where=f"{self._what}.{field}", expected="zeros")

    def finish(self) -> None:
        """Every byte was taken."""
        if self.remaining:
            raise Malformed(
                "trailing-bytes",
                "input goes on after its end",
                where=self._what,
                expected="end of input",
                got=f"{self.remaining} more bytes",
            )
