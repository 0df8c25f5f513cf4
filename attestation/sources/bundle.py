"""Bundle files: keys, building from a store, importing into one."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from attestation.errors import Misconfigured
from attestation.formats.bundle import MAX_BUNDLE_BYTES, render_bundle, render_signed_part
from attestation.formats.collateral import Document, State
from attestation.sources.atomic import read_bounded, write_atomic
from attestation.sources.collateral_store import CollateralStore
from attestation.verify.bundle import P384_SCALAR_BYTES, BundleInfo, load_bundle_key, verify_bundle

BundleSigner = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
MAX_KEY_BYTES = 16 * 1024


def write_key_pair(private: Path, public: Path) -> None:
    """A new Ed25519 pair; the private half readable by its owner alone. Existing files are refused."""
    for path in (private, public):
        if path.exists():
            raise Misconfigured("file-exists", "will not overwrite a key", where=str(path))
    key = ed25519.Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomic(private, pem, mode=0o600)
    write_atomic(public, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def read_signer(path: Path) -> BundleSigner:
    """The private key that signs bundles: Ed25519 or P-384, PEM without a passphrase. Raises Misconfigured."""
    try:
        key = load_pem_private_key(read_bounded(path, MAX_KEY_BYTES), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise Misconfigured("bundle-key", "not a private key", where=str(path), expected="PEM") from exc
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1):
        return key
    raise Misconfigured("bundle-key", "key of the wrong type", where=str(path), expected="Ed25519 or P-384")


def _sign(signed: bytes, key: BundleSigner) -> bytes:
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(signed)
    r, s = decode_dss_signature(key.sign(signed, ec.ECDSA(hashes.SHA384(), deterministic_signing=True)))
    return r.to_bytes(P384_SCALAR_BYTES, "big") + s.to_bytes(P384_SCALAR_BYTES, "big")


def build_bundle(documents: Iterable[Document], key: BundleSigner, *, issued_at: datetime) -> bytes:
    """A signed bundle of the documents that are not retired. Equal input gives equal bytes."""
    kept = [d for d in documents if d.state is not State.RETIRED]
    signed = render_signed_part(kept, issued_at=issued_at)
    return render_bundle(signed, _sign(signed, key), kept)


def import_bundle(
    store: CollateralStore, path: Path, public_key: Path, *, now: datetime, allow_rollback: bool = False
) -> tuple[BundleInfo, int]:
    """Verify a bundle file with the operator's pinned key and make it the one in use; returns it and what is new."""
    in_use = store.bundle_in_use()
    verified = verify_bundle(
        read_bounded(path, MAX_BUNDLE_BYTES),
        load_bundle_key(read_bounded(public_key, MAX_KEY_BYTES)),
        in_use=in_use,
        now=now,
        allow_rollback=allow_rollback,
    )
    return verified.info, store.import_bundle(verified, replacing=in_use)
