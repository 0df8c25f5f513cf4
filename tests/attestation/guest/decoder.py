"""A second decoder of the model format, from docs/model-format.md alone: it imports nothing of ours.

HKDF and HMAC by hashlib, AES-GCM by `Cipher` in streaming form: other code paths than the product's.
"""

import hashlib
import hmac
import json
from pathlib import Path

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM


class Refused(Exception):
    """Not an authentic file of this format."""


def hkdf(key: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 with SHA-256."""
    prk = hmac.digest(salt, key, "sha256")
    okm = block = b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(prk, block + info + bytes([counter]), "sha256")
        okm += block
    return okm[:length]


def decode_file(stored: bytes, model_key: bytes, kind: int) -> tuple[bytes, bytes, bytes]:
    """Plaintext, salt and digest of one stored file."""
    head = stored[:64]
    if len(stored) < 96 or head[:8] != b"KATAGPU\x01" or head[8] != kind or any(head[10:16]) or any(head[24:32]):
        raise Refused("header")
    if not 16 <= head[9] <= 22 or not any(head[32:]):
        raise Refused("header values")
    chunk, size, salt = 1 << head[9], int.from_bytes(head[16:24], "big"), head[32:]
    count = max(1, -(-size // chunk))
    okm = hkdf(model_key, salt, b"kata-gpu model v1\0" + head[:32], 71)
    if not hmac.compare_digest(hmac.digest(okm[32:64], head, "sha256"), stored[64:96]):
        raise Refused("header tag")
    if len(stored) != 96 + size + 16 * count:
        raise Refused("length")
    plain, tags, at = [], b"", 96
    for index in range(count):
        length = min(chunk, size - index * chunk)
        sealed, tag = stored[at : at + length], stored[at + length : at + length + 16]
        nonce = okm[64:71] + index.to_bytes(4, "big") + bytes([index == count - 1])
        opener = Cipher(AES(okm[:32]), GCM(nonce, tag)).decryptor()
        opener.authenticate_additional_data(head)
        text = opener.update(sealed)
        try:
            opener.finalize()
        except Exception as exc:
            raise Refused(f"chunk {index}") from exc
        plain.append(text)
        tags += tag
        at += length + 16
    return b"".join(plain), salt, hashlib.sha256(stored[:96] + tags).digest()


def decode_model(folder: Path, model_key: bytes) -> dict[str, bytes]:
    """Every file of a model by name."""
    manifest = json.loads(decode_file((folder / "manifest.kgm").read_bytes(), model_key, 1)[0])
    if manifest["format"] != "kata-gpu-model" or manifest["version"] != 1:
        raise Refused("manifest")
    files = {}
    for index, entry in enumerate(manifest["files"]):
        plain, salt, digest = decode_file((folder / f"{index:06d}.kgf").read_bytes(), model_key, 2)
        if salt.hex() != entry["salt"] or len(plain) != entry["size"] or digest.hex() != entry["digest"]:
            raise Refused(f"{entry['name']}: not the file of this manifest")
        if entry["sha256"] is not None and hashlib.sha256(plain).hexdigest() != entry["sha256"]:
            raise Refused(f"{entry['name']}: digest")
        files[entry["name"]] = plain
    return files
