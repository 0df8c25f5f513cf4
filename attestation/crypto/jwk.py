"""The TEE's public key as the KBS protocol sends it (`tee-pubkey`): exactly the known members, canonical, checked.

The hash that the CPU report signs covers these members re-serialised, so an unknown member, a short coordinate or
a second spelling of one value would let two parties hash different keys: all are refused.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric import ec, rsa

from attestation.crypto.b64 import b64url, parse_b64url
from attestation.errors import Malformed

ECDH_ES_A256KW = "ECDH-ES+A256KW"
RSA_OAEP_256 = "RSA-OAEP-256"
RSA_MIN_BITS, RSA_MAX_BITS, RSA_EXPONENT = 2048, 4096, 65537  # keybroker.md 1.7
CURVES: Mapping[str, tuple[type[ec.EllipticCurve], int]] = {"P-256": (ec.SECP256R1, 32), "P-521": (ec.SECP521R1, 66)}
_CURVE_NAMES = {"secp256r1": "P-256", "secp521r1": "P-521"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EcTeeKey:
    """EC public key on P-256 or P-521 for ECDH-ES+A256KW. `x` and `y` are its coordinates as they travel."""

    crv: str
    x: str
    y: str
    public: ec.EllipticCurvePublicKey

    @property
    def jwk(self) -> dict[str, str]:
        """The members that travel and are hashed."""
        return {"kty": "EC", "crv": self.crv, "alg": ECDH_ES_A256KW, "x": self.x, "y": self.y}


@dataclass(frozen=True, slots=True, kw_only=True)
class RsaTeeKey:
    """RSA public key for RSA-OAEP-256."""

    public: rsa.RSAPublicKey

    @property
    def jwk(self) -> dict[str, str]:
        """The members that travel and are hashed."""
        numbers = self.public.public_numbers()
        return {"kty": "RSA", "alg": RSA_OAEP_256, "n": _uint(numbers.n), "e": _uint(numbers.e)}


TeePublicKey = EcTeeKey | RsaTeeKey


def ec_coordinates(public: ec.EllipticCurvePublicKey) -> dict[str, str]:
    """`x` and `y` at the full width of the curve: leading zeros stay (RFC 7518 section 6.2.1.2)."""
    size, numbers = CURVES[_CURVE_NAMES[public.curve.name]][1], public.public_numbers()
    return {"x": b64url(numbers.x.to_bytes(size, "big")), "y": b64url(numbers.y.to_bytes(size, "big"))}


def tee_key_of(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> TeePublicKey:
    """The JWK view of a key that this process holds; the same limits as for a received one. Raises Malformed."""
    if isinstance(public, rsa.RSAPublicKey):
        return parse_tee_key(RsaTeeKey(public=public).jwk)
    if public.curve.name not in _CURVE_NAMES:
        raise Malformed("tee-key-curve", "unknown curve", expected="P-256 or P-521", got=public.curve.name)
    return EcTeeKey(crv=_CURVE_NAMES[public.curve.name], public=public, **ec_coordinates(public))


def parse_tee_key(members: object, *, where: str = "tee-pubkey") -> TeePublicKey:
    """`tee-pubkey` of `POST /kbs/v0/attest` to a usable key, or Malformed (keybroker.md 1.7)."""
    if not isinstance(members, Mapping):
        raise Malformed("tee-key", "not a JWK", where=where, expected="object")
    kty = members.get("kty")
    if kty == "EC":
        return _parse_ec(members, where)
    if kty == "RSA":
        return _parse_rsa(members, where)
    raise Malformed("tee-key-type", "unknown key type", where=f"{where}.kty", expected="EC|RSA", got=repr(kty)[:40])


def thumbprint(jwk: Mapping[str, str]) -> str:
    """RFC 7638 SHA-256 thumbprint, base64url: required members in lexicographic order, nothing else."""
    names = ("crv", "kty", "x", "y") if jwk["kty"] == "EC" else ("e", "kty", "n")
    canonical = ",".join(f'"{name}":"{jwk[name]}"' for name in names)
    return b64url(hashlib.sha256(b"{" + canonical.encode("ascii") + b"}").digest())


def _parse_ec(members: Mapping[object, object], where: str) -> EcTeeKey:
    _exact(members, {"kty", "crv", "alg", "x", "y"}, where)
    crv = members["crv"]
    if not isinstance(crv, str) or crv not in CURVES:
        raise Malformed(
            "tee-key-curve", "unknown curve", where=f"{where}.crv", expected="|".join(CURVES), got=repr(crv)[:40]
        )
    _algorithm(members["alg"], ECDH_ES_A256KW, where)
    x, y = members["x"], members["y"]
    if isinstance(x, str) and isinstance(y, str):
        return _ec_key(crv, x, y, where)
    raise Malformed("base64url", "not canonical base64url", where=where, expected="base64url without padding")


@lru_cache(maxsize=1024)
def _ec_key(crv: str, x: str, y: str, where: str) -> EcTeeKey:
    """A public key; a release seals to the one that was attested a moment before."""
    curve, size = CURVES[crv]
    raw = [parse_b64url(text, where=f"{where}.{name}") for name, text in (("x", x), ("y", y))]
    if any(len(part) != size for part in raw):
        raise Malformed(
            "tee-key-coordinate",
            "wrong coordinate length",
            where=where,
            expected=f"{size} bytes each",
            got=",".join(str(len(part)) for part in raw),
        )
    point = ec.EllipticCurvePublicNumbers(int.from_bytes(raw[0], "big"), int.from_bytes(raw[1], "big"), curve())
    try:
        return EcTeeKey(crv=crv, public=point.public_key(), x=x, y=y)
    except ValueError as exc:
        raise Malformed("tee-key-point", "the point is not on the curve", where=where, expected=crv) from exc


def _parse_rsa(members: Mapping[object, object], where: str) -> RsaTeeKey:
    _exact(members, {"kty", "alg", "n", "e"}, where)
    _algorithm(members["alg"], RSA_OAEP_256, where)
    n, e = (_parse_uint(members[name], f"{where}.{name}") for name in ("n", "e"))
    if e != RSA_EXPONENT:
        raise Malformed(
            "tee-key-exponent", "unsupported exponent", where=f"{where}.e", expected=RSA_EXPONENT, got=e.bit_length()
        )
    if not RSA_MIN_BITS <= n.bit_length() <= RSA_MAX_BITS or not n & 1:
        raise Malformed(
            "tee-key-modulus",
            "unsupported modulus",
            where=f"{where}.n",
            expected=f"odd, {RSA_MIN_BITS} to {RSA_MAX_BITS} bits",
            got=n.bit_length(),
        )
    return RsaTeeKey(public=rsa.RSAPublicNumbers(e, n).public_key())


def _exact(members: Mapping[object, object], names: set[str], where: str) -> None:
    if set(members) != names:
        raise Malformed(
            "tee-key-members",
            "exactly the known members are hashed",
            where=where,
            expected=",".join(sorted(names)),
            got=",".join(sorted(repr(name)[:40] for name in members))[:200],
        )


def _algorithm(alg: object, want: str, where: str) -> None:
    # RSA1_5 ends here too: Bleichenbacher's padding has no place in a key release (RFC 8725 section 3.2).
    if alg != want:
        raise Malformed("tee-key-alg", "unsupported algorithm", where=f"{where}.alg", expected=want, got=repr(alg)[:40])


def _uint(value: int) -> str:
    return b64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _parse_uint(text: object, where: str) -> int:
    raw = parse_b64url(text, where=where)
    if not raw or raw[0] == 0 or len(raw) > RSA_MAX_BITS // 8:
        raise Malformed("tee-key-integer", "not a canonical Base64urlUInt", where=where, expected="no leading zero")
    return int.from_bytes(raw, "big")
