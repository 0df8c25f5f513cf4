"""Where a secret must not be: every file that any process of the test wrote, outside the VM and the owner's desk."""

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Secrets:
    """Secrets by name, looked for in every spelling that a program might print."""

    named: dict[str, bytes]

    def found_in(self, folders: list[Path]) -> set[str]:
        """`secret in file` for each hit."""
        return {f"{name} in {path}" for path in _files(folders) for name in self._in(_content(path))}

    def _in(self, data: bytes) -> Iterator[str]:
        for name, secret in self.named.items():
            if any(spelling in data for spelling in spellings(secret)):
                yield name


def spellings(secret: bytes) -> list[bytes]:
    """Raw, hexadecimal, base64 at each of its three alignments, and Python's own."""
    out = [secret, secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()]
    for shift in range(3):
        cut = secret[shift:][: (len(secret) - shift) // 3 * 3]  # whole groups of three bytes look the same anywhere
        out += [b64encode(cut), urlsafe_b64encode(cut)]
    return out


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:  # the database recycles files
        return b""


def _files(folders: list[Path]) -> Iterator[Path]:
    return (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())
