"""The one way signatures over evidence are checked: raw r||s, ECDSA P-384 with SHA-384 (gpu-attestation.md 1.5)."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature

from attestation.errors import Untrusted

_ORDER = int(  # SEC 2 section 2.5.1: n of secp384r1
    "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973", 16
)
_ALGORITHM = ec.ECDSA(Prehashed(hashes.SHA384()))


def verify_raw_p384(key: ec.EllipticCurvePublicKey, signature: bytes, digest: bytes, *, code: str, where: str) -> None:
    """Check 96 bytes r then s, big-endian, over a SHA-384 digest. Raises Untrusted `code`.

    High s is accepted: genuine devices produce it, and nothing here identifies evidence by its signature.
    """
    r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    if not (0 < r < _ORDER and 0 < s < _ORDER):
        raise Untrusted(f"{code}-range", "r or s out of range", where=where, expected="1 to n-1")
    try:
        key.verify(encode_dss_signature(r, s), digest, _ALGORITHM)
    except InvalidSignature as exc:
        raise Untrusted(code, "signature does not verify", where=where) from exc
