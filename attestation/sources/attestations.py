"""Attestation results by token id: the full claims that policies judge, kept until the token expires and after.

Each is authenticated under a key that the store holds sealed: who writes to the database alone invents none.
"""

import hashlib
import hmac
import json
from collections import OrderedDict
from datetime import datetime, timedelta
from threading import Lock

from sqlalchemy import Connection, delete, insert, select

from attestation.broker.session import Attested
from attestation.errors import Untrusted
from attestation.formats.json_compact import compact
from attestation.sources.db import Database
from attestation.sources.schema import attestations, ms
from attestation.sources.statement import Statement

CACHE_ENTRIES = 1024  # a result of 8 GPUs is about 100 KB of objects
RETENTION = timedelta(days=30)  # `policy diff` asks about recent workloads
_MAC_CHARS = hashlib.sha256().digest_size * 2
_ADD = Statement(insert(attestations))


class AttestationStore:
    """Writes through a small cache: the GET after an attest parses nothing."""

    def __init__(self, database: Database, key: bytes) -> None:
        self._db, self._key = database, key
        self._cache: OrderedDict[str, Attested] = OrderedDict()
        self._lock = Lock()

    def add(self, connection: Connection, attested: Attested) -> None:
        """Part of the transaction that finishes the session."""
        text = compact(attested.to_json())
        _ADD.run(
            connection,
            {
                "jti": attested.jti,
                "expires": ms(attested.expires),
                "chip_id": attested.facts.cpu.chip_id[:160],
                "record": self._mac(attested.jti, text) + text.decode(),
            },
        )

    def remember(self, attested: Attested) -> None:
        """After the commit."""
        with self._lock:
            self._cache[attested.jti] = attested
            if len(self._cache) > CACHE_ENTRIES:
                self._cache.popitem(last=False)

    def get(self, jti: str) -> Attested | None:
        """The record of a token, None where it is unknown; Untrusted where no broker with this store's key wrote it."""
        with self._lock:
            cached = self._cache.get(jti)
        if cached is not None:
            return cached
        with self._db.read() as connection:
            text = connection.execute(select(attestations.c.record).where(attestations.c.jti == jti)).scalar()
        if text is None:
            return None
        if (attested := self._read(jti, text)) is None:
            raise Untrusted("attestation-changed", "no broker wrote this attestation", where="attestations", got=jti)
        self.remember(attested)
        return attested

    def recent(self, limit: int) -> tuple[Attested, ...]:
        """The newest results."""
        query = select(attestations.c.jti, attestations.c.record).order_by(attestations.c.expires.desc()).limit(limit)
        with self._db.read() as connection:
            rows = connection.execute(query).all()
        return tuple(found for row in rows if (found := self._read(row.jti, row.record)) is not None)

    def _mac(self, jti: str, text: bytes) -> str:
        """Over both, with a separator that JSON does not contain."""
        return hmac.digest(self._key, b"%s\0%s" % (jti.encode(), text), "sha256").hex()

    def _read(self, jti: str, record: str) -> Attested | None:
        mac, text = record[:_MAC_CHARS], record[_MAC_CHARS:]
        if not hmac.compare_digest(mac.encode(), self._mac(jti, text.encode()).encode()):
            return None
        return Attested.from_json(json.loads(text))

    def sweep(self, now: datetime) -> int:
        """Delete results past their retention."""
        with self._db.write() as connection:
            old = attestations.c.expires <= ms(now - RETENTION)
            return connection.execute(delete(attestations).where(old)).rowcount
