"""NVIDIA's trust anchors, pinned by public key. The root certificates themselves come with the evidence.

Pins are SHA-256 over the DER SubjectPublicKeyInfo. Taken from the roots inside the PyPI package
`nv-local-gpu-verifier` 2.7.3 (`verifier/certs/`), equal in confidential-containers/trustee; certificate fingerprints
in gpu-attestation.md 2.1.
"""

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import Malformed, Misconfigured

# CN=NVIDIA Device Identity CA, O=NVIDIA; 2021-11-05 .. 9999-12-31
DEVICE_ROOT = bytes.fromhex("a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4")
# CN=NVIDIA CoRIM signing Root CA, O=NVIDIA, C=US; 2023-03-16 .. 2053-03-08
RIM_ROOT = bytes.fromhex("dec1dc316477aa851eebdf51327ae9f864bc8d89254657ed1e7eb9168af1e1a3")
# CN=NVIDIA CoRIM L1 Root CA Debug Only: signs documents for engineering hardware; named here only to be refused
DEBUG_ROOTS = frozenset({bytes.fromhex("80addca88e061ffe9a60729791ee77a9abdc22c15374b3984e4a5fd28510ddf5")})


@dataclass(frozen=True, slots=True, kw_only=True)
class NvTrust:
    """The two sets of pinned public keys. `simulated` marks anchors of a test PKI: every result then says so."""

    device_roots: frozenset[bytes]
    rim_roots: frozenset[bytes]
    simulated: bool = False

    SIMULATED_FILES: ClassVar[tuple[str, str]] = ("nvidia-device-root.pem", "nvidia-rim-root.pem")

    def __post_init__(self) -> None:
        if not self.device_roots or not self.rim_roots:
            raise Misconfigured("no-roots", "a set of trusted roots is empty", expected="at least one pin each")
        if (self.device_roots | self.rim_roots) & DEBUG_ROOTS:
            raise Misconfigured("debug-root", "a debug root can never be trusted")

    @classmethod
    def production(cls) -> Self:
        """NVIDIA's production roots."""
        return cls(device_roots=frozenset({DEVICE_ROOT}), rim_roots=frozenset({RIM_ROOT}))

    @classmethod
    def simulated_from(cls, device_pem: bytes, rim_pem: bytes) -> Self:
        """Roots of a test PKI, from two PEM certificates. Raises Malformed."""
        return cls(device_roots=frozenset({_pin(device_pem)}), rim_roots=frozenset({_pin(rim_pem)}), simulated=True)


def _pin(pem: bytes) -> bytes:
    """SHA-256 of the public key of the one certificate in `pem`."""
    try:
        key = x509.load_pem_x509_certificate(pem).public_key()
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise Malformed("root-pem", "not one PEM certificate", where="simulated root", got=str(exc)[:80]) from exc
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
