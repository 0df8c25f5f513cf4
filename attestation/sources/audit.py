"""The audit log: every decision, hash-chained and signed, in the same transaction as what it permits.

Each entry's digest covers its content and the digest before it; the signature covers the digest. Whoever changes,
drops or reorders an entry breaks `verify`, which needs only the public key.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from sqlalchemy import ColumnElement, Connection, Row, bindparam, insert, or_, select, update

from attestation.errors import Malformed, Untrusted
from attestation.sources.db import Database
from attestation.sources.schema import AUDIT_STREAM, audit, audit_heads, moment, ms
from attestation.sources.statement import Statement
from attestation.values import JsonValue

GENESIS = "0" * 64
_BATCH = 1000
_CANONICAL = json.JSONEncoder(separators=(",", ":"), sort_keys=True)
_APPEND = Statement(insert(audit))
_HEAD = Statement(
    select(audit_heads.c.seq, audit_heads.c.digest).where(audit_heads.c.stream == bindparam("s")).with_for_update()
)
_ADVANCE = Statement(
    update(audit_heads)
    .where(audit_heads.c.stream == bindparam("s"))
    .values(seq=bindparam("new_seq"), digest=bindparam("new_digest"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One decision. `subject` is a key path, a token id or an admin action's object."""

    seq: int
    at: datetime
    event: str
    subject: str
    body: Mapping[str, JsonValue]
    previous: str
    digest: str
    signature: bytes

    def to_json(self) -> dict[str, object]:
        """For export."""
        return {
            "seq": self.seq,
            "at": self.at.isoformat(),
            "event": self.event,
            "subject": self.subject,
            "body": self.body,
            "previous": self.previous,
            "digest": self.digest,
            "signature": self.signature.hex(),
        }


class AuditLog:
    """Appends inside a caller's transaction; the head row orders appends of all replicas."""

    def __init__(self, database: Database, key: Ed25519PrivateKey, stream: str = AUDIT_STREAM) -> None:
        self._db, self._key, self._stream = database, key, stream

    @property
    def stream(self) -> str:
        """The name that every digest covers."""
        return self._stream

    def sign(self, statement: bytes) -> bytes:
        """Sign a statement about the log. Entries sign 32 raw bytes, statements are JSON: none passes for the other."""
        return self._key.sign(statement)

    @property
    def public_key(self) -> Ed25519PublicKey:
        """What verifies the log."""
        return self._key.public_key()

    def append(
        self, connection: Connection, *, event: str, subject: str, body: Mapping[str, JsonValue], now: datetime
    ) -> int:
        """Add one entry; it is as durable as the transaction. Returns its sequence number."""
        head = _HEAD.one(connection, {"s": self._stream})
        seq, previous = (1, GENESIS) if head is None else (head[0] + 1, head[1])
        text = _CANONICAL.encode(body)
        digest = entry_digest(self._stream, seq, ms(now), event, subject, text, previous)
        if head is None:
            connection.execute(insert(audit_heads), {"stream": self._stream, "seq": seq, "digest": digest})
        else:
            _ADVANCE.run(connection, {"s": self._stream, "new_seq": seq, "new_digest": digest})
        _APPEND.run(
            connection,
            {
                "stream": self._stream,
                "seq": seq,
                "at": ms(now),
                "event": event,
                "subject": subject,
                "body": text,
                "previous": previous,
                "digest": digest,
                "signature": self._key.sign(bytes.fromhex(digest)),
            },
        )
        return seq

    def record(self, *, event: str, subject: str, body: Mapping[str, JsonValue], now: datetime) -> int:
        """One entry in a durable transaction of its own."""
        return self._db.commit(lambda c: self.append(c, event=event, subject=subject, body=body, now=now))

    def tail(self, count: int, repositories: Sequence[str] = ()) -> tuple[Entry, ...]:
        """The newest entries, oldest of them first; of some repositories alone where any are named."""
        query = select(audit).where(audit.c.stream == self._stream).order_by(audit.c.seq.desc()).limit(count)
        if repositories:
            query = query.where(or_(*(_of_repository(name) for name in repositories)))
        with self._db.read() as connection:
            return tuple(reversed([_entry(row) for row in connection.execute(query)]))

    def about(self, subject: str, event: str | None = None) -> tuple[Entry, ...]:
        """Entries about one subject, e.g. who got a key."""
        query = select(audit).where(audit.c.stream == self._stream, audit.c.subject == subject).order_by(audit.c.seq)
        if event is not None:
            query = query.where(audit.c.event == event)
        with self._db.read() as connection:
            return tuple(_entry(row) for row in connection.execute(query))

    def digests(self) -> list[str]:
        """Of all entries, in order."""
        query = select(audit.c.digest).where(audit.c.stream == self._stream).order_by(audit.c.seq)
        with self._db.read() as connection:
            return list(connection.execute(query).scalars())

    def entry(self, seq: int) -> Entry | None:
        """One entry."""
        query = select(audit).where(audit.c.stream == self._stream, audit.c.seq == seq)
        with self._db.read() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _entry(row)

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """All entries in order, or those after one, read in batches."""
        while True:
            query = (
                select(audit)
                .where(audit.c.stream == self._stream, audit.c.seq > after)
                .order_by(audit.c.seq)
                .limit(_BATCH)
            )
            with self._db.read() as connection:
                batch = [_entry(row) for row in connection.execute(query)]
            if not batch:
                return
            yield from batch
            after = batch[-1].seq

    def verify(self) -> int:
        """Walk the chain; returns its length. Untrusted names the first entry that does not fit."""
        with self._db.read() as connection:
            head = connection.execute(select(audit_heads).where(audit_heads.c.stream == self._stream)).one_or_none()
        length, digest = verify_chain(self.entries(), self.public_key, self._stream)
        if head is None or (head.seq, head.digest) != (length, digest):
            want = head.seq if head else "a head"
            raise Untrusted("audit-head", "the log ends elsewhere than its head", expected=want, got=length)
        return length


def _of_repository(name: str) -> ColumnElement[bool]:
    """Entries about a tenant's keys and policies: the subject is the repository, or a path in it."""
    return or_(audit.c.subject == name, audit.c.subject.startswith(f"{name}/", autoescape=True))


def verify_chain(entries: Iterator[Entry], key: Ed25519PublicKey, stream: str = AUDIT_STREAM) -> tuple[int, str]:
    """Check sequence, links, digests and signatures of a whole log; returns length and last digest."""
    seq, previous = 0, GENESIS
    for entry in entries:
        if entry.seq != seq + 1 or entry.previous != previous:
            raise Untrusted("audit-chain", "the log was changed here", where=f"entry {seq + 1}", got=f"seq {entry.seq}")
        check_entry(entry, key, stream)
        seq, previous = entry.seq, entry.digest
    return seq, previous


def check_entry(entry: Entry, key: Ed25519PublicKey, stream: str = AUDIT_STREAM) -> None:
    """Digest and signature of one entry, or Untrusted."""
    text = _CANONICAL.encode(entry.body)
    want = entry_digest(stream, entry.seq, ms(entry.at), entry.event, entry.subject, text, entry.previous)
    if entry.digest != want:
        raise Untrusted("audit-chain", "the entry was changed", where=f"entry {entry.seq}")
    try:
        key.verify(entry.signature, bytes.fromhex(entry.digest))
    except InvalidSignature as exc:
        raise Untrusted("audit-signature", "the signature does not verify", where=f"entry {entry.seq}") from exc


def parse_entry(value: object) -> Entry:
    """Inverse of `to_json`, for exported entries; Malformed. Proves nothing: see `check_entry`."""
    names = {"seq", "at", "event", "subject", "body", "previous", "digest", "signature"}
    if not isinstance(value, dict) or set(value) != names:
        raise Malformed("audit-entry", "not an audit entry", expected=", ".join(sorted(names)))
    texts = all(isinstance(value[name], str) for name in names - {"seq", "body"})
    if not texts or type(value["seq"]) is not int or not isinstance(value["body"], dict):
        raise Malformed("audit-entry", "a member has another type", where="entry")
    try:
        at, signature = datetime.fromisoformat(value["at"]), bytes.fromhex(value["signature"])
        bytes.fromhex(value["digest"])
    except ValueError as exc:
        raise Malformed("audit-entry", "not a time or not hexadecimal", where="entry") from exc
    return Entry(**(value | {"at": at, "signature": signature}))


def entry_digest(stream: str, seq: int, at: int, event: str, subject: str, body: str, previous: str) -> str:
    """SHA-256 over a JSON array: no two contents have one encoding."""
    content = _CANONICAL.encode([stream, seq, at, event, subject, body, previous])
    return hashlib.sha256(content.encode()).hexdigest()


def _entry(row: Row[tuple[object, ...]]) -> Entry:
    return Entry(
        seq=row.seq,
        at=moment(row.at),
        event=row.event,
        subject=row.subject,
        body=json.loads(row.body),
        previous=row.previous,
        digest=row.digest,
        signature=bytes(row.signature),
    )
