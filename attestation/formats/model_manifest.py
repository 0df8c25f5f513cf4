"""The manifest of an encrypted model: which files it has, and exactly which encryption of each (docs/model-format.md).

The manifest travels encrypted; what is parsed here is its authenticated plaintext. It names the salt of every stored
file, so that a file of an older version under the same model key does not fit a newer manifest.
"""

import json
import re
from dataclasses import dataclass

from attestation.errors import Malformed
from attestation.values import Digest

FORMAT, VERSION = "kata-gpu-model", 1
MANIFEST_NAME = "manifest.kgm"
MAX_FILES = 65_536  # the largest public checkpoints have some hundred files
MAX_MANIFEST_BYTES = 16 << 20  # 65,536 entries of 256 bytes
MAX_NAME_CHARS = 1024  # Linux PATH_MAX is 4096 bytes, four for each character
_PART = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}")  # NAME_MAX, no control characters, no other system's separator
_SALT = re.compile(r"[0-9a-f]{64}")
_MEMBERS = {"name", "size", "salt", "digest", "sha256"}


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ModelFile:
    """One file: relative POSIX name and plaintext size, and which encryption of it counts.

    `digest` is SHA-256 over the stored header and every chunk's tag in order; `sha256` is over the plaintext, where
    the owner asked for it: it costs more than the encryption.
    """

    name: str
    size: int
    salt: bytes
    digest: Digest
    sha256: Digest | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        digests = (self.digest, self.sha256 or self.digest)
        if self.size < 0 or len(self.salt) != 32 or any(d.alg != "sha256" for d in digests):
            raise Malformed("manifest-file", "impossible size, digest or salt", where=self.name)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Files in name order, at least one, no name twice, no file that would have to be a folder."""

    files: tuple[ModelFile, ...]

    def __post_init__(self) -> None:
        names = [f.name for f in self.files]
        if not 0 < len(names) <= MAX_FILES:
            raise Malformed("manifest-files", "wrong number of files", expected=f"1 to {MAX_FILES}", got=len(names))
        if names != sorted(set(names)):
            raise Malformed("manifest-order", "names are not distinct and sorted", where="manifest.files")
        known = set(names)
        for name in names:
            for parent in _parents(name):
                if parent in known:
                    raise Malformed("manifest-name", "a file is also a folder", where=name, got=parent)

    @property
    def size(self) -> int:
        """Plaintext bytes of all files."""
        return sum(f.size for f in self.files)

    def render(self) -> bytes:
        """Canonical JSON: sorted members, no spaces, ASCII. The only accepted spelling."""
        document = {"files": [_render_file(f) for f in self.files], "format": FORMAT, "version": VERSION}
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def stored_name(index: int) -> str:
    """Name of the stored file of the n-th manifest entry. Names of the model's files are not visible outside."""
    return f"{index:06d}.kgf"


def check_name(name: str) -> None:
    """Malformed unless the name stays below the folder it is joined to, on any POSIX system."""
    parts = name.split("/")
    if len(name) > MAX_NAME_CHARS or not all(_PART.fullmatch(p) and p not in {".", ".."} for p in parts):
        raise Malformed("manifest-name", "unusable file name", expected="relative path", got=repr(name[:140]))
    try:
        encoded = [len(p.encode()) for p in parts]
    except UnicodeEncodeError as exc:
        raise Malformed("manifest-name", "file name is not Unicode", got=repr(name[:140])) from exc
    if max(encoded) > 255:
        raise Malformed("manifest-name", "file name part is too long", expected="255 bytes", got=max(encoded))


def parse_manifest(plain: bytes) -> Manifest:
    """Authenticated plaintext to a manifest; anything but the canonical spelling is Malformed."""
    if len(plain) > MAX_MANIFEST_BYTES:
        raise Malformed("manifest-size", "manifest is too large", expected=MAX_MANIFEST_BYTES, got=len(plain))
    try:
        document = json.loads(plain)
    except (ValueError, RecursionError) as exc:
        raise Malformed("manifest-json", "manifest is not JSON", where="manifest") from exc
    if not isinstance(document, dict) or set(document) != {"files", "format", "version"}:
        raise Malformed("manifest-members", "wrong members", where="manifest", expected="files, format, version")
    if document["format"] != FORMAT or document["version"] != VERSION or not isinstance(document["files"], list):
        raise Malformed("manifest-version", "unknown manifest", where="manifest", expected=f"{FORMAT} {VERSION}")
    manifest = Manifest(tuple(_parse_file(entry) for entry in document["files"][: MAX_FILES + 1]))
    if manifest.render() != plain:
        raise Malformed("manifest-canonical", "manifest is not in its canonical spelling", where="manifest")
    return manifest


def _parse_file(entry: object) -> ModelFile:
    if not isinstance(entry, dict) or set(entry) != _MEMBERS:
        raise Malformed("manifest-members", "wrong members", where="manifest.files", expected=sorted(_MEMBERS))
    name, size, salt, digest, sha256 = (entry[k] for k in ("name", "size", "salt", "digest", "sha256"))
    texts = (name, salt, digest, sha256 if sha256 is not None else "")
    if type(size) is not int or not all(isinstance(text, str) for text in texts):
        raise Malformed("manifest-members", "wrong type", where="manifest.files", expected="text and a whole number")
    if not _SALT.fullmatch(salt):
        raise Malformed("manifest-salt", "not a salt", where=name[:140], expected="64 hex digits")
    return ModelFile(
        name=name,
        size=size,
        salt=bytes.fromhex(salt),
        digest=Digest.parse(f"sha256:{digest}"),
        sha256=None if sha256 is None else Digest.parse(f"sha256:{sha256}"),
    )


def _render_file(file: ModelFile) -> dict[str, str | int | None]:
    return {
        "digest": file.digest.raw.hex(),
        "name": file.name,
        "salt": file.salt.hex(),
        "sha256": file.sha256.raw.hex() if file.sha256 else None,
        "size": file.size,
    }


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:n]) for n in range(1, len(parts))]
