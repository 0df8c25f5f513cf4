"""Signing keys of the broker, made once, sealed in the store and shared by all replicas: a restart changes nothing."""

import contextlib
import secrets
from collections import Counter
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from attestation.errors import Misconfigured
from attestation.sources.db import Database
from attestation.sources.envelope import Envelope, Vault
from attestation.sources.schema import ms, signing_keys
from attestation.values import Secret

TOKEN, ADMIN, AUDIT, ATTESTATION, CHALLENGE = "token", "admin", "audit", "attestation", "challenge"
MAC_KEY_BYTES = 32  # HMAC-SHA256 (RFC 2104 3)


class SigningKeys:
    """PEM keys by purpose, newest first. The first use of a purpose makes its key."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._db, self._vault = database, vault

    def load(self, purpose: str, now: datetime) -> tuple[bytes, ...]:
        """Every version, newest first, at least one: PKCS#8 PEM, and raw bytes of keys that authenticate."""
        found = self._read(purpose)
        if not found:
            with contextlib.suppress(IntegrityError):  # another replica made it at this moment
                self.rotate(purpose, now)
            found = self._read(purpose)
        return found

    def audit_key(self, now: datetime) -> Ed25519PrivateKey:
        """The key of the audit log. Raises Misconfigured."""
        key = load_pem_private_key(self.load(AUDIT, now)[0], None)
        if not isinstance(key, Ed25519PrivateKey):
            raise Misconfigured("audit-key", "the audit key has another type", expected="Ed25519")
        return key

    def rotate(self, purpose: str, now: datetime) -> int:
        """Add a version; the former ones still verify."""
        key = _generate(purpose)
        with self._db.write(durable=True) as connection:
            mine = signing_keys.c.purpose == purpose
            versions = connection.execute(select(signing_keys.c.version).where(mine)).scalars().all()
            version = max(versions, default=0) + 1
            envelope = self._vault.seal(key, path=_path(purpose), version=version)
            connection.execute(
                insert(signing_keys),
                {
                    "purpose": purpose,
                    "version": version,
                    "root": envelope.root,
                    "wrapped": envelope.wrapped,
                    "sealed": envelope.sealed,
                    "created": ms(now),
                },
            )
        return version

    def rewrap(self) -> int:
        """Wrap every signing key with the current root key; returns how many."""
        with self._db.write(durable=True) as connection:
            rows = connection.execute(select(signing_keys).with_for_update()).all()
            for row in rows:
                old = Envelope(root=row.root, wrapped=row.wrapped, sealed=row.sealed)
                new = self._vault.rewrap(old, path=_path(row.purpose), version=row.version)
                same = (signing_keys.c.purpose == row.purpose) & (signing_keys.c.version == row.version)
                connection.execute(update(signing_keys).where(same).values(root=new.root, wrapped=new.wrapped))
        return len(rows)

    def roots(self) -> dict[str, int]:
        """How many signing keys each root key wraps."""
        with self._db.read() as connection:
            return dict(Counter(connection.execute(select(signing_keys.c.root)).scalars()))

    def _read(self, purpose: str) -> tuple[bytes, ...]:
        query = select(signing_keys).where(signing_keys.c.purpose == purpose).order_by(signing_keys.c.version.desc())
        with self._db.read() as connection:
            rows = connection.execute(query).all()
        return tuple(
            self._vault.open(
                Envelope(root=row.root, wrapped=row.wrapped, sealed=row.sealed),
                path=_path(purpose),
                version=row.version,
            ).expose()
            for row in rows
        )


def _generate(purpose: str) -> Secret:
    if purpose in (ATTESTATION, CHALLENGE):
        return Secret(secrets.token_bytes(MAC_KEY_BYTES))
    key = Ed25519PrivateKey.generate() if purpose == AUDIT else ec.generate_private_key(ec.SECP256R1())
    return Secret(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _path(purpose: str) -> str:
    return f"signing-key/{purpose}"
