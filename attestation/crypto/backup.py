"""The backup file: one header line, then an encrypted stream (`crypto.stream`) under a random key of its own.

The header says how that key is sealed: under a passphrase (scrypt, RFC 7914) or to a recipient with a public key (JWE).
It is bound to the stream: whoever changes it opens nothing. Pure: bytes in, bytes out, randomness an argument.
"""

import json
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from attestation.crypto.b64 import b64url, parse_b64url
from attestation.crypto.jwe import RandomBytes, TeePrivateKey, parse_sealed, seal, unseal
from attestation.crypto.jwk import TeePublicKey
from attestation.crypto.stream import DEFAULT_CHUNK_LOG2, SALT_BYTES, Header, Kind, derive, open_whole, seal_whole
from attestation.errors import Malformed, Untrusted
from attestation.formats.json_strict import parse_json, require_object, require_text
from attestation.values import Secret

FORMAT = "kata-gpu-kbs-backup"
VERSION = 1
KEY_BYTES, IV_BYTES = 32, 12
MAX_HEADER_BYTES = 16 * 1024  # a JWE to an RSA-4096 key is 2 KiB
MIN_PASSPHRASE = 12
SCRYPT_LOG2_N, SCRYPT_R, SCRYPT_P = 17, 8, 1  # 128 MiB: OWASP's recommendation for interactive use, 2023
_INFO = b"kata-gpu-kbs backup v1\0"

Sealer = Callable[[Secret], dict[str, Any]]
Opener = Callable[[dict[str, Any]], Secret]


def to_passphrase(passphrase: Secret, random: RandomBytes) -> Sealer:
    """Seals under a passphrase; Malformed for a short one."""
    if len(passphrase) < MIN_PASSPHRASE:
        raise Malformed("passphrase", "passphrase is too short", expected=f"at least {MIN_PASSPHRASE} characters")

    def sealer(key: Secret) -> dict[str, Any]:
        salt, iv = random(SALT_BYTES), random(IV_BYTES)
        boxed = AESGCM(_stretch(passphrase, salt)).encrypt(iv, key.expose(), _INFO)
        return {"kind": "scrypt", "salt": b64url(salt), "key": b64url(iv + boxed)}

    return sealer


def by_passphrase(passphrase: Secret) -> Opener:
    """Opens what `to_passphrase` sealed."""

    def opener(how: dict[str, Any]) -> Secret:
        if how.get("kind") != "scrypt":
            raise Malformed("backup-key", "not sealed under a passphrase", expected="--recipient-key")
        salt = parse_b64url(require_text(how.get("salt"), "salt"), where="salt")
        boxed = parse_b64url(require_text(how.get("key"), "key"), where="key")
        try:
            return Secret(AESGCM(_stretch(passphrase, salt)).decrypt(boxed[:IV_BYTES], boxed[IV_BYTES:], _INFO))
        except (InvalidTag, ValueError) as exc:
            raise Untrusted("backup-key", "wrong passphrase, or the header was changed") from exc

    return opener


def to_recipient(public: TeePublicKey, random: RandomBytes) -> Sealer:
    """Seals to a public key: the machine that makes backups cannot read them."""
    return lambda key: {"kind": "jwe", "key": seal(key, public, random=random).to_json()}


def by_recipient(private: TeePrivateKey) -> Opener:
    """Opens what `to_recipient` sealed."""

    def opener(how: dict[str, Any]) -> Secret:
        if how.get("kind") != "jwe":
            raise Malformed("backup-key", "not sealed to a recipient", expected="--passphrase-file")
        return unseal(parse_sealed(how.get("key")), private)

    return opener


def seal_backup(content: bytes, sealer: Sealer, random: RandomBytes) -> bytes:
    """The whole file."""
    key = Secret(random(KEY_BYTES))
    line = json.dumps({"format": FORMAT, "version": VERSION, "sealed": sealer(key)}, separators=(",", ":")).encode()
    header = Header(kind=Kind.FILE, chunk_log2=DEFAULT_CHUNK_LOG2, size=len(content), salt=random(SALT_BYTES))
    return line + b"\n" + seal_whole(_stream_key(key, line), header, content)


def open_backup(file: bytes, opener: Opener) -> bytes:
    """The content, authentic and whole. Malformed or Untrusted."""
    line, newline, stream = file[:MAX_HEADER_BYTES].partition(b"\n")
    if not newline or not line.startswith(b"{"):
        raise Malformed("backup", "not a backup", expected="a header line")
    header = require_object(parse_json(line, max_bytes=MAX_HEADER_BYTES, what="backup header"), "backup header")
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise Malformed("backup", "not a backup of this program", expected=f"{FORMAT} {VERSION}")
    key = opener(require_object(header.get("sealed"), "sealed"))
    if len(key) != KEY_BYTES:
        raise Untrusted("backup-key", "the sealed key has another length", got=len(key))
    stream = file[len(line) + 1 :]
    return open_whole(_stream_key(key, line), stream, kind=Kind.FILE)[1]


def _stream_key(key: Secret, line: bytes) -> Secret:
    """Depends on every byte of the header line."""
    return Secret(derive(key, b"\0" * SALT_BYTES, _INFO + line, KEY_BYTES))


def _stretch(passphrase: Secret, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=KEY_BYTES, n=1 << SCRYPT_LOG2_N, r=SCRYPT_R, p=SCRYPT_P).derive(passphrase.expose())
