"""How a nonce, a TEE key, device evidence and a CPU report are tied together: the two binding profiles, as pure hashes.

`trustee-rcar-0.4` is the Confidential Containers KBS protocol, byte for byte (keybroker.md 1.6): digests over RFC 8785
canonical JSON. `cgpu-v1` is ours (tee.md 4.6): domain separated, over raw bytes, with device count and classes.
Guest and verifier both call these functions, so the two sides cannot drift apart.
"""

import hashlib
import json
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from attestation.errors import Malformed
from attestation.values import NONCE_BYTES, DeviceKind, Nonce

REPORT_DATA_BYTES = 64  # REPORT_DATA of SNP and TDX alike
DEFAULT_HASH = "sha384"  # KBS protocol 0.4.0, when extra-params negotiate nothing
HASHES = ("sha256", "sha384", "sha512")
JWK_MEMBERS: Mapping[
    str, frozenset[str]
] = {  # keybroker.md 1.7; any other member would change the hash on one side only
    "EC": frozenset({"kty", "alg", "crv", "x", "y"}),
    "RSA": frozenset({"kty", "alg", "e", "n"}),
    "AKP": frozenset({"kty", "alg", "pub"}),
}
MAX_DEVICES = 64  # far above the 8 GPUs and 4 switches of one chassis; bounds the count field
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)
_CONTROLS = bytes(range(0x20))
_CLASS_OCTET = {DeviceKind.GPU: b"\x01", DeviceKind.NVSWITCH: b"\x02"}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBytes:
    """Evidence of one device as transported: SPDM request and response, and the certificate chain, both decoded."""

    kind: DeviceKind
    report: bytes
    chain: bytes


def require_jwk(jwk: Mapping[str, str]) -> dict[str, str]:
    """The key as a plain mapping, refused unless its members are exactly those that both sides hash."""
    members = JWK_MEMBERS.get(jwk.get("kty", ""))
    if members is None or set(jwk) != members or not all(isinstance(v, str) for v in jwk.values()):
        raise Malformed(
            "tee-pubkey-members",
            "TEE public key has missing or unknown members",
            where="tee-pubkey",
            expected="kty, alg and the key's own members, all text",
            got=sorted(jwk),
        )
    return dict(jwk)


def _canonical_members(nonce_text: str, tee_jwk: Mapping[str, str]) -> bytes:
    """RFC 8785 form of {"nonce", "tee-pubkey"}. Keys are ASCII and values are texts, for which the library's encoder
    gives that very form; tests hold it, and `_canonical_text`, against an RFC 8785 library.
    """
    return _encoded(_CANONICAL.encode({"nonce": nonce_text, "tee-pubkey": require_jwk(tee_jwk)}))


def _primary(members: bytes, additional_evidence: str) -> tuple[bytes, ...]:
    """RFC 8785 form with "additional-evidence", which sorts before the other members, in pieces."""
    return b'{"additional-evidence":"', _canonical_text(additional_evidence), b'",', members[1:]


def _canonical_text(text: str) -> bytes:
    """RFC 8785 form of a text, between its quotes. Where nothing is a control, quotes and backslashes are escaped."""
    raw = _encoded(text)
    if len(raw.translate(None, _CONTROLS)) != len(raw):
        return _CANONICAL.encode(text).encode()[1:-1]
    return raw.replace(b"\\", b"\\\\").replace(b'"', b'\\"')


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise Malformed("binding-jcs", "runtime data is not Unicode text", got=str(exc)[:80]) from exc


def _digest(hash_name: str, *canonical: bytes) -> bytes:
    if hash_name not in HASHES:
        raise Malformed("binding-hash", "unknown hash", expected="|".join(HASHES), got=repr(hash_name[:40]))
    digest = hashlib.new(hash_name)
    for piece in canonical:
        digest.update(piece)
    return digest.digest()


def trustee_device_digest(nonce_text: str, tee_jwk: Mapping[str, str], hash_name: str = DEFAULT_HASH) -> bytes:
    """H(JCS({"nonce", "tee-pubkey"})): what every additional device must answer."""
    return _digest(hash_name, _canonical_members(nonce_text, tee_jwk))


def trustee_device_nonce(nonce_text: str, tee_jwk: Mapping[str, str], hash_name: str = DEFAULT_HASH) -> Nonce:
    """The SPDM nonce of every device: the first 32 bytes of the device digest."""
    return Nonce(trustee_device_digest(nonce_text, tee_jwk, hash_name)[:NONCE_BYTES])


def trustee_primary_digest(
    nonce_text: str, tee_jwk: Mapping[str, str], additional_evidence: str, hash_name: str = DEFAULT_HASH
) -> bytes:
    """H(JCS({"additional-evidence", "nonce", "tee-pubkey"})); the evidence string exactly as sent, "" when none."""
    return _digest(hash_name, *_primary(_canonical_members(nonce_text, tee_jwk), additional_evidence))


def trustee_report_data(
    nonce_text: str, tee_jwk: Mapping[str, str], additional_evidence: str, hash_name: str = DEFAULT_HASH
) -> bytes:
    """The primary digest, zero padded to the 64 bytes of REPORT_DATA."""
    return trustee_primary_digest(nonce_text, tee_jwk, additional_evidence, hash_name).ljust(REPORT_DATA_BYTES, b"\0")


def trustee_binding(
    nonce_text: str, tee_jwk: Mapping[str, str], additional_evidence: str, hash_name: str = DEFAULT_HASH
) -> tuple[Nonce, bytes]:
    """`trustee_device_nonce` and `trustee_report_data` at once, for who needs both."""
    members = _canonical_members(nonce_text, tee_jwk)
    return (
        Nonce(_digest(hash_name, members)[:NONCE_BYTES]),
        _digest(hash_name, *_primary(members, additional_evidence)).ljust(REPORT_DATA_BYTES, b"\0"),
    )


def nonce_bytes(nonce_text: str) -> Nonce:
    """The 32 bytes behind the base64 text of a challenge; the native profile hashes bytes, not text.

    Raises Malformed.
    """
    try:
        return Nonce(b64decode(nonce_text, validate=True))
    except ValueError as exc:
        raise Malformed("nonce-base64", "nonce is not base64", expected="32 bytes", got=repr(nonce_text[:80])) from exc


def tee_spki(tee_jwk: Mapping[str, str]) -> bytes:
    """DER SubjectPublicKeyInfo of an EC or RSA TEE key: what the native profile commits to."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from attestation.crypto.jwk import parse_tee_key

    return parse_tee_key(tee_jwk).public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def cgpu_device_nonce(nonce_text: str, spki: bytes) -> Nonce:
    """SHA-256("cgpu/v1/gpu-nonce" 00 nonce SHA-384(spki)): one SPDM nonce for all devices of the session."""
    return Nonce(hashlib.sha256(b"cgpu/v1/gpu-nonce\0" + nonce_bytes(nonce_text).raw + _sha384(spki)).digest())


def cgpu_device_digest(device: DeviceBytes) -> bytes:
    """SHA-384("cgpu/v1/device" 00 class u32(report) report u32(chain) chain); class 01 is GPU, 02 NVSwitch."""
    return _sha384(
        b"cgpu/v1/device\0"
        + _CLASS_OCTET[device.kind]
        + _u32(len(device.report))
        + device.report
        + _u32(len(device.chain))
        + device.chain
    )


def cgpu_report_data(nonce_text: str, spki: bytes, devices: Iterable[DeviceBytes], init_data: bytes | None) -> bytes:
    """SHA-512("cgpu/v1/cpu" 00 nonce SHA-384(spki) u32(count) device digests, sorted SHA-384(init-data or empty)).

    Fills all 64 bytes of REPORT_DATA. Raises Malformed on duplicate devices: two equal entries prove one device.
    """
    digests = sorted(map(cgpu_device_digest, devices))
    if len(digests) > MAX_DEVICES:
        raise Malformed("device-count", "too many devices", expected=f"at most {MAX_DEVICES}", got=len(digests))
    if len(set(digests)) != len(digests):
        raise Malformed("device-duplicate", "the same device evidence is listed twice", expected="distinct devices")
    message = b"cgpu/v1/cpu\0" + nonce_bytes(nonce_text).raw + _sha384(spki) + _u32(len(digests)) + b"".join(digests)
    return hashlib.sha512(message + _sha384(init_data or b"")).digest()


def _sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "big")
