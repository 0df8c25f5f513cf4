"""Policies: append-only versions per kind and name. The newest is in force; nothing is ever overwritten."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Row, func, insert, select

from attestation.errors import Denied
from attestation.sources.db import Database
from attestation.sources.schema import moment, ms, policies


class PolicyKind(StrEnum):
    """`release`: native conditions of a repository or `default`. The Rego kinds are upstream's two."""

    RELEASE = "release"
    REGO_ATTESTATION = "rego-attestation"
    REGO_RESOURCE = "rego-resource"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPolicy:
    """One version of one policy."""

    kind: PolicyKind
    name: str
    version: int
    text: str
    author: str
    created: datetime


class PolicyStore:
    """Reads give the newest version; writes may demand that nobody wrote in between."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def put(
        self, kind: PolicyKind, name: str, text: str, *, author: str, now: datetime, expected: int | None = None
    ) -> int:
        """Add a version. `expected` is the version that the author saw: another one is Denied (lost update)."""
        mine = (policies.c.kind == str(kind)) & (policies.c.name == name)
        with self._db.change() as connection:
            newest = connection.execute(select(func.max(policies.c.version)).where(mine)).scalar() or 0
            if expected is not None and expected != newest:
                raise Denied("policy-version", "somebody else changed this policy", expected=expected, got=newest)
            connection.execute(
                insert(policies),
                {
                    "kind": str(kind),
                    "name": name,
                    "version": newest + 1,
                    "text": text,
                    "author": author,
                    "created": ms(now),
                },
            )
        return newest + 1

    def get(self, kind: PolicyKind, name: str) -> StoredPolicy | None:
        """The version in force."""
        return self._db.remember(("policy", kind, name), lambda: self._read(kind, name))

    def _read(self, kind: PolicyKind, name: str) -> StoredPolicy | None:
        query = (
            select(policies)
            .where(policies.c.kind == str(kind), policies.c.name == name)
            .order_by(policies.c.version.desc())
            .limit(1)
        )
        with self._db.read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        return _stored(row)

    def history(self, kind: PolicyKind, name: str) -> tuple[StoredPolicy, ...]:
        """Every version, oldest first."""
        mine = (policies.c.kind == str(kind)) & (policies.c.name == name)
        with self._db.read() as connection:
            rows = connection.execute(select(policies).where(mine).order_by(policies.c.version)).all()
        return tuple(_stored(row) for row in rows)

    def names(self, kind: PolicyKind) -> tuple[str, ...]:
        """Names that have a policy of this kind."""
        return self._db.remember(("policies", kind), lambda: self._names(kind))

    def _names(self, kind: PolicyKind) -> tuple[str, ...]:
        query = select(policies.c.name).where(policies.c.kind == str(kind)).distinct().order_by(policies.c.name)
        with self._db.read() as connection:
            return tuple(connection.execute(query).scalars())


def _stored(row: Row[tuple[object, ...]]) -> StoredPolicy:
    return StoredPolicy(
        kind=PolicyKind(row.kind),
        name=row.name,
        version=row.version,
        text=row.text,
        author=row.author,
        created=moment(row.created),
    )
