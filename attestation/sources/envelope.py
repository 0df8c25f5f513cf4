"""Secrets at rest: a fresh AES-256-GCM data key per version, wrapped by the root key; both bind path and version.

A sealed row that is moved to another path or version does not open. Root keys sit behind one small interface; the
file provider is here, the others are in `roots/`.
"""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.crypto.jwe import RandomBytes
from attestation.errors import Misconfigured, Unavailable, Untrusted
from attestation.values import Secret

KEY_BYTES, IV_BYTES = 32, 12
_ROOT_AAD = b"kata-gpu-kbs/root/1\0"
_DATA_AAD = b"kata-gpu-kbs/data/1\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What is stored: which root key wrapped the data key, and the two ciphertexts (each with its IV in front)."""

    root: str
    wrapped: bytes
    sealed: bytes


class RootKey(Protocol):
    """Wraps data keys. `name` is stored beside what it wrapped, so that roots can be rotated."""

    @property
    def name(self) -> str:
        """Provider and key, e.g. `file:1f3a`."""

    def wrap(self, key: Secret, context: bytes) -> bytes:
        """Encrypt a data key, bound to its context."""

    def unwrap(self, wrapped: bytes, context: bytes) -> Secret:
        """Inverse of `wrap`; Untrusted where it does not verify, Unavailable where the provider does not answer."""


class FileRootKey:
    """32 bytes in a file that only its owner can read, and that is no symlink."""

    def __init__(self, key: Secret, random: RandomBytes) -> None:
        self.key, self._aead, self._random = key, AESGCM(key.expose()), random
        # A name that tells keys apart and says nothing about them.
        self.name = "file:" + AESGCM(key.expose()).encrypt(bytes(IV_BYTES), b"", b"kata-gpu-kbs/root-name").hex()[:16]

    @classmethod
    def load(cls, path: Path, random: RandomBytes) -> "FileRootKey":
        """Read and check; Misconfigured for loose permissions, another owner, a symlink or a wrong length."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            raise Misconfigured(
                "root-key-file", f"cannot open the root key: {exc.strerror}", where=str(path), expected="a regular file"
            ) from exc
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
                raise Misconfigured(
                    "root-key-mode",
                    "others can read the root key",
                    where=str(path),
                    expected="mode 0600",
                    got=f"{stat.S_IMODE(status.st_mode):04o}",
                )
            if status.st_uid not in (0, os.geteuid()):
                raise Misconfigured("root-key-owner", "the root key belongs to somebody else", where=str(path))
            raw = file.read(KEY_BYTES + 1)
        if len(raw) != KEY_BYTES:
            raise Misconfigured("root-key-length", "wrong length", where=str(path), expected=KEY_BYTES, got=len(raw))
        return cls(Secret(raw), random)

    @classmethod
    def create(cls, path: Path, random: RandomBytes) -> "FileRootKey":
        """A new key in a new file, on disk when this returns."""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise Misconfigured(
                "root-key-file", f"cannot create the root key: {exc.strerror}", where=str(path)
            ) from exc
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(random(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            path.unlink()  # half a key opens nothing, and would be in the way of a whole one
            raise Unavailable("root-key-file", f"cannot write the root key: {exc.strerror}", where=str(path)) from exc
        return cls.load(path, random)

    def wrap(self, key: Secret, context: bytes) -> bytes:
        """AES-256-GCM under the root key."""
        iv = self._random(IV_BYTES)
        return iv + self._aead.encrypt(iv, key.expose(), _ROOT_AAD + context)

    def unwrap(self, wrapped: bytes, context: bytes) -> Secret:
        """Inverse of `wrap`."""
        return _open(self._aead, wrapped, _ROOT_AAD + context)


class RootRing(Protocol):
    """The root keys in use (`roots.config.RootKeys`)."""

    @property
    def root(self) -> RootKey:
        """Wraps what no tenant's key wraps."""

    @property
    def tenants(self) -> Mapping[str, RootKey]:
        """By repository."""

    def all(self) -> tuple[RootKey, ...]:
        """Every key that opens something."""


@dataclass(frozen=True, slots=True)
class OneRoot:
    """A single root key."""

    root: RootKey
    retired: tuple[RootKey, ...] = ()

    @property
    def tenants(self) -> Mapping[str, RootKey]:
        """None has its own."""
        return {}

    def all(self) -> tuple[RootKey, ...]:
        """The key and the retired ones."""
        return (self.root, *self.retired)


class Vault:
    """Seals with the tenant's or the broker's root key and opens with any that is known.

    `reload` reads the configuration again where an envelope names a root key that is not known yet: a rotation by
    another process needs no restart here.
    """

    def __init__(self, ring: RootRing, random: RandomBytes, reload: Callable[[], RootRing] | None = None) -> None:
        self._random, self._reload = random, reload
        self._take(ring)

    def _take(self, ring: RootRing) -> None:
        self._ring = ring
        self._roots = {key.name: key for key in reversed(ring.all())}

    @property
    def ring(self) -> RootRing:
        """The root keys in use."""
        return self._ring

    @property
    def root_names(self) -> tuple[str, ...]:
        """Names of every key that opens something, those that wrap first."""
        return tuple(key.name for key in self._ring.all())

    def root_for(self, path: str) -> RootKey:
        """The key that wraps for this path: its repository's own, or the broker's, which has the signing keys too."""
        repository, *rest = path.split("/")
        return self._ring.tenants.get(repository, self._ring.root) if len(rest) == 2 else self._ring.root

    def seal(self, secret: Secret, *, path: str, version: int) -> Envelope:
        """Encrypt under a fresh data key."""
        context, root = _context(path, version), self.root_for(path)
        data_key, iv = Secret(self._random(KEY_BYTES)), self._random(IV_BYTES)
        sealed = iv + AESGCM(data_key.expose()).encrypt(iv, secret.expose(), _DATA_AAD + context)
        return Envelope(root=root.name, wrapped=root.wrap(data_key, context), sealed=sealed)

    def open(self, envelope: Envelope, *, path: str, version: int) -> Secret:
        """Decrypt; Misconfigured where the root key is not among ours, Untrusted where the row was changed."""
        context = _context(path, version)
        return _open(self._cipher(envelope, context), envelope.sealed, _DATA_AAD + context)

    def rewrap(self, envelope: Envelope, *, path: str, version: int) -> Envelope:
        """The same sealed bytes under the root key that wraps for this path now."""
        context, root = _context(path, version), self.root_for(path)
        data_key = self._data_key(envelope, context)
        return Envelope(root=root.name, wrapped=root.wrap(data_key, context), sealed=envelope.sealed)

    def _cipher(self, envelope: Envelope, context: bytes) -> AESGCM:
        try:
            return AESGCM(self._data_key(envelope, context).expose())
        except ValueError as exc:
            raise Untrusted("envelope", "what the root key opened is no data key", where=envelope.root) from exc

    def _data_key(self, envelope: Envelope, context: bytes) -> Secret:
        if envelope.root not in self._roots and self._reload is not None:
            self._take(self._reload())
        root = self._roots.get(envelope.root)
        if root is None:
            raise Misconfigured(
                "root-key-unknown",
                "sealed with a root key that was not given",
                expected="|".join(self._roots),
                got=envelope.root,
            )
        return root.unwrap(envelope.wrapped, context)


def _context(path: str, version: int) -> bytes:
    return f"{path}\0{version}".encode()


def _open(aead: AESGCM, boxed: bytes, aad: bytes) -> Secret:
    try:
        return Secret(aead.decrypt(boxed[:IV_BYTES], boxed[IV_BYTES:], aad))
    except (InvalidTag, ValueError) as exc:
        raise Untrusted("envelope", "a stored secret was changed, moved or sealed with another key") from exc
