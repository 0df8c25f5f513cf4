"""NVIDIA's trust anchors, pinned by public key. The root certificates themselves come with the evidence.

Keys are SHA-256 over the DER SubjectPublicKeyInfo, certificates SHA-256 over the DER certificate. Taken from the roots
inside the PyPI package `nv-local-gpu-verifier` 2.7.3 (`verifier/certs/`), equal in confidential-containers/trustee;
certificate fingerprints also in gpu-attestation.md 2.1.
"""

import hashlib
from dataclasses import dataclass
from typing import ClassVar, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attestation.errors import Malformed, Misconfigured
from attestation.verify.unreadable import UNREADABLE

# CN=NVIDIA Device Identity CA, O=NVIDIA; 2021-11-05 .. 9999-12-31
_DEVICE_KEY = bytes.fromhex("a90c4eb5acfd3e3d03a25db6a26b84f720ad0503196c627c21ddd48dd85b06a4")
_DEVICE_CERTIFICATE = bytes.fromhex("102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48")
# CN=NVIDIA CoRIM signing Root CA, O=NVIDIA, C=US; 2023-03-16 .. 2053-03-08
_RIM_KEY = bytes.fromhex("dec1dc316477aa851eebdf51327ae9f864bc8d89254657ed1e7eb9168af1e1a3")
_RIM_CERTIFICATE = bytes.fromhex("12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1")
# CN=NVIDIA CoRIM L1 Root CA Debug Only: signs documents for engineering hardware; named here only to be refused
DEBUG_ROOTS = frozenset({bytes.fromhex("80addca88e061ffe9a60729791ee77a9abdc22c15374b3984e4a5fd28510ddf5")})


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """Trusted public keys. `certificates` are roots known byte for byte: they need no signature of their own, while
    any other certificate for a pinned key must carry one.
    """

    keys: frozenset[bytes]
    certificates: frozenset[bytes] = frozenset()

    def __post_init__(self) -> None:
        if not self.keys:
            raise Misconfigured("no-roots", "a set of trusted roots is empty", expected="at least one pin")
        if self.keys & DEBUG_ROOTS:
            raise Misconfigured("debug-root", "a debug root can never be trusted")


@dataclass(frozen=True, slots=True, kw_only=True)
class NvTrust:
    """Anchors of devices and of reference documents. `simulated` marks a test PKI: every result then says so."""

    device_roots: Anchors
    rim_roots: Anchors
    simulated: bool = False

    SIMULATED_FILES: ClassVar[tuple[str, str]] = ("nvidia-device-root.pem", "nvidia-rim-root.pem")

    @classmethod
    def production(cls) -> Self:
        """NVIDIA's production roots."""
        return cls(
            device_roots=Anchors(keys=frozenset({_DEVICE_KEY}), certificates=frozenset({_DEVICE_CERTIFICATE})),
            rim_roots=Anchors(keys=frozenset({_RIM_KEY}), certificates=frozenset({_RIM_CERTIFICATE})),
        )

    @classmethod
    def simulated_from(cls, device_pem: bytes, rim_pem: bytes) -> Self:
        """Roots of a test PKI, from two PEM certificates. Raises Malformed."""
        return cls(device_roots=_anchor(device_pem), rim_roots=_anchor(rim_pem), simulated=True)


def _anchor(pem: bytes) -> Anchors:
    """The one certificate in `pem`."""
    try:
        root = x509.load_pem_x509_certificate(pem)
        key = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except UNREADABLE as exc:
        raise Malformed("root-pem", "not one PEM certificate", where="simulated root", got=str(exc)[:80]) from exc
    certificate = hashlib.sha256(root.public_bytes(Encoding.DER)).digest()
    return Anchors(keys=frozenset({hashlib.sha256(key).digest()}), certificates=frozenset({certificate}))
