"""Sealed secrets and image-layer keys, as Confidential Containers guests read them (keybroker.md 2.8, 2.10).

Neither is secret to look at: both point to a resource of the key broker, which decides who gets it. Envelope secrets
are left out: the guest asks a KMS to decrypt their key, and the key broker is none.
"""

import json
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.crypto.b64 import b64, b64url, parse_b64
from attestation.errors import Malformed, Untrusted
from attestation.formats.json_strict import parse_json, require_object
from attestation.values import ResourcePath, Secret

VERSION = "0.1.0"
ANNOTATION = "org.opencontainers.image.enc.keys.provider.attestation-agent"
KEK_BYTES, IV_BYTES = 32, 12  # wrap_type A256GCM
MAX_BYTES = 64 << 10  # both travel in Kubernetes objects and image manifests
_PREFIX = "sealed"
_SCALAR_BYTES = 32  # ES256 signatures are r and s of P-256 (RFC 7518 section 3.4)


def seal_resource(resource: ResourcePath, key: ec.EllipticCurvePrivateKey, kid: ResourcePath) -> str:
    """A sealed secret of type `vault`, signed ES256: the guest replaces it by the resource, after attestation.

    `kid` is the resource that holds the public JWK of `key`.
    """
    header = {"alg": "ES256", "kid": uri(kid)}
    payload = {
        "version": VERSION,
        "type": "vault",
        "name": uri(resource),
        "provider": "kbs",
        "provider_settings": {},
        "annotations": {},
    }
    signed = f"{b64url(_dumps(header))}.{b64url(_dumps(payload))}"
    r, s = decode_dss_signature(key.sign(signed.encode("ascii"), ec.ECDSA(hashes.SHA256())))
    signature = r.to_bytes(_SCALAR_BYTES, "big") + s.to_bytes(_SCALAR_BYTES, "big")
    return f"{_PREFIX}.{signed}.{b64url(signature)}"


def wrap_layer_key(options: bytes, *, kek: Secret, path: ResourcePath, iv: bytes) -> str:
    """Value of the layer annotation: ocicrypt's options (which hold the layer key) under the broker's key `path`.

    Annotation packet version 0.1.0; `iv` is random and never used twice with one key. Raises Malformed.
    """
    _require_kek(kek)
    if len(iv) != IV_BYTES or not 0 < len(options) <= MAX_BYTES:
        raise Malformed("layer-key", "impossible options or iv", expected=f"1 to {MAX_BYTES} bytes, iv {IV_BYTES}")
    packet = {
        "version": VERSION,
        "kid": uri(path),
        "wrapped_data": b64(AESGCM(kek.expose()).encrypt(iv, options, None)),
        "provider": "kbs",
        "iv": b64(iv),
        "wrap_type": "A256GCM",
        "provider_settings": {},
        "annotations": {},
    }
    return b64(_dumps(packet))


def unwrap_layer_key(annotation: str, *, kek: Secret) -> bytes:
    """Inverse of `wrap_layer_key`, as the guest does it. Raises Malformed or Untrusted."""
    _require_kek(kek)
    packet = require_object(_json(parse_b64(annotation, where="annotation")), "annotation")
    if packet.get("wrap_type") != "A256GCM":
        raise Malformed("layer-key", "unknown wrapping", where="annotation.wrap_type", expected="A256GCM")
    iv = parse_b64(packet.get("iv"), where="annotation.iv")
    if len(iv) != IV_BYTES:
        raise Malformed("layer-key", "wrong iv length", where="annotation.iv", expected=IV_BYTES, got=len(iv))
    wrapped = parse_b64(packet.get("wrapped_data"), where="annotation.wrapped_data")
    try:
        return AESGCM(kek.expose()).decrypt(iv, wrapped, None)
    except InvalidTag as exc:
        raise Untrusted("layer-key-tag", "another key wrapped this", where="annotation.wrapped_data") from exc


def uri(path: ResourcePath) -> str:
    """As guests name resources."""
    return f"kbs:///{path}"


def _require_kek(kek: Secret) -> None:
    if len(kek) != KEK_BYTES:
        raise Malformed("layer-kek", "wrong key length", expected=f"{KEK_BYTES} bytes", got=len(kek))


def _json(raw: bytes) -> object:
    document: object = parse_json(raw, max_bytes=MAX_BYTES, what="packet")
    return document


def _dumps(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode("ascii")
