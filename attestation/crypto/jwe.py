"""JWE for one TEE key, byte-exact as the KBS guest reads it (RFC 7516 flattened JSON, keybroker.md 1.8).

The Rust client parses the protected header and *re-serialises* it to compute the additional data, so the header must
be the very bytes that serde writes: compact, `alg`, `enc`, then `epk` with `crv,kty,x,y`. JOSE libraries put `epk`
elsewhere, which is why these lines exist. Randomness is an argument; 32 bytes of CEK come first, then the ephemeral.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from attestation.crypto.b64 import b64url, parse_b64url
from attestation.crypto.jwk import (
    CURVES,
    ECDH_ES_A256KW,
    RSA_MAX_BITS,
    RSA_OAEP_256,
    EcTeeKey,
    TeePublicKey,
    ec_coordinates,
    tee_key_of,
)
from attestation.errors import Malformed, Untrusted
from attestation.values import Secret

RandomBytes = Callable[[int], bytes]
TeePrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

CEK_BYTES, IV_BYTES, TAG_BYTES = 32, 12, 16  # AES-256-GCM as `A256GCM` (RFC 7518 section 5.3)
_WRAPPED_CEK_BYTES = CEK_BYTES + 8  # AES key wrap adds one block (RFC 3394)
_EXTRA_SCALAR_BYTES = 8  # FIPS 186-5 A.2.1: 64 extra bits make the reduction bias negligible
_MAX_HEADER_CHARS = 1024  # a P-521 header is 402 characters
_MEMBERS = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
_ORDER = {
    "P-256": 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551,
    "P-521": int(
        "01FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFA"
        "51868783BF2F966B7FCC0148F709A5D03BB5C9B8899C47AEBB6FB71E91386409",
        16,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A flattened JWE. `to_json` has exactly the five members the client reads: an `aad` would break it."""

    protected: str
    encrypted_key: str
    iv: str
    ciphertext: str
    tag: str

    def to_json(self) -> dict[str, str]:
        """The wire object, members in the order upstream writes them."""
        return {name: getattr(self, name) for name in _MEMBERS}


def seal(plaintext: Secret, to: TeePublicKey, *, random: RandomBytes) -> Sealed:
    """Encrypt to the attested TEE key."""
    cek = random(CEK_BYTES)
    if isinstance(to, EcTeeKey):
        ephemeral = _ephemeral(to.crv, random)
        epk = {"crv": to.crv, "kty": "EC", **ec_coordinates(ephemeral.public_key())}
        header: dict[str, object] = {"alg": ECDH_ES_A256KW, "enc": "A256GCM", "epk": epk}
        encrypted_key = keywrap.aes_key_wrap(_concat_kdf(ephemeral.exchange(ec.ECDH(), to.public)), cek)
    else:
        header = {"alg": RSA_OAEP_256, "enc": "A256GCM"}
        encrypted_key = to.public.encrypt(cek, _OAEP)
    protected = b64url(json.dumps(header, separators=(",", ":")).encode("ascii"))
    iv = random(IV_BYTES)
    boxed = AESGCM(cek).encrypt(iv, plaintext.expose(), protected.encode("ascii"))
    return Sealed(
        protected=protected,
        encrypted_key=b64url(encrypted_key),
        iv=b64url(iv),
        ciphertext=b64url(boxed[:-TAG_BYTES]),
        tag=b64url(boxed[-TAG_BYTES:]),
    )


def parse_sealed(body: object) -> Sealed:
    """The JSON body of a resource response: exactly the five members, or Malformed."""
    if not isinstance(body, Mapping) or set(body) != set(_MEMBERS):
        raise Malformed("jwe-members", "not a flattened JWE", where="jwe", expected=",".join(_MEMBERS))
    if not all(isinstance(body[name], str) for name in _MEMBERS) or len(body["protected"]) > _MAX_HEADER_CHARS:
        raise Malformed("jwe-members", "members are bounded strings", where="jwe", expected="five strings")
    return Sealed(**{name: body[name] for name in _MEMBERS})


def unseal(sealed: Sealed, key: TeePrivateKey) -> Secret:
    """Decrypt with the TEE's private key. Malformed for a wrong shape, Untrusted where a tag does not verify."""
    header = _parse_header(sealed.protected)
    iv = _exactly(sealed.iv, IV_BYTES, "jwe.iv")
    tag = _exactly(sealed.tag, TAG_BYTES, "jwe.tag")
    ciphertext = parse_b64url(sealed.ciphertext, where="jwe.ciphertext")
    cek = _rsa_cek(sealed, header, key) if isinstance(key, rsa.RSAPrivateKey) else _ecdh_cek(sealed, header, key)
    try:
        return Secret(AESGCM(cek).decrypt(iv, ciphertext + tag, sealed.protected.encode("ascii")))
    except InvalidTag as exc:
        raise Untrusted("jwe-tag", "the JWE was not sealed as it stands", where="jwe.tag") from exc


_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def _ephemeral(crv: str, random: RandomBytes) -> ec.EllipticCurvePrivateKey:
    curve, size = CURVES[crv]
    scalar = int.from_bytes(random(size + _EXTRA_SCALAR_BYTES), "big") % (_ORDER[crv] - 1) + 1
    return ec.derive_private_key(scalar, curve())


def _concat_kdf(z: bytes) -> bytes:
    """NIST SP 800-56A single-step KDF with RFC 7518 section 4.6.2 FixedInfo; one block, empty apu and apv.

    `z` is the x coordinate at full width: 32 or 66 bytes, which is what `exchange` returns.
    """
    alg = ECDH_ES_A256KW.encode("ascii")
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"\0\0\0\1" + z + len(alg).to_bytes(4, "big") + alg + bytes(8) + (256).to_bytes(4, "big"))
    return digest.finalize()


def _parse_header(protected: str) -> Mapping[str, object]:
    try:
        header = json.loads(parse_b64url(protected, where="jwe.protected"))
    except (ValueError, RecursionError) as exc:
        raise Malformed("jwe-header", "the protected header is not JSON", where="jwe.protected") from exc
    if not isinstance(header, dict) or header.get("enc") != "A256GCM":
        raise Malformed("jwe-header", "unsupported content encryption", where="jwe.protected.enc", expected="A256GCM")
    return header


def _ecdh_cek(sealed: Sealed, header: Mapping[str, object], key: ec.EllipticCurvePrivateKey) -> bytes:
    _only(header, {"alg", "enc", "epk"}, ECDH_ES_A256KW)
    epk = header["epk"]
    if not isinstance(epk, dict) or set(epk) != {"crv", "kty", "x", "y"} or epk["kty"] != "EC":
        raise Malformed("jwe-epk", "no ephemeral key", where="jwe.protected.epk", expected="crv,kty,x,y")
    x, y = (int.from_bytes(parse_b64url(epk[name], where=f"jwe.protected.epk.{name}"), "big") for name in ("x", "y"))
    own = tee_key_of(key.public_key())
    assert isinstance(own, EcTeeKey)
    if epk["crv"] != own.crv:
        raise Malformed("jwe-epk", "ephemeral key of another curve", expected=own.crv, got=repr(epk["crv"])[:40])
    try:
        public = ec.EllipticCurvePublicNumbers(x, y, key.curve).public_key()
    except ValueError as exc:
        raise Malformed("jwe-epk", "ephemeral key is not on the curve", where="jwe.protected.epk") from exc
    wrapped = _exactly(sealed.encrypted_key, _WRAPPED_CEK_BYTES, "jwe.encrypted_key")
    try:
        return keywrap.aes_key_unwrap(_concat_kdf(key.exchange(ec.ECDH(), public)), wrapped)
    except keywrap.InvalidUnwrap as exc:
        raise Untrusted("jwe-key", "the JWE was sealed to another key", where="jwe.encrypted_key") from exc


def _rsa_cek(sealed: Sealed, header: Mapping[str, object], key: rsa.RSAPrivateKey) -> bytes:
    _only(header, {"alg", "enc"}, RSA_OAEP_256)
    wrapped = parse_b64url(sealed.encrypted_key, where="jwe.encrypted_key")
    if len(wrapped) > RSA_MAX_BITS // 8:
        raise Malformed("jwe-key", "encrypted key is too long", where="jwe.encrypted_key", expected=RSA_MAX_BITS // 8)
    try:
        cek = key.decrypt(wrapped, _OAEP)
    except ValueError as exc:
        raise Untrusted("jwe-key", "the JWE was sealed to another key", where="jwe.encrypted_key") from exc
    if len(cek) != CEK_BYTES:
        raise Untrusted("jwe-key", "wrong content key length", where="jwe.encrypted_key", expected=CEK_BYTES)
    return cek


def _only(header: Mapping[str, object], names: set[str], alg: str) -> None:
    if set(header) != names or header["alg"] != alg:
        raise Malformed("jwe-header", "not sealed for this kind of key", where="jwe.protected", expected=alg)


def _exactly(text: str, size: int, where: str) -> bytes:
    raw = parse_b64url(text, where=where)
    if len(raw) != size:
        raise Malformed("jwe-length", "wrong length", where=where, expected=f"{size} bytes", got=len(raw))
    return raw
